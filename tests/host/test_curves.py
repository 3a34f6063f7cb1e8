"""The picture of a run: a panel for each kind of figure that it has."""

import pytest
from matplotlib import pyplot as plt

from rljax.host.curves import draw_curves

GIVEN = [{"step": step, "policy/nll": 2.0 / step} for step in (1, 2)]
HELD = [{"step": step, "heldout/policy/nll": 1.5, "accuracy_greedy": 0.5} for step in (0, 2)]
SAMPLED = [{"step": 1, "reward_mean": 0.5, "accuracy": 0.5, "length_mean": 9.0}]


@pytest.mark.parametrize(
    ("records", "evaluations", "titles"),
    [
        (GIVEN, HELD, ["loss", "accuracy"]),
        (GIVEN, [{"step": 0}], ["loss"]),
        (SAMPLED, [], ["reward per response", "accuracy", "response length (tokens)"]),
        ([], [{"step": 0}], []),
        ([{"step": 1, "policy/nll": None}, *GIVEN], [{"step": 0, "heldout/loss": None}], ["loss"]),
    ],
)
def test_only_what_a_run_has_is_drawn(records, evaluations, titles, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    path = tmp_path / "curves.png"
    draw_curves(path, records, evaluations, title="run", min_tokens=4, max_tokens=8)
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == titles
