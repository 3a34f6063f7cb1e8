"""How much memory does a step take, and is it what was planned?

    python -m benchmarks.memory [8x512] [4x256] [--algorithm grpo ppo] [--remat none full]
        [--rows 32] [--microbatches 1 4]

Each step runs in a process of its own: the most memory that the process holds while it steps,
beyond what it held before it had a state, against what ``rljax plan`` says, and against what the
compiled program says of itself. On a CPU the devices' memory is the host's.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import jax

from benchmarks.built import benched
from benchmarks.import_memory import Peak, own_bytes
from benchmarks.processes import answer
from benchmarks.report import report
from benchmarks.update import CONFIGS, SHAPES, settings
from rljax.chips import find_chip
from rljax.config import load_config
from rljax.plan import Planner

MODULE = "benchmarks.memory"
CHILD = "--one"
STEPS = 2


def measure(arguments: list[str]) -> dict[str, int]:
    """Bytes of a command line's step: measured, compiled, planned."""
    path, overrides = Path(arguments[0]), arguments[1:]
    with benched(arguments) as bench:
        program = bench.lowered().compile()
        prompts = bench.placed()
        before = own_bytes()
        state = jax.block_until_ready(bench.state())
        peak = Peak()
        peak.start()
        for _ in range(STEPS):
            state, _, _ = jax.block_until_ready(program(state, prompts))
        peak.going = False
        peak.join()
    itself = program.memory_analysis()
    config = load_config(path, ["warm_start=null", *overrides])
    planner = Planner(config, path.parent, find_chip("H200"))  # its memory alone is not asked for
    plan = planner.plan(planner.whole({"data": 1}, 1))
    return {
        "measured": peak.bytes - before,
        "compiled": itself.argument_size_in_bytes + itself.temp_size_in_bytes,
        "planned": plan.total,
    }


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(measure(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; default all")
    parser.add_argument("--algorithm", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    parser.add_argument("--remat", nargs="+", default=["none", "full"])
    parser.add_argument("--rows", type=int, default=32, help="of a step; default 32")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    rows = []
    for shape, algorithm, remat, microbatches in itertools.product(
        options.shapes or SHAPES, options.algorithm, options.remat, options.microbatches
    ):
        given = {"rows": options.rows, "microbatches": microbatches, "remat": remat}
        found = answer(MODULE, CHILD, *settings(shape, algorithm, **given))
        rows.append(
            {
                "shape": shape,
                "algorithm": algorithm,
                **given,
                **{f"{name} MB": size / 1e6 for name, size in found.items()},
                "measured / planned": found["measured"] / found["planned"],
                "compiled / planned": found["compiled"] / found["planned"],
            }
        )
    report("memory of a step", rows)


if __name__ == "__main__":
    main()
