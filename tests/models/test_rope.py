"""Rotary positions: frequencies worked out by hand, and what a rotation must keep."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.models.rope import Rope, no_rope, rope_from_hf, rotate, turns


def read(kind, *, base=100.0, head_dim=4, max_positions=64, **keys):
    given = {"rope_type": kind, "rope_theta": base} | keys
    return rope_from_hf(given, head_dim=head_dim, max_positions=max_positions)


def assert_rope(rope, frequencies, scale=1.0, max_positions=None):
    np.testing.assert_allclose(rope.frequencies, frequencies, rtol=1e-12)
    assert rope.scale == pytest.approx(scale, rel=1e-12)
    assert rope.max_positions == max_positions


def test_default_frequencies_are_powers_of_the_base():
    """100^(−2i/4) for i = 0, 1."""
    assert_rope(read("default"), [1, 0.1])
    assert_rope(rope_from_hf({"rope_theta": 100.0}, head_dim=4, max_positions=64), [1, 0.1])


def test_a_part_of_the_head_may_turn():
    assert_rope(read("default", head_dim=8, partial_rotary_factor=0.5), [1, 0.1])


def test_linear_divides_every_frequency():
    assert_rope(read("linear", factor=4.0), [0.25, 0.025])


def test_dynamic_is_the_default_within_its_positions():
    assert_rope(read("dynamic", factor=4.0), [1, 0.1], max_positions=64)


def test_llama3_slows_the_slow_turns():
    """Frequencies 1, 0.1, 0.01 make 25, 2.5 and 0.25 turns within 50π positions. More than 4 stay,
    fewer than 1 are divided by 8, and 2.5, half way between 1 and 4, are the mean of both."""
    rope = read(
        "llama3",
        base=1000.0,
        head_dim=6,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=50 * math.pi,
    )
    assert_rope(rope, [1, (0.1 + 0.0125) / 2, 0.00125])


YARN = {
    "base": 10_000.0,
    "head_dim": 8,
    "factor": 4.0,
    "beta_fast": 15,
    "beta_slow": 2,
    "original_max_position_embeddings": 1000 * math.pi,
}
TEMPERATURE = 0.1 * math.log(4) + 1


def test_yarn_interpolates_by_parts():
    """r turns within 1000π positions are those of pair 8·log(500/r) / (2·log 10⁴): 1.52 for r = 15,
    2.40 for r = 2. So pairs 0 and 1 stay, pair 3 is divided by 4, and pair 2 is half way."""
    assert_rope(read("yarn", **YARN), [1, 0.1, (0.01 + 0.0025) / 2, 0.00025], TEMPERATURE)


def test_yarn_without_rounding():
    first, last = (8 * math.log(500 / r) / (2 * math.log(10_000)) for r in (15, 2))
    slow = (2 - first) / (last - first)
    expected = [1, 0.1, slow * 0.0025 + (1 - slow) * 0.01, 0.00025]
    assert_rope(read("yarn", **YARN, truncate=False), expected, TEMPERATURE)


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"attention_factor": 0.9}, 0.9),
        (
            {"mscale": 0.5, "mscale_all_dim": 2.0},
            (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1),
        ),
        ({"mscale": 0.5}, TEMPERATURE),  # it counts only beside the other
        ({"factor": 0.5}, 1.0),
    ],
    ids=str,
)
def test_the_temperature_of_yarn(keys, scale):
    assert read("yarn", **YARN | keys).scale == pytest.approx(scale, rel=1e-12)


def test_yarn_takes_a_missing_factor_from_the_lengths():
    keys = YARN | {"original_max_position_embeddings": 16}
    implied = read("yarn", **keys | {"factor": None}, max_positions=64)
    assert implied == read("yarn", **keys, max_positions=999)


LONG = {"short_factor": [2.0, 4.0], "long_factor": [9.0, 9.0]}


def test_longrope_divides_by_the_short_factors_up_to_the_first_length():
    """64 positions of 16: the scale is √(1 + log 4 / log 16)."""
    rope = read("longrope", **LONG, original_max_position_embeddings=16)
    assert_rope(rope, [1 / 2, 0.1 / 4], math.sqrt(1.5), max_positions=16)


@pytest.mark.parametrize(
    ("keys", "scale"),
    [({"attention_factor": 1.25}, 1.25), ({"factor": 16.0}, math.sqrt(2)), ({"factor": 0.5}, 1.0)],
    ids=str,
)
def test_the_scale_of_longrope(keys, scale):
    rope = read("longrope", **LONG, original_max_position_embeddings=16, **keys)
    assert rope.scale == pytest.approx(scale, rel=1e-12)


def test_an_unknown_kind_and_a_missing_key_are_named():
    with pytest.raises(UserError, match=r'rope_type "spiral" is not supported; known: default'):
        read("spiral")
    with pytest.raises(UserError, match=r"""rope_type "linear" needs the key 'factor'"""):
        read("linear")


def turned(x, rope, position):
    """A head's entries [h] as they are at a position."""
    by = turns(rope, jnp.full((1, 1), position))
    return rotate(jnp.asarray(x, jnp.float32)[None, None, None], by)[0, 0, 0]


def test_a_quarter_turn_by_hand():
    """Entries i, i + 2 are a pair: the first turns by 90°, the second not. The fifth has none."""
    quarter = Rope((math.pi / 2, 0.0))
    np.testing.assert_allclose(turned([1, 2, 3, 4, 5], quarter, 1), [-3, 2, 1, 4, 5], atol=1e-6)
    np.testing.assert_allclose(turned([1, 2, 3, 4, 5], quarter, 2), [-1, 2, -3, 4, 5], atol=1e-6)


def test_the_scale_multiplies_what_turns():
    rope = Rope((0.0,), scale=1.5)
    np.testing.assert_allclose(turned([1, 2, 3], rope, 7), [1.5, 3, 3], rtol=1e-6)


def test_no_rope_turns_nothing():
    np.testing.assert_array_equal(turned([1, 2, 3, 4], no_rope(4), 9), [1, 2, 3, 4])


heads = st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6)
positions = st.integers(0, 200)


@few
@given(heads, heads, positions, positions, positions)
def test_lengths_stay_and_products_know_relative_positions_alone(query, key, at, to, shift):
    rope = read("default", head_dim=6)
    moved = [turned(query, rope, at + shift), turned(key, rope, to + shift)]
    here = [turned(query, rope, at), turned(key, rope, to)]
    np.testing.assert_allclose(jnp.linalg.norm(here[0]), np.linalg.norm(query), atol=1e-5)
    np.testing.assert_allclose(jnp.dot(*moved), jnp.dot(*here), atol=1e-3)
