"""``python -m benchmarks.torture``: runs are killed at random, and are to end as if they were not.

A small run with all that a state can hold (a warm start, a critic, controllers that adapt, sources
that are mixed, a reward in Python, the best checkpoint kept), on one process and on two. SIGKILL,
again and again, wherever it happens to be; the same command goes on. In the end every leaf of the
state, every record and every sample must be those of the run that nobody disturbed; no start may
go on from less than the newest save; and ``rljax verify`` must find all sound.
"""

import argparse
import collections
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import (
    PATIENCE_SECONDS,
    count_lines,
    finish,
    head,
    log,
    records,
    row,
    running,
)
from rljax.host.samples import SAMPLES
from rljax.host.steps import read_meta, steps_in

STEPS, WARM_STEPS = 30, 40
NOTICE_SECONDS = 40  # that the other processes have after one was killed
SETTINGS = [
    "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 16, rope_base: 100}",
    f"steps={STEPS}",
    f"warm_start.steps={WARM_STEPS}",
    "warm_start.data.count=64",
    "warm_start.buckets=2",
    "warm_start.optimizer.warmup_steps=0",
    "data.train=[{source: {fn: addition_problems, count: 64}, weight: 2}, "
    "{source: addition_heldout.jsonl, weight: 1}]",
    "data.prompts_per_step=8",
    "sampling.max_tokens=6",
    "length={min_tokens: 2, max_tokens: 4}",
    "rewards.style={fn: trl_reward, function: 'benchmarks.torture:style'}",
    "shaping.kl.coef={fn: adaptive_kl, start: 0.05, target: 0.1, horizon: 50}",
    "shaping.length.relative_to_reward=0.1",
    "shaping.length.max_tokens={fn: drift, start: 4, limit: 3, factor: 0.9}",
    "evaluation={prompts: 8, samples: 2, every_steps: 5, best: reward_mean, patience: 99}",
    "checkpoint={every_steps: 2, keep: 3}",
]
RECORDS = ("warm_start/metrics.jsonl", "metrics.jsonl", "evaluations.jsonl")


def style(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """A reward in Python, of text."""
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="over all runs; by default 100")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="of the runs")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for processes in options.processes:
            kills = options.kills // len(options.processes)
            torture(processes, kills, chance)


def torture(processes: int, kills: int, chance: random.Random) -> None:
    """Kills runs of so many processes, so often, and compares each with the undisturbed one."""
    devices = 1 if processes == 1 else 2
    alone = Path(f"alone-{processes}")
    finish(alone, SETTINGS, processes, devices)
    moments: collections.Counter[str] = collections.Counter()
    runs, left = 0, kills
    while left:
        folder = Path(f"killed-{processes}-{runs}")
        runs += 1
        ended = False
        while not ended:
            saved = newest(folder)
            with running(folder, SETTINGS, processes, devices) as started:
                if left:
                    name = chance.choice(list(MOMENTS))
                    wait_for(MOMENTS[name](folder, chance), started)
                    chance.choice(started).send_signal(signal.SIGKILL)
                    end_together(started)
                codes = [process.wait(PATIENCE_SECONDS) for process in started]
            check_resumed(folder, saved)
            ended = not any(codes)
            if not ended and not left:
                sys.exit(f"{folder}: codes {codes}; {log(folder, 0, 'err').read_text()}")
            if not ended:
                left -= 1
                moments[name] += 1
                print(f"killed {kills - left} of {kills}: {name}", file=sys.stderr)
        compare(alone, folder)
    head("processes", "kills", "runs", "while", "state, records, samples", "verify")
    where = ", ".join(f"{name} {count}" for name, count in sorted(moments.items()))
    row(processes, kills, runs, where, "bitwise", "sound")


def end_together(started: list[subprocess.Popen]) -> None:
    """Where one has ended, the others have a while to notice; a scheduler would end them, too."""
    until = time.monotonic() + NOTICE_SECONDS
    while any(process.poll() is None for process in started):
        if time.monotonic() > until and any(process.poll() for process in started):
            for process in started:
                process.kill()
        time.sleep(0.05)


def newest(folder: Path) -> tuple[str, int] | None:
    """The phase and step of the newest save."""
    for phase, part in (("train", folder), ("warm_start", folder / "warm_start")):
        if steps := steps_in(part / "checkpoints"):
            return phase, steps[-1]
    return None


