"""What this machine can do at most, and what a model asks of it."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.models import DecoderConfig


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call, its results awaited; one call before is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def matmul_peak(dtype: str, size: int = 2048, repeats: int = 10) -> float:
    """FLOP/s of a square matrix product on one device."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / median_seconds(lambda: product(x, x), repeats)


def forward_flops(config: DecoderConfig, rows: int, columns: int, *, head_width: int) -> float:
    """FLOPs of one forward pass over [rows, columns]: its matrix products, attention over all
    columns (as computed, masked or not), and a head of ``head_width`` outputs."""
    c = config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    mlp = 3 * c.width * c.mlp_width
    if c.experts:
        mlp = c.experts.per_token * mlp + c.width * c.experts.count
    layer = attention + mlp + 2 * c.heads * c.head_dim * columns
    return 2.0 * rows * columns * (c.layers * layer + c.width * head_width)
