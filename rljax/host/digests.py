"""A digest of every leaf of a tree, by which damage to a copy of it is found.

It is computed where the leaf lies, each device over its own part, and does not depend on the mesh:
integers modulo 2³² are added, in whatever order.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt32

from rljax.host.agree import meet
from rljax.trees import by_path
from rljax.types import Array

SEEDS = (0x9E3779B9, 0x7F4A7C15)  # one for each half of a digest


def digests(tree: PyTree) -> dict[str, str]:
    """A digest of 64 bits, as hexadecimal digits, for every leaf, by its path.

    Any change of a leaf's bits, and any exchange of two of its elements, changes the digest, but
    for one in 2⁶⁴. It is no protection against somebody who wants to forge one.
    """
    leaves = by_path(tree)
    program = _compiled(
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves.values())
    )
    halves = jax.device_get(program(*leaves.values()))
    return {path: as_text(both) for path, both in zip(leaves, halves, strict=True)}


def as_text(halves: UInt32[Array, "2"]) -> str:
    """A digest as hexadecimal digits."""
    return "".join(f"{half:08x}" for half in np.asarray(halves))


@functools.cache
def _compiled(leaves: tuple[jax.ShapeDtypeStruct, ...]) -> jax.stages.Compiled:
    program = jax.jit(_digest_all).lower(*leaves).compile()
    meet("compiled: digests")
    return program


def _digest_all(*leaves: Array) -> list[UInt32[Array, "2"]]:
    return [digest(jax.device_put(leaf, jax.memory.Space.Device)) for leaf in leaves]


def digest(leaf: Array) -> UInt32[Array, "2"]:
    """For each seed, Σ_i mix(bits_i ⊕ mix(i + seed)) modulo 2³² over the elements i of a leaf in
    row-major order, where ``mix`` is the last part of MurmurHash3.

    Source of ``mix``: A. Appleby, MurmurHash3, ``fmix32``.
    """
    bits = as_bits(leaf)
    strides = [math.prod(bits.shape[axis + 1 :]) % 2**32 for axis in range(bits.ndim)]
    index = functools.reduce(
        jnp.add,
        [
            jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
            for axis, stride in enumerate(strides)
        ],
        jnp.zeros(bits.shape, jnp.uint32),
    )
    return jnp.stack(
        [mix(bits ^ mix(index + jnp.uint32(seed))).sum(dtype=jnp.uint32) for seed in SEEDS]
    )


def as_bits(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of every element as a number; of wide elements there are two, in a last axis."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if leaf.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Spreads every bit of a number over all of it, one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
