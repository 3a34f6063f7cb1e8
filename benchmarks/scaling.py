"""What does it cost to spread a step over several devices?

    python -m benchmarks.scaling [config.yaml] [key=value ...] [--devices 1 2 4 8] [--axis fsdp]

The same step over more and more simulated devices: how often they communicate in it, what each of
them sends, and the processor's time that it takes. All share the cores of this machine, so that the
same work takes the same time of its processor, if nothing is computed twice and communicating costs
nothing; efficiency is that of one device over that of all. It says nothing of a network's.
"""

import argparse
import collections
import json
import sys
import time

import jax

from benchmarks.built import benched
from benchmarks.processes import answer
from benchmarks.report import Row, report
from rljax.errors import UserError
from rljax.planning.collectives import collectives
from rljax.planning.programs import KINDS, Program

MODULE = "benchmarks.scaling"
CHILD = "--one"
STEPS = 5


def measure(arguments: list[str]) -> dict[str, float]:
    """Of one step on the devices that there are: the processor's seconds, and by kind, how often
    devices communicate and the bytes that each of them sends."""
    with benched(arguments) as bench:
        program = bench.lowered().compile()
        found: collections.Counter = collections.Counter()
        for one in collectives(Program(program.as_text())):
            found[one.kind] += one.times
            found[f"{one.kind} bytes"] += one.total
        state, prompts = bench.state(), bench.placed()
        state, _, _ = jax.block_until_ready(program(state, prompts))
        seconds = []
        for _ in range(STEPS):
            start = time.process_time()
            state, _, _ = jax.block_until_ready(program(state, prompts))
            seconds.append(time.process_time() - start)
    return {"cpu_seconds": sorted(seconds)[STEPS // 2], **found}


def as_rows(found: dict[int, dict[str, float]]) -> list[Row]:
    """By the number of devices, the first of which the others are compared with; of all kinds of
    communication those that there are."""
    alone = next(iter(found.values()))["cpu_seconds"]
    kinds = [kind for kind in KINDS if any(one.get(kind) for one in found.values())]
    rows = []
    for devices, one in found.items():
        sent = {}
        for kind in kinds:
            sent |= {kind: one.get(kind, 0), f"{kind}, MB": one.get(f"{kind} bytes", 0) / 1e6}
        seconds = one["cpu_seconds"]
        row = {"devices": devices, "CPU seconds a step": seconds, "efficiency": alone / seconds}
        rows.append(row | sent)
    return rows


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        try:
            print(json.dumps(measure(sys.argv[2:])))
        except UserError as error:
            sys.exit(f"error: {error}")
        return
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("settings", nargs="*", help="a YAML file, and settings to change in it")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--axis", default="fsdp", help="of the mesh; default fsdp")
    options = parser.parse_intermixed_args()
    found = {}
    for devices in options.devices:
        mesh = f"mesh={{data: 1, {options.axis}: {devices}}}"
        if options.axis == "data":
            mesh = f"mesh.data={devices}"
        found[devices] = answer(MODULE, CHILD, *options.settings, mesh, devices=devices)
    report(f"a step spread over {options.axis}", as_rows(found))


if __name__ == "__main__":
    main()
