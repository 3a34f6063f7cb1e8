"""What is drawn of runs."""

import pytest
from matplotlib import pyplot as plt
from recorded import figures, write_run

from rljax.analysis.plots import draw, draw_each, draw_sheet, file_stems
from rljax.analysis.reading import read_run
from rljax.health import SIGNS
from rljax.host.curves import grid


@pytest.fixture
def runs(tmp_path):
    evaluations = [{"step": 0, "length_mean": 33.0}, {"step": 20, "length_mean": 30.0}]
    records = [figures(step) for step in range(1, 21)]
    one = read_run(write_run(tmp_path / "a", records, evaluations), "_with $x_")
    two = read_run(write_run(tmp_path / "b", [figures(1, only=None)]), "b")
    return [one, two]


@pytest.fixture
def axes():
    figure, (axes,) = grid(1)
    yield axes
    plt.close(figure)


def test_a_length_has_lines_points_and_the_band(runs, axes):
    draw(axes, "length_mean", runs, SIGNS, 0.6)
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["band", r" _with \$x_", "b"]
    raw, smooth, points, single = axes.get_lines()
    assert raw.get_alpha() == 0.25
    assert list(raw.get_ydata()) != list(smooth.get_ydata())
    assert points.get_marker() == "o"
    assert list(single.get_ydata()) == [30.1]
    assert axes.get_ylim()[0] == 0


def test_the_bounds_of_health_are_drawn(runs, axes):
    draw(axes, "reward_shaping_ratio", runs, SIGNS, 0.0)
    assert {line.get_ydata()[0] for line in axes.get_lines()[:2]} == {0.05, 0.15}


def test_files(runs, tmp_path):
    paths = draw_each(tmp_path, ["reward_mean", "only"], runs, SIGNS, 0.6)
    draw_sheet(tmp_path / "sheet.png", ["reward_mean", "only"], runs, SIGNS, 0.6)
    for path in (*paths, tmp_path / "sheet.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_names_of_files_differ_and_stay_in_the_folder():
    names = ["a/b", "a.b", "A/B", "../../etc", "/abs", "x" * 300]
    stems = file_stems(names)
    assert len(set(stems)) == len(names)
    assert not any("/" in stem or stem.startswith(".") for stem in stems)
    assert max(map(len, stems)) < 100
