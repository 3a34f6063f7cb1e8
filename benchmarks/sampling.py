"""How close does sampling come to what the machine allows?

    python -m benchmarks.sampling [8x512] [4x256] [--batch 1 8 32] [--tokens 64 256] [--group 8]

Draws responses with a random Llama of each shape (layers x width), whose EOS is never drawn, so
that every row has all its tokens. Prefill is the time to the first token; decoding is what each
token behind it takes, by the batch and by the length of the responses. A decode step has to read
every weight once and the part of the cache that is filled, and to write a column; this over the
bandwidth of a stream that is read, and its FLOPs over the peak of products with as many rows, are
its two bounds. Both are measured in the same run.

    python -m benchmarks.sampling 8x512 --batch 1 8 --tokens 256 --prompt-lookup 4

Draws the same responses with and without ``sampling.prompt_lookup``, in turns: the most probable
tokens, which soon repeat themselves with random weights, so that guesses are right; and tokens
drawn at random, of which hardly any guess is right.
"""

import argparse
import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.report import Row, report
from benchmarks.roofline import matmul_peak, median_seconds, read_bandwidth
from rljax.launch import use_compilation_cache
from rljax.models import DecoderConfig, decoder, llama
from rljax.planning.roofline import forward_flops, matrix_sizes
from rljax.sampling import make_sampler
from rljax.types import Model, Params, Prompts

REPEATS = 3
VOCAB = 4096
HEAD_DIM = 64


class Workload(NamedTuple):
    """What is sampled."""

    decoder: DecoderConfig
    prompt_tokens: int
    lengths: tuple[int, ...]  # of responses, in tokens
    group_size: int = 1  # rows of a prompt
    quantization: str | None = None  # of the weights
    kv_cache_dtype: str | None = None


