"""How close does the update come to the matrix product's peak?

    python -m benchmarks.update [8x512] [4x256] [--algorithm grpo ppo] [--remat none dots full]
        [--rows 32] [--microbatches 1 8]

Model FLOPs utilisation: the model's own FLOPs (forward 1, backward 2; what remat computes again
does not count) over the time of the compiled update, as a share of the peak of a square matrix
product in the same run. The rows are full of tokens, so that nothing of it is padding. PPO trains a
critic of the policy's size beside it.
"""

import argparse
import itertools

import jax

from benchmarks.built import ROOT, benched
from benchmarks.report import Row, report
from benchmarks.roofline import matmul_peak, median_seconds
from benchmarks.sampling import HEAD_DIM, VOCAB
from rljax.launch import use_compilation_cache

REPEATS = 3
GROUP = 8  # rows of a prompt, with GRPO
SHAPES = {"8x512": (8, 512, 64, 256), "4x256": (4, 256, 32, 64)}  # layers, width, prompt, response
CONFIGS = {"grpo": "configs/grpo.yaml", "ppo": "configs/addition.yaml"}


def settings(
    shape: str, algorithm: str, *, rows: int, microbatches: int = 1, remat: str = "none"
) -> list[str]:
    """The command line of a step of that shape: one update over all rows."""
    layers, width, prompt, response = SHAPES[shape]
    heads = width // HEAD_DIM
    group = GROUP if algorithm == "grpo" else 1
    return [
        str(ROOT / CONFIGS[algorithm]),
        f"models.policy={{fn: llama, layers: {layers}, width: {width}, heads: {heads}, "
        f"kv_heads: {heads // 2}, vocab_size: {VOCAB}, remat: {remat}}}",
        "data.train.count=1000",
        f"data.prompts_per_step={rows // group}",
        f"data.max_prompt_tokens={prompt}",
        f"sampling={{max_tokens: {response}, group_size: {group}}}",
        f"update={{epochs: 1, minibatches: 1, microbatches: {microbatches}}}",
    ]


def measure(arguments: list[str], *, devices: int | None = None, peak_size: int = 2048) -> Row:
    """Seconds and utilisation of the update of a command line."""
    with benched(arguments, devices) as bench:
        state = bench.state()
        experience = bench.experience(state)
        key = jax.random.key(0)
        update = jax.jit(bench.step.update).lower(state, experience, key).compile()
        seconds = median_seconds(lambda: update(state, experience, key), REPEATS)
        flops, load = bench.update_flops, bench.load
        peak = matmul_peak(bench.built.decoder.dtype, peak_size) * bench.built.mesh.size
    return {
        "seconds": seconds,
        "tokens/s": load.rows * load.columns * load.passes / seconds,
        "GFLOP": flops / 1e9,
        "peak GFLOP/s": peak / 1e9,
        "MFU": flops / seconds / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; default all")
    parser.add_argument("--algorithm", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--remat", nargs="+", default=["none", "dots", "full"])
    parser.add_argument("--rows", type=int, default=32, help="of an update; default 32")
    parser.add_argument(
        "--microbatches", nargs="+", type=int, default=[1], help="that they are split into"
    )
    options = parser.parse_args()
    use_compilation_cache()
    rows = []
    for shape, algorithm, remat, microbatches in itertools.product(
        options.shapes or SHAPES, options.algorithm, options.remat, options.microbatches
    ):
        given = {"rows": options.rows, "microbatches": microbatches, "remat": remat}
        figures = measure(settings(shape, algorithm, **given))
        rows.append({"shape": shape, "algorithm": algorithm, **given, **figures})
    report("the update", rows)


if __name__ == "__main__":
    main()
