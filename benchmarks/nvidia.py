"""What does an NVIDIA GPU make of rljax?

    python -m benchmarks.nvidia [0.5B] [1.5B] [--trace DIR]

The shapes of Qwen2.5-0.5B and 1.5B, with random weights, in bfloat16: decoding of 1, 64 and 256
rows as a share of what the memory allows, the update's utilisation of the matrix product's peak,
and a whole step of GRPO in tokens a second, with a trace of where its time goes. Bandwidth and peak
are measured in the same run. Without an NVIDIA GPU it says so, and exits with 0.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks import sampling, update
from benchmarks.built import ROOT, benched
from benchmarks.report import Row, report
from benchmarks.roofline import matmul_peak, median_seconds
from benchmarks.step import whole_step
from benchmarks.trace import trace
from rljax.launch import use_compilation_cache
from rljax.models import families

REPEATS = 3
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "max_position_embeddings": 32_768,
}
MODELS = {  # https://huggingface.co/Qwen: config.json of each
    "0.5B": QWEN
    | {
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "num_attention_heads": 14,
        "intermediate_size": 4864,
    },
    "1.5B": QWEN
    | {
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "intermediate_size": 8960,
    },
}


class Sizes(NamedTuple):
    """Of what is measured."""

    batches: tuple[int, ...] = (1, 64, 256)  # rows that are decoded at once
    prompt: int = 128  # tokens
    response: int = 512
    rows: int = 256  # of a step, eight of each prompt
    microbatches: int = 8
    square: int = 8192  # matrices of the peak's product


class Found(NamedTuple):
    """By what it is of."""

    decode: list[Row]
    update: Row
    step: Row
    spent: list[Row]  # of the step's trace


def measure(model: Mapping[str, object], sizes: Sizes, folder: Path, dtype: str) -> Found:
    """All figures of a model; the trace is written to a folder."""
    decoder = families.fresh(**model, dtype=dtype).decoder
    workload = sampling.Workload(decoder, sizes.prompt, (sizes.response,))
    decode = [
        row
        for rows in sizes.batches
        for row in sampling.measure(workload, rows, peak_size=sizes.square)
    ]
    command = settings(model, sizes, dtype)
    learned = update.measure(command, devices=1, peak_size=sizes.square)
    with benched(command, devices=1) as bench:
        again, compile_seconds = whole_step(bench, bench.state())
        seconds = median_seconds(again, REPEATS)
        tokens = bench.load.rows * bench.load.max_tokens  # as good as never is an EOS drawn
        spent = trace(folder, again)
    step = {
        "compile seconds": compile_seconds,
        "seconds": seconds,
        "tokens/s": tokens / seconds,
        "peak TFLOP/s": matmul_peak(dtype, sizes.square) / 1e12,
    }
    return Found(decode, learned, step, spent)


def settings(model: Mapping[str, object], sizes: Sizes, dtype: str) -> list[str]:
    """The command line of a step of GRPO with a model."""
    node = {"fn": "fresh", **model, "dtype": dtype, "remat": "full"}
    return [
        str(ROOT / "configs/grpo.yaml"),
        "models.policy=" + _yaml(node),
        "models.reference={fn: policy, param_dtype: bfloat16}",
        "data.train.count=10000",
        f"data.prompts_per_step={sizes.rows // update.GROUP}",
        f"data.max_prompt_tokens={sizes.prompt}",
        f"sampling={{max_tokens: {sizes.response}, group_size: {update.GROUP}}}",
        f"update={{epochs: 1, minibatches: 1, microbatches: {sizes.microbatches}}}",
    ]


def _yaml(node: object) -> str:
    """A node as it stands on a command line."""
    if isinstance(node, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in node.items()) + "}"
    return str(node).lower() if isinstance(node, bool) else str(node)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nvidia", description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; default all")
    parser.add_argument("--trace", type=Path, help="a folder for the traces; default a new one")
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "gpu" or "nvidia" not in kind.lower():
        print(f"no NVIDIA GPU here, but {kind}: nothing is measured")
        return
    use_compilation_cache()
    folder = options.trace or Path(tempfile.mkdtemp())
    for name in options.models or MODELS:
        found = measure(MODELS[name], Sizes(), folder / name, "bfloat16")
        report(f"Qwen2.5-{name}: decoding", found.decode)
        report(f"Qwen2.5-{name}: the update", [found.update])
        report(f"Qwen2.5-{name}: a step of GRPO", [found.step])
        report(f"Qwen2.5-{name}: where its time goes, {folder / name}", found.spent)


if __name__ == "__main__":
    main()