def shape(
    layers: int, width: int, *, vocab: int = VOCAB, dtype: str = "float32", columns: int = 2048
) -> DecoderConfig:
    """A Llama with heads of 64, half as many for keys and values."""
    heads = max(width // HEAD_DIM, 1)
    sizes = {"layers": layers, "width": width, "heads": heads, "kv_heads": max(heads // 2, 1)}
    return llama(vocab_size=vocab, dtype=dtype, max_positions=columns, **sizes).decoder


WORKLOADS = {
    "8x512": Workload(shape(8, 512), 64, (64, 256)),
    "4x256": Workload(shape(4, 256), 32, (16, 64)),
}


def weight_bytes(model: Model, config: DecoderConfig) -> int:
    """Of all weights that a decode step reads, in the types of the arithmetic: of an embedding that
    is no output head as well, only a row for each token is read, which does not count."""
    params = jax.eval_shape(lambda key: model.cast(model.init(key)), jax.random.key(0))
    read = {name: tree for name, tree in params.items() if name != "embed" or config.tied}
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))


def column_bytes(model: Model) -> int:
    """Of a token's keys and values in all layers."""
    cache = jax.eval_shape(lambda: model.init_cache(1, 1))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def decode_bytes(model: Model, weights: int, rows: int, columns: float) -> float:
    """Bytes that a decode step has to move where ``columns`` of the cache are filled: all weights,
    these columns, and the one that is written."""
    return weights + rows * (columns + 1) * column_bytes(model)


def decode_flops(config: DecoderConfig, rows: int, columns: float) -> float:
    """FLOPs of a decode step over ``columns``: a forward pass of one token a row."""
    c = config
    layer = matrix_sizes(c) + 2 * c.heads * c.head_dim * columns
    return 2.0 * rows * (c.layers * layer + c.width * c.vocab_size)


def sample_seconds(
    model: Model, params: Params, prompts: Prompts, *, tokens: int, vocab: int, group_size: int
) -> float:
    """The time of drawing so many tokens behind each prompt."""
    never = (vocab,)  # an EOS that the vocabulary does not have
    draw = make_sampler(model, max_tokens=tokens, eos_ids=never, pad_id=0, group_size=group_size)
    compiled = jax.jit(draw).lower(params, prompts, jax.random.key(0)).compile()
    return median_seconds(lambda: compiled(params, prompts, jax.random.key(0)), REPEATS)


def measure(workload: Workload, rows: int, *, peak_size: int = 2048) -> list[Row]:
    """The figures of a workload with so many rows, one of them for each length."""
    config, group = workload.decoder, workload.group_size
    model = decoder(config).quantized(
        weights=workload.quantization, kv_cache=workload.kv_cache_dtype
    )
    params = jax.jit(model.init)(jax.random.key(0))
    size = (rows // group, workload.prompt_tokens)
    tokens = jax.random.randint(jax.random.key(1), size, 0, config.vocab_size)
    prompts = Prompts(tokens=tokens, mask=jnp.ones(size, bool), extras={})
    draw = functools.partial(
        sample_seconds, model, params, prompts, vocab=config.vocab_size, group_size=group
    )
    first, weights = draw(tokens=1), weight_bytes(model, config)
    flops = forward_flops(config, *size, head_width=0) + decode_flops(config, rows, size[1])
    prefill = {
        "prefill tokens/s": size[0] * size[1] / first,
        "of the matmul peak": flops / first / matmul_peak(config.dtype, peak_size),
    }
    found = []
    for length in workload.lengths:
        seconds = (draw(tokens=length) - first) / (length - 1)
        filled = size[1] + (length + 1) / 2  # in the mean of the steps behind the first
        moved = decode_bytes(model, weights, rows, filled)
        work = decode_flops(config, rows, filled)
        reading = moved / read_bandwidth()
        computing = work / matmul_peak(config.dtype, config.width, rows=rows)
        found.append(
            {
                "shape": f"{config.layers}x{config.width}",
                "rows": rows,
                "prompt + response": f"{size[1]} + {length}",
                **prefill,
                "decode tokens/s": rows / seconds,
                "ms a step": 1e3 * seconds,
                "MB a step": moved / 1e6,
                "GFLOP a step": work / 1e9,
                "of the bandwidth bound": reading / seconds,
                "of both bounds": max(reading, computing) / seconds,
            }
        )
    return found


def measure_lookup(workload: Workload, rows: int, guesses: int) -> list[Row]:
    """What so many guesses are worth, for each length, where they are right and where not."""
    config = workload.decoder
    model = decoder(config)
    params = jax.jit(model.init)(jax.random.key(0))
    size = (rows // workload.group_size, workload.prompt_tokens)
    asked = jax.random.randint(jax.random.key(1), size, 0, config.vocab_size)
    prompts = Prompts(tokens=asked, mask=jnp.ones(size, bool), extras={})
    key, passes = jax.random.key(0), []

    def counted(*given):
        jax.debug.callback(lambda: passes.append(None))
        return model.apply(*given)

    def compiled(model: Model, length: int, guesses: int):
        sample = make_sampler(
            model,
            max_tokens=length,
            eos_ids=(config.vocab_size,),  # which it does not have
            pad_id=0,
            group_size=workload.group_size,
            prompt_lookup=guesses,
        )
        draw = jax.jit(lambda params, key, greedy: sample(params, prompts, key, greedy=greedy))
        return draw.lower(params, key, jnp.zeros(rows, bool)).compile()

    def seconds(way, *given) -> float:
        start = time.perf_counter()
        jax.block_until_ready(way(*given))
        return time.perf_counter() - start

    found = []
    for length in workload.lengths:
        ways = compiled(model, length, 0), compiled(model, length, guesses)
        counting = compiled(model._replace(apply=counted), length, guesses)
        for tokens in ("most probable", "at random"):
            greedy = jnp.full(rows, tokens == "most probable")
            plain, guessed = (way(params, key, greedy).tokens for way in ways)
            passes.clear()
            jax.block_until_ready(counting(params, key, greedy))
            jax.effects_barrier()
            turns = [[seconds(way, params, key, greedy) for way in ways] for _ in range(REPEATS)]
            before, after = map(statistics.median, zip(*turns, strict=True))
            found.append(
                {
                    "shape": f"{config.layers}x{config.width}",
                    "rows": rows,
                    "prompt + response": f"{size[1]} + {length}",
                    "tokens": tokens,
                    "guesses": guesses,
                    "tokens a pass": length / (len(passes) - 1),  # the first is the prefill
                    "tokens/s without": rows * length / before,
                    "tokens/s with": rows * length / after,
                    "times as fast": before / after,
                    "same tokens": float((plain == guessed).mean()),
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(WORKLOADS)}; default all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="rows")
    parser.add_argument("--tokens", type=int, nargs="+", help="lengths of responses")
    parser.add_argument("--group", type=int, default=1, help="rows of a prompt; default 1")
    parser.add_argument("--prompt-lookup", type=int, help="tokens guessed, to compare with none")
    parser.add_argument("--quantization", choices=["int8"], help="of the weights")
    parser.add_argument("--kv-cache-dtype", choices=["int8"], help="of keys and values")
    options = parser.parse_args()
    use_compilation_cache()
    rows = []
    for name in options.shapes or WORKLOADS:
        workload = WORKLOADS[name]._replace(
            group_size=options.group,
            quantization=options.quantization,
            kv_cache_dtype=options.kv_cache_dtype,
        )
        if options.tokens:
            workload = workload._replace(lengths=tuple(options.tokens))
        for batch in options.batch:
            if options.prompt_lookup:
                rows += measure_lookup(workload, batch, options.prompt_lookup)
            else:
                rows += measure(workload, batch)
    report("sampling", rows)


if __name__ == "__main__":
    main()
