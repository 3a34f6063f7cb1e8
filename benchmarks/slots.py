"""What does it cost that some responses are far longer than others?

    python -m benchmarks.slots [--rows 256] [--slots 32] [--mean 64] [--limit 512] [--shape 4x256]

A random Llama draws responses whose lengths are spread geometrically, since so many of its ids end
a response as make the mean. The same rows are drawn in static batches of ``--slots`` rows, each of
which decodes until its longest row ends, over a cache as wide as the limit; in as many slots, which
are refilled; and all at once. Useful tokens are those of the responses. Every row draws the same
tokens in all three, or the benchmark ends with an error.
"""

import argparse
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import Row, report
from benchmarks.roofline import median_seconds
from benchmarks.sampling import shape
from rljax.launch import use_compilation_cache
from rljax.models import decoder
from rljax.sampling import make_sampler
from rljax.types import Prompts, Rollout

REPEATS = 2
VOCAB, PROMPT_TOKENS = 1024, 32


def measure(layers: int, width: int, *, rows: int, slots: int, mean: int, limit: int) -> list[Row]:
    """The three ways, one after the other."""
    config = shape(layers, width, vocab=VOCAB, columns=PROMPT_TOKENS + limit)
    model = decoder(config)
    params = jax.jit(model.init)(jax.random.key(0))
    eos = tuple(range(max(1, VOCAB // mean)))
    sample = make_sampler(model, max_tokens=limit, eos_ids=eos, pad_id=VOCAB - 1)
    tokens = jax.random.randint(jax.random.key(1), (rows, PROMPT_TOKENS), len(eos), VOCAB - 1)
    prompts = Prompts(tokens=tokens, mask=jnp.ones(tokens.shape, bool), extras={})

    def compiled(part: Prompts, **settings) -> Callable[..., Rollout]:
        draw = jax.jit(
            lambda params, part, first: sample(
                params, part, jax.random.key(2), first_row=first, **settings
            )
        )
        return draw.lower(params, part, 0).compile()

    def part(first: int) -> Prompts:
        return jax.tree.map(lambda x: x[first : first + slots], prompts)

    with mock.patch("rljax.sampling.sampler.chunk_tokens", lambda max_tokens, **_: max_tokens):
        batch = compiled(part(0))
    refilled, at_once = compiled(prompts, slots=slots), compiled(prompts)
    ways = {
        f"static batches of {slots}": lambda: [
            batch(params, part(first), first) for first in range(0, rows, slots)
        ],
        f"{slots} slots, refilled": lambda: [refilled(params, prompts, 0)],
        f"all {rows} at once": lambda: [at_once(params, prompts, 0)],
    }
    found, static, drawn = [], 0.0, None
    for name, way in ways.items():
        rollouts = way()
        responses = np.concatenate([rollout.tokens for rollout in rollouts])
        lengths = np.concatenate([rollout.lengths for rollout in rollouts])
        if drawn is not None and not np.array_equal(drawn, responses):
            raise SystemExit(f"benchmarks.slots: error: {name}: not the tokens of static batches")
        drawn = responses
        seconds = median_seconds(way, REPEATS)
        static = static or seconds
        found.append(
            {
                "way": name,
                "mean length": float(lengths.mean()),
                "longest": int(lengths.max()),
                "seconds": seconds,
                "useful tokens/s": float(lengths.sum() / seconds),
                "against static": static / seconds,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slots", description=__doc__)
    parser.add_argument("--shape", default="4x256", help="layers x width; default 4x256")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--mean", type=int, default=64, help="of the lengths, about; in tokens")
    parser.add_argument("--limit", type=int, default=512, help="of a response, in tokens")
    options = parser.parse_args()
    use_compilation_cache()
    layers, width = map(int, options.shape.split("x"))
    sizes = {name: getattr(options, name) for name in ("rows", "slots", "mean", "limit")}
    report("rows of different lengths", measure(layers, width, **sizes))


if __name__ == "__main__":
    main()
