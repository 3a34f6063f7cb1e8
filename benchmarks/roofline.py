"""What can this machine do at most?

    python -m benchmarks.roofline [--dtype bfloat16] [--size 8192]

The matrix product's peak, for square matrices and by the number of rows m of an [m, n] x [n, n]
product, which is what decoding m rows at once asks for; and the memory's bandwidth, of a stream
that is only read, which bounds decoding, and of one that is changed in place. Other benchmarks
measure these in their own runs, and give their figures as shares of them.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.report import report

ROWS = (1, 4, 16, 32, 64, 256)  # decoded at once
STREAM_BYTES = {
    "cpu": 2**28
}  # beyond any cache, and long enough for a call's dispatch not to count
LOOP_FLOPS = {"cpu": 2e9}  # of products in one call, for the same reason
ACCELERATOR_BYTES, ACCELERATOR_FLOPS, MOST_PRODUCTS = 2**32, 1e13, 2000


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call, its results awaited; one call before is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


@functools.cache
def matmul_peak(
    dtype: str, size: int = 2048, *, rows: int | None = None, repeats: int = 5
) -> float:
    """FLOP/s of products [rows, size] x [size, size] on one device, by default of square ones.

    Each feeds the next, over the same matrix: where the device's caches hold that, memory bounds
    nothing.
    """
    rows = rows or size
    flops = 2 * rows * size * size
    work = LOOP_FLOPS.get(jax.default_backend(), ACCELERATOR_FLOPS)
    times = min(max(round(work / flops), 1), MOST_PRODUCTS)
    mean = jnp.full((size, size), 1 / size, dtype)  # of a row's entries, so that numbers stay

    @jax.jit
    def products(x, matrix):
        return jax.lax.fori_loop(0, times, lambda _, x: x @ matrix, x)

    x = jnp.ones((rows, size), dtype)
    return times * flops / median_seconds(lambda: products(x, mean), repeats)


@functools.cache
def read_bandwidth(repeats: int = 5) -> float:
    """Bytes a second of a float32 stream that is read once, the quickest of three ways to use it:
    its sum, each row's maximum, and a product with a vector."""
    x = jnp.ones((_stream_bytes() // 2**14, 2**12))
    ways = (jnp.sum, lambda x: x.max(axis=1), lambda x: x @ jnp.ones(x.shape[1]))
    seconds = []
    for way in map(jax.jit, ways):
        seconds.append(median_seconds(functools.partial(way, x), repeats))
    return x.nbytes / min(seconds)


@functools.cache
def in_place_bandwidth(repeats: int = 5) -> float:
    """Bytes a second, read and written, of a float32 stream that is changed where it lies."""
    x = jnp.ones(_stream_bytes() // 4)
    change = jax.jit(lambda x: x + 1, donate_argnums=0)

    def again():
        nonlocal x
        x = change(x)
        return x

    return 2 * x.nbytes / median_seconds(again, repeats)


def _stream_bytes() -> int:
    return STREAM_BYTES.get(jax.default_backend(), ACCELERATOR_BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--dtype", default="float32", help="of the products; default float32")
    parser.add_argument("--size", type=int, default=2048, help="n; default 2048")
    options = parser.parse_args()
    products = {f"m = {rows}": {"rows": rows} for rows in ROWS} | {"square": {}}
    rows = [
        {
            "what": f"{options.dtype} product, n = {options.size}, {name}",
            "GFLOP/s": matmul_peak(options.dtype, options.size, **given) / 1e9,
            "GB/s": None,
        }
        for name, given in products.items()
    ]
    for what, bandwidth in (("read", read_bandwidth()), ("in place", in_place_bandwidth())):
        rows.append({"what": f"memory, {what}", "GFLOP/s": None, "GB/s": bandwidth / 1e9})
    report("at most", rows)


if __name__ == "__main__":
    main()
