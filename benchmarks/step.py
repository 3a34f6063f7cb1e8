"""Where does the time of a step go?

    python -m benchmarks.step [config.yaml] [key=value ...]

Measures the whole compiled step, its two halves compiled apart (collecting experience, updating on
it), and sampling alone, all in one run; then the update's model FLOPs utilisation against the
matrix-product peak of the same run, over all columns, and over those alone that hold a token.
"""

import sys
import time
from collections.abc import Callable

import jax

from benchmarks.built import Bench, benched
from benchmarks.report import Row, report
from benchmarks.roofline import matmul_peak, median_seconds
from rljax.errors import UserError
from rljax.types import TrainState

REPEATS = 5


def measure(arguments: list[str]) -> Row:
    """The figures of a config, by name."""
    with benched(arguments) as bench:
        key, prompts, step = jax.random.key(0), bench.prompts, bench.step
        state = bench.state()
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
        step_again, compile_seconds = whole_step(bench, state)
        seconds["step"] = median_seconds(step_again, REPEATS)
        decoder, devices = bench.built.decoder, bench.built.mesh.size
        flops = bench.update_flops
    peak = matmul_peak(decoder.dtype) * devices
    tokens = int(collected["response_tokens"])
    update_mfu = flops / seconds["update"] / peak
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "compile_seconds": compile_seconds,
        "response_tokens": tokens,
        "sampled_tokens_per_second": tokens / seconds["sampling"],
        "step_tokens_per_second": tokens / seconds["step"],
        "update_gflops": flops / 1e9,
        "matmul_peak_gflops_per_second": peak / 1e9,
        "update_mfu": update_mfu,
        "update_mfu_of_tokens": update_mfu * float(experience.mask.mean()),
    }


def whole_step(bench: Bench, state: TrainState) -> tuple[Callable[[], object], float]:
    """Something that does the next step whenever it is called, and the seconds that its compilation
    took. The state is donated to the first."""
    step = bench.compiled_step(state)
    start = time.perf_counter()
    batch = step.prepare(state, bench.prompts)
    seconds = time.perf_counter() - start

    def again():
        nonlocal state
        state, metrics, _ = step(state, batch)
        return state.params, metrics

    return again, seconds


def main() -> None:
    try:
        figures = measure(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks.step: error: {error}")
    report("one step", [figures])


if __name__ == "__main__":
    main()
