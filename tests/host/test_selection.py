"""The best evaluation, and when to stop, from records."""

import math

import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.host.selection import best_record, out_of_patience

NAN = math.nan


def evaluated(*figures):
    return [{"step": 4 * i, "reward": figure, "length": 1.0} for i, figure in enumerate(figures)]


def best_step(figures, mode="max"):
    record = best_record(evaluated(*figures), "reward", mode)
    return None if record is None else record["step"]


@pytest.mark.parametrize(
    ("figures", "largest", "smallest"),
    [
        ([0.5], 0, 0),
        ([0.5, 0.75, 0.25], 4, 8),
        ([0.5, 0.75, 0.75, 0.5], 4, 0),  # the earliest of equals
        ([NAN, 0.5, NAN, 0.75], 12, 4),  # a number is better than none
        ([-1.0, NAN, -math.inf, math.inf], 12, 8),
        ([NAN, NAN], None, None),
        ([None, 0.5, None], 4, 4),  # as one is read from a file
        ([], None, None),
    ],
)
def test_the_best_by_hand(figures, largest, smallest):
    assert best_step(figures, "max") == largest
    assert best_step(figures, "min") == smallest


@pytest.mark.parametrize(
    ("figures", "patience", "stops"),
    [
        ([], 1, False),
        ([0.5], 1, False),  # nothing to compare it with
        ([0.5, 0.75], 1, False),
        ([0.5, 0.5], 1, True),  # as good is not better
        ([0.5, 0.25], 1, True),
        ([0.5, 0.25], 2, False),
        ([0.5, 0.25, 0.5], 2, True),
        ([0.5, 0.25, 0.75], 2, False),
        ([0.25, 0.75, 0.5], 1, True),  # the best of several before
        ([0.5, 0.75, 0.25], 2, False),  # better than the first, one evaluation ago
        ([0.75, 0.25, 0.5], 2, True),  # rising, but not above the best
        ([0.5, NAN, NAN], 2, True),
        ([NAN, 0.5], 1, False),  # a number is better than none
        ([NAN, NAN], 1, True),
    ],
)
def test_patience_by_hand(figures, patience, stops):
    assert out_of_patience(evaluated(*figures), "reward", "max", patience) is stops
    negated = evaluated(*(-figure for figure in figures))
    assert out_of_patience(negated, "reward", "min", patience) is stops


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), max_size=8), st.integers(1, 4))
@few
def test_out_of_patience_counts_evaluations_since_the_best(figures, patience):
    """The same as a counter that each better evaluation sets back, kept along the run."""
    best, since = NAN, 0
    for done, figure in enumerate(figures, start=1):
        better = figure > best or (math.isnan(best) and not math.isnan(figure))
        best, since = (figure, 0) if better or done == 1 else (best, since + 1)
        records = evaluated(*figures[:done])
        assert out_of_patience(records, "reward", "max", patience) == (since >= patience)


def test_an_unknown_figure_is_refused_with_the_nearest():
    records = evaluated(0.5)
    with pytest.raises(UserError, match=r'at step 0 has no figure "rewards"; .*"reward"'):
        best_record(records, "rewards", "max")
    with pytest.raises(UserError, match=r"valid: length, reward\)"):
        out_of_patience(records, "rewards", "max", 3)


def test_a_figure_that_a_resumed_run_asks_for_is_of_the_evaluations_that_have_it():
    records = [{"step": 0, "accuracy": 1.0}, {"step": 9, "accuracy": 1.0, "reward": 0.5}]
    assert best_record(records, "reward", "max")["step"] == 9
    assert not out_of_patience(records, "reward", "max", 1)
    records.append({"step": 12, "accuracy": 1.0, "reward": 0.25})
    assert best_record(records, "reward", "max")["step"] == 9
    assert out_of_patience(records, "reward", "max", 1)
    records.append({"step": 15, "accuracy": 1.0})
    with pytest.raises(UserError, match='at step 15 has no figure "reward"'):
        best_record(records, "reward", "max")


def test_the_step_is_no_figure():
    with pytest.raises(UserError, match="step"):
        best_record(evaluated(0.5), "step", "max")
