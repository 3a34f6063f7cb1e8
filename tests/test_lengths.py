"""One length policy for NumPy and JAX: the numbers, and that the two agree."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.lengths import band_cost, band_distance, length_figures, overlong_cost, verdict

ROWS = st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), min_size=6, max_size=6)


def test_by_hand():
    lengths = np.array([1, 2, 3, 6, 9])
    truncated = np.array([False, False, False, True, True])
    counted = np.array([True, True, True, True, False])
    figures = length_figures(lengths, truncated, counted, 2, 3)
    expected = {
        "length_mean": 3.0,
        "length_std": np.sqrt((4 + 1 + 0 + 9) / 4),
        "length_terminated_mean": 2.0,
        "response_length_min": 1.0,
        "response_length_max": 6.0,
        "response_length_p5": 1 + 0.15,  # at 0.05·3 = 0.15 of the sorted lengths
        "response_length_p50": 2.5,
        "response_length_p95": 3 + 0.85 * 3,
        "in_band_ratio": 0.5,
        "truncated_ratio": 0.25,
    }
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-6, err_msg=name)


def test_costs_by_hand():
    lengths = np.array([1, 2, 5, 8, 10])
    np.testing.assert_allclose(
        band_cost(lengths, 2, 5, 0.4, scale_tokens=2.0, cap=1.0), [0.1, 0.0, 0.0, 0.4, 0.4]
    )
    np.testing.assert_allclose(overlong_cost(lengths, 9, 4, 0.5), [0, 0, 0, 0.375, 0.5])


@few
@given(ROWS)
def test_numpy_and_compiled_jax_agree(rows):
    lengths, truncated, counted = map(np.array, zip(*rows, strict=True))

    def all_of(lengths, truncated, counted):
        return {
            **length_figures(lengths, truncated, counted, 10, 20),
            "verdict": verdict(lengths, 10, 20),
            "distance": band_distance(lengths, 10, 20),
            "band": band_cost(lengths, 10, 20, 0.3, scale_tokens=7.0, cap=2.0),
            "overlong": overlong_cost(lengths, 50, 20, 1.0),
        }

    eager = all_of(lengths, truncated, counted)
    compiled = COMPILED(jnp.array(lengths), jnp.array(truncated), jnp.array(counted), all_of)
    for name, value in eager.items():
        np.testing.assert_allclose(compiled[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


COMPILED = jax.jit(
    lambda lengths, truncated, counted, f: f(lengths, truncated, counted), static_argnums=3
)


@few
@given(ROWS)
def test_percentiles_are_numpys_and_what_is_not_counted_changes_nothing(rows):
    lengths, truncated, counted = map(np.array, zip(*rows, strict=True))
    figures = length_figures(lengths, truncated, counted, 10, 20)
    kept = (
        length_figures(lengths[counted], truncated[counted], counted[counted], 10, 20)
        if (counted.any())
        else dict.fromkeys(figures, 0.0)
    )
    for name, value in figures.items():
        np.testing.assert_allclose(value, kept[name], rtol=1e-5, atol=1e-5, err_msg=name)
    if counted.any():
        for percent in (5, 50, 95):
            expected = np.percentile(lengths[counted], percent)
            np.testing.assert_allclose(figures[f"response_length_p{percent}"], expected, rtol=1e-5)


@few
@given(ROWS)
def test_the_verdict_is_by_the_distance(rows):
    lengths = np.array([length for length, _, _ in rows])
    found = verdict(lengths, 10, 20)
    assert ((found == 0) == (band_distance(lengths, 10, 20) == 0)).all()
    assert ((found < 0) == (lengths < 10)).all()
    assert ((found > 0) == (lengths > 20)).all()


@pytest.mark.parametrize("module", ["lengths", "health", "metrics", "config_file"])
def test_it_needs_no_jax(module):
    code = f"import sys; sys.modules['jax'] = None; import rljax.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
