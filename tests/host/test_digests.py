"""Digests: by hand, of every type, on any mesh, and of no other bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax.host.digests import SEEDS, as_text, digest, digests
from rljax.sharding import make_mesh


def by_hand(numbers: list[int]) -> str:
    """The formula in Python's integers, of numbers of 32 bits."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    return "".join(
        f"{sum(mix(x ^ mix((i + seed) % 2**32)) for i, x in enumerate(numbers)) % 2**32:08x}"
        for seed in SEEDS
    )


def of(array) -> str:
    return digests({"x": array})["x"]


def test_it_is_the_sum_of_mixed_bits():
    numbers = [0, 1, 2**31, 2**32 - 1, 12345]
    expected = by_hand(numbers)
    assert of(jnp.array(numbers, jnp.uint32)) == expected
    assert as_text(jax.jit(digest)(jnp.array(numbers, jnp.uint32))) == expected
    assert as_text(digest(jnp.array(numbers, jnp.uint32))) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint16"])
def test_every_type_counts_with_its_bits(dtype):
    array = jnp.array([[-3, 0, 1], [2, 5, 127]]).astype(dtype)
    unsigned = f"u{array.dtype.itemsize}"
    assert of(array) == by_hand(np.asarray(array).view(unsigned).flatten().tolist())


def test_flags_and_keys_have_digests():
    assert of(jnp.array([True, False, True])) == by_hand([1, 0, 1])
    key = jax.random.key(7)
    assert of(key) == by_hand(np.asarray(jax.random.key_data(key)).tolist())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_one_bit_changes_it_and_so_does_an_exchange(data):
    numbers = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8))
    at, bit = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 31))
    other = [x ^ (1 << bit) if i == at else x for i, x in enumerate(numbers)]
    before = of(jnp.array(numbers, jnp.uint32))
    assert of(jnp.array(other, jnp.uint32)) != before
    swapped = [numbers[1], numbers[0], *numbers[2:]]
    assert (of(jnp.array(swapped, jnp.uint32)) == before) == (numbers[0] == numbers[1])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"tensor": 8}], ids=str)
def test_the_mesh_changes_nothing(sizes):
    array = jax.random.normal(jax.random.key(0), (16, 8))
    mesh = make_mesh(jax.devices(), **sizes)
    for spec in (jax.P(), jax.P(tuple(sizes)), jax.P(None, tuple(sizes))):
        spread = jax.device_put(array, jax.sharding.NamedSharding(mesh, spec))
        assert of(spread) == of(array)


def test_zero_and_minus_zero_differ():
    assert of(jnp.float32([0.0])) != of(jnp.float32([-0.0]))
