"""What does the padding of a batch cost?

    python -m benchmarks.padding [config.yaml] [key=value ...]
        [--mean N ...] [--spread geometric|normal] [--buckets N ...] [--microbatches N ...]

Compiles a config's update with ``update.buckets`` and ``update.microbatches`` as given, and times
each on the same rows, in turn: responses whose lengths are drawn around a mean, or geometrically.
Told are the seconds to compile and to run, and the share of the columns that is computed.
"""

import argparse
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.built import benched
from benchmarks.report import report
from rljax.build import Build, build
from rljax.errors import UserError
from rljax.launch import config_and_overrides
from rljax.sharding import split_rows
from rljax.train.buckets import make_lots, widths
from rljax.types import Experience

REPEATS = 3
DEVIATION = 0.15  # of normal lengths, as a share of their mean


class Arm(NamedTuple):
    """A way to update."""

    mean: int  # tokens of a response
    buckets: int
    microbatches: int
    compile_seconds: float
    computed: float  # share of columns
    seconds: float


def measure(options: argparse.Namespace) -> list[Arm]:
    """Every combination, all means one after the other."""
    path, _ = config_and_overrides(options.settings)
    key, arms = jax.random.key(0), []
    with benched(options.settings) as bench:
        config, built, state = bench.config, bench.built, bench.state()
        rows = {mean: experience(built, state, mean, options.spread) for mean in options.mean}
        for microbatches in options.microbatches:
            for buckets in options.buckets:
                settings = {"buckets": buckets, "microbatches": microbatches}
                given = config.model_copy(update={"update": config.update | settings})
                step = build(given, path.parent).train.train_step
                start = time.perf_counter()
                compiled = jax.jit(step.update).lower(state, rows[options.mean[0]], key).compile()
                arms.append((settings, compiled, time.perf_counter() - start))
        measured = []
        for mean in options.mean:
            seconds = [[] for _ in arms]
            for _ in range(REPEATS + 1):  # the first is not counted
                for (_, compiled, _), taken in zip(arms, seconds, strict=True):
                    start = time.perf_counter()
                    jax.block_until_ready(compiled(state, rows[mean], key))
                    taken.append(time.perf_counter() - start)
            minibatches = config.update.get("minibatches", 1)
            measured += [
                Arm(
                    mean,
                    **settings,
                    compile_seconds=compiling,
                    computed=computed(rows[mean].mask, minibatches, **settings),
                    seconds=sorted(taken[1:])[REPEATS // 2],
                )
                for (settings, _, compiling), taken in zip(arms, seconds, strict=True)
            ]
    return measured


def experience(built: Build, state: Any, mean: int, spread: str) -> Experience:
    """Rows of the shapes that a step learns from, prompts of the whole width, and responses whose
    lengths are drawn."""
    step, prompts = built.train.train_step, built.train.batches[0]
    drawn = jax.eval_shape(step.draw, state, prompts, jax.random.key(0))
    shapes = jax.eval_shape(step.appraise, state, drawn).experience
    size, columns = shapes.tokens.shape
    prompt = prompts.tokens.shape[1]
    rng = np.random.default_rng(0)
    if spread == "geometric":
        lengths = rng.geometric(1 / mean, size)
    else:
        lengths = rng.normal(mean, DEVIATION * mean, size).round().astype(int)
    at, ends = np.arange(columns), prompt + np.clip(lengths, 1, columns - prompt)[:, None]
    mask = at < ends

    def values(leaf):
        drawn = rng.normal(size=leaf.shape) * (mask if leaf.ndim == 2 else 1)
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree.map(values, shapes).replace(
        tokens=jnp.asarray(rng.integers(0, built.decoder.vocab_size, mask.shape) * mask),
        mask=jnp.asarray(mask),
        action_mask=jnp.asarray(mask & (at >= prompt)),
        logprobs=jnp.full(mask.shape, -np.log(built.decoder.vocab_size), jnp.float32),
    )


def computed(mask, minibatches: int, *, buckets: int, microbatches: int) -> float:
    """The share of the columns that the networks compute, on average over minibatches."""
    columns = mask.shape[1]
    sizes = np.asarray(widths(columns, buckets))

    def of_minibatch(mask):
        return sizes[make_lots(mask, mask, parts=microbatches, buckets=buckets).width].mean()

    parts = split_rows(mask, minibatches)
    return float(np.mean([of_minibatch(part) for part in parts]) / columns)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.padding", description=__doc__)
    parser.add_argument("settings", nargs="*", help="a config, and settings to change in it")
    parser.add_argument("--mean", type=int, nargs="+", default=[27, 53], help="response tokens")
    parser.add_argument("--spread", choices=["normal", "geometric"], default="normal")
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1])
    try:
        arms = measure(parser.parse_intermixed_args())
    except UserError as error:
        sys.exit(f"benchmarks.padding: error: {error}")
    first = {arm.mean: arm.seconds for arm in reversed(arms)}
    report(
        "one update",
        [arm._asdict() | {"of the first": arm.seconds / first[arm.mean]} for arm in arms],
    )


if __name__ == "__main__":
    main()
