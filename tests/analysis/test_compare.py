"""What differs beyond noise, and what does not."""

import numpy as np
import pytest
from recorded import figures, healthy, write_run

from rljax.analysis.compare import compare, effective_count, welch
from rljax.analysis.reading import read_run
from rljax.analysis.series import last_window


def compared(one, other, share=0.5):
    runs = [read_run(folder, folder.name) for folder in (one, other)]
    return compare(*runs, tuple(last_window(run.steps, share) for run in runs))


def noisy(folder, shift=0.0, seed=0, steps=40, **others):
    draw = np.random.default_rng(seed)
    records = [
        {"step": step, "a": 1 + shift + 0.1 * draw.normal(), "b": draw.normal(), **others}
        for step in range(1, steps + 1)
    ]
    return write_run(folder, records)


def test_welch_by_hand():
    """Welch's t of (1, 3, 2, 2) and (2, 4, 3, 3): t = 1 / √(2 · (2/3) / 4) = √3, 6 degrees of
    freedom, two-sided p = 0.134 (from a table of Student's t)."""
    one = np.array([1.0, 3.0, 2.0, 2.0])
    assert effective_count(one) == 4
    assert welch(one, one + 1) == pytest.approx(0.134, abs=5e-4)
    assert welch(one[:2], one) is None
    assert welch(np.ones(5), np.ones(5)) == 1.0
    assert welch(np.ones(5), np.zeros(5)) == 0.0


def test_neighbours_that_are_alike_tell_less():
    """Of an autoregressive series with ρ = 0.8, n (1 − ρ) / (1 + ρ) = n / 9."""
    draw, series = np.random.default_rng(0), [0.0]
    for _ in range(3_999):
        series.append(0.8 * series[-1] + draw.normal())
    assert effective_count(np.array(series)) == pytest.approx(4_000 / 9, rel=0.15)


def test_noise_is_seldom_taken_for_a_difference():
    draw = np.random.default_rng(1)
    found = [welch(draw.normal(size=8), draw.normal(size=8)) < 0.05 for _ in range(400)]
    assert np.mean(found) <= 0.07


def test_a_shift_is_found_and_comes_first(tmp_path):
    found = compared(noisy(tmp_path / "a"), noisy(tmp_path / "b", shift=0.5, seed=1))
    assert [(d.name, d.beyond_noise) for d in found.metrics] == [("a", True), ("b", False)]
    assert found.metrics[0].difference == pytest.approx(0.5, abs=0.1)
    assert found.metrics[0].relative == pytest.approx(0.5, abs=0.1)
    assert not found.same


def test_the_same_bits_are_identical(tmp_path):
    found = compared(noisy(tmp_path / "a", **{"perf/t": 1}), noisy(tmp_path / "b", **{"perf/t": 2}))
    assert (found.identical, found.same, found.config) == (["a", "b"], True, [])
    assert [d.name for d in found.metrics] == ["perf/t"]


def test_one_bit_is_not_identical(tmp_path):
    one = [{"step": 1, "a": 0.1}, {"step": 2, "a": 0.3}]
    other = [one[0], {"step": 2, "a": np.nextafter(0.3, 1)}]
    found = compared(write_run(tmp_path / "a", one), write_run(tmp_path / "b", other))
    assert (found.identical, found.same) == ([], False)


def test_runs_of_other_lengths_and_figures(tmp_path):
    one = healthy(tmp_path / "a", steps=12, only_here=1.0)
    other = write_run(
        tmp_path / "b",
        [figures(step, there=None) for step in range(1, 31)],
        config="length: {min_tokens: 20, max_tokens: 50}\nrun_dir: x\nseed: 0\n"
        "shaping: {spare: false}\n",
    )
    found = compared(one, other)
    assert (found.only_first, found.only_second) == (["only_here"], ["there"])
    assert found.config == [("length.max_tokens", "40", "50"), ("shaping.spare", "absent", "false")]
    assert found.identical == []  # for the steps differ