def check_resumed(folder: Path, saved: tuple[str, int] | None) -> None:
    """If it came so far, the start went on from the newest save."""
    events = []
    for line in log(folder, 0, "out").read_text().splitlines():
        with contextlib.suppress(ValueError):  # it was killed while it wrote
            events.append(json.loads(line))
    if any(event["event"] == "damaged" for event in events):
        sys.exit(f"{folder}: a save was damaged: {events}")
    resumed = [(e["phase"], e["step"]) for e in events if e["event"] == "resume"]
    if resumed and resumed[0] != saved:
        sys.exit(f"{folder}: went on from {resumed[0]}, not from {saved}")


def compare(alone: Path, folder: Path) -> None:
    """Exits if the run in a folder is not that which was left alone."""
    for part in ("checkpoints", "best", "warm_start/checkpoints"):
        if steps_in(folder / part)[-1:] != steps_in(alone / part)[-1:]:
            sys.exit(f"{folder}/{part}: {steps_in(folder / part)}, not {steps_in(alone / part)}")
        step = steps_in(alone / part)[-1]
        metas = [read_meta(run / part, step) for run in (alone, folder)]
        for name, leaf in metas[0]["leaves"].items():
            if metas[1]["leaves"][name] != leaf:
                sys.exit(f"{folder}/{part}/{step}: {name} is another")
    for name in RECORDS:
        if records(folder / name) != records(alone / name):
            sys.exit(f"{folder}/{name} is another")
    tables = [
        {path.name: path.read_bytes() for path in (run / SAMPLES).iterdir()}
        for run in (alone, folder)
    ]
    if tables[0] != tables[1]:
        sys.exit(f"{folder}/{SAMPLES} are others")
    weights = [(run / "policy/model.safetensors").read_bytes() for run in (alone, folder)]
    if weights[0] != weights[1]:
        sys.exit(f"{folder}: the exported policy is another")
    verify = [sys.executable, "-c", "import rljax.cli; exit(rljax.cli.main())", "verify", folder]
    checked = subprocess.run(verify, capture_output=True, text=True)
    if checked.returncode:
        sys.exit(f"{folder}: {checked.stdout}{checked.stderr}")
    if (folder / "set_aside").exists():
        sys.exit(f"{folder}: something was set aside")


def wait_for(reached: Callable[[], bool], started: list) -> None:
    """Waits until a moment has come, or the run is over."""
    while not reached() and all(process.poll() is None for process in started):
        time.sleep(0.001)


def after(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def then(reached: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Some time after a moment."""
    waiting = None

    def come() -> bool:
        nonlocal waiting
        if waiting is None and reached():
            waiting = after(seconds)
        return waiting is not None and waiting()

    return come


def more_records(path: Path, count: int) -> Callable[[], bool]:
    there = count_lines(path)
    return lambda: count_lines(path) >= there + count


def said(folder: Path, text: str) -> Callable[[], bool]:
    return lambda: text in log(folder, 0, "out").read_text()


# When a start of a run is killed: (its folder, chance) -> whether the moment has come.
MOMENTS: dict[str, Callable[[Path, random.Random], Callable[[], bool]]] = {
    "starting": lambda folder, chance: after(chance.uniform(0.2, 6.0)),
    "compiling": lambda folder, chance: then(
        said(folder, '"event": "compiling"'), chance.uniform(0, 2.0)
    ),
    "in the warm start": lambda folder, chance: then(
        more_records(folder / "warm_start/metrics.jsonl", chance.randint(1, 15)),
        chance.uniform(0, 0.02),
    ),
    "in a step": lambda folder, chance: then(
        more_records(folder / "metrics.jsonl", chance.randint(1, 8)), chance.uniform(0, 0.1)
    ),
    "evaluating": lambda folder, chance: then(
        more_records(folder / "evaluations.jsonl", 1), chance.uniform(0, 0.1)
    ),
    "saving": lambda folder, chance: then(
        lambda: any(folder.glob("**/checkpoints/*tmp*")) or any(folder.glob("best/*tmp*")),
        chance.uniform(0, 0.05),
    ),
    "ending": lambda folder, chance: then(
        lambda: (folder / "policy").exists(), chance.uniform(0, 0.3)
    ),
}


if __name__ == "__main__":
    main()
