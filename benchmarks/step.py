"""Where does the time of a step go?

    python -m benchmarks.step [config.yaml] [key=value ...]

Measures the whole compiled step, its two halves compiled apart (collecting experience, updating on
it), and sampling alone, all in one run; then the update's model FLOPs utilisation against the
matrix-product peak of the same run. Prints a table, and JSON as the last line.

FLOPs are the model's own: forward 1, backward 2; what remat computes again does not count.
"""

import contextlib
import json
import sys
import time

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.roofline import forward_flops, matmul_peak, median_seconds
from rljax import resolve
from rljax.build import Build, build
from rljax.config import load_config
from rljax.errors import UserError
from rljax.host.compiled_step import CompiledStep
from rljax.launch import config_and_overrides
from rljax.train import make_update, place, state_shardings
from rljax.types import Params

REPEATS = 5


def measure(arguments: list[str]) -> dict[str, float]:
    """The figures of a config, by name."""
    path, overrides = config_and_overrides(arguments)
    config = load_config(path, ["warm_start=null", *overrides])
    built = build(config, path.parent)
    phase = built.train
    if phase.between is not None:
        raise UserError("a step with work for the host between its halves is not measured")
    key, prompts = jax.random.key(0), phase.batches[0]
    roles = {"axes": phase.axes, "optimizers": phase.optimizers, "mesh": built.mesh}
    with jax.set_mesh(built.mesh):
        state = place(lambda key: phase.begin(draw(built, key)), jax.random.key(0), **roles)
        step = phase.train_step
        sample = jax.jit(step.draw).lower(state, prompts, key).compile()

        def drawn_and_appraised(state, prompts, key):
            return step.appraise(state, step.draw(state, prompts, key))

        collect = jax.jit(drawn_and_appraised).lower(state, prompts, key).compile()
        experience, _, collected, _ = collect(state, prompts, key)
        update = jax.jit(step.update).lower(state, experience, key).compile()
        seconds = {
            "sampling": median_seconds(lambda: sample(state, prompts, key), REPEATS),
            "collect": median_seconds(lambda: collect(state, prompts, key), REPEATS),
            "update": median_seconds(lambda: update(state, experience, key), REPEATS),
        }
        step = CompiledStep(
            step,
            state_shardings(state, **roles),
            built.mesh,
            contextlib.nullcontext,
        )
        start = time.perf_counter()
        batch = step.prepare(state, prompts)
        compile_seconds = time.perf_counter() - start

        def whole_step():
            nonlocal state
            state, metrics, _ = step(state, batch)
            return state.params, metrics

        seconds["step"] = median_seconds(whole_step, REPEATS)
    peak = matmul_peak(built.decoder.dtype) * built.mesh.size
    rows, columns = experience.tokens.shape
    epochs = (resolve.defaults(make_update) | config.update)["epochs"]
    heads = {"policy": built.decoder.vocab_size, "value": 1}
    flops = (
        3
        * epochs
        * sum(
            forward_flops(built.decoder, rows, columns, head_width=heads[role])
            for role in state.params
        )
    )
    tokens = int(collected["response_tokens"])
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "compile_seconds": compile_seconds,
        "response_tokens": tokens,
        "sampled_tokens_per_second": tokens / seconds["sampling"],
        "step_tokens_per_second": tokens / seconds["step"],
        "update_gflops": flops / 1e9,
        "matmul_peak_gflops_per_second": peak / 1e9,
        "update_mfu": flops / seconds["update"] / peak,
    }


def draw(built: Build, key) -> dict[str, Params]:
    """What the run begins with, all drawn at random."""
    return {name: start.model.init(key) for name, start in built.networks.starts.items()}


def main() -> None:
    try:
        figures = measure(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks.step: error: {error}")
    device = jax.devices()[0].device_kind
    table = Table(title=f"one step, {jax.device_count()} x {device}, jax {jax.__version__}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
