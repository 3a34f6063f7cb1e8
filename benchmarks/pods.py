"""``python -m benchmarks.pods``: one run on several processes of this machine, in three tables.

The same run on 1 x 8, 2 x 4 and 4 x 2 processes x devices; checkpoints of 2 x 4 gone on with
elsewhere; and what becomes of a run of two processes when one is killed, at every phase of a step.
"""

import argparse
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.processes import (
    PATIENCE_SECONDS,
    count_lines,
    finish,
    head,
    log,
    records,
    row,
    running,
    until,
)
from rljax.host.samples import read_samples, sampled_steps

STEPS, HALF = 24, 12
SETTINGS = [
    "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 16, rope_base: 100}",
    "warm_start=null",
    "algorithm={fn: grpo, kl_coef: 0.1}",
    "sampling={max_tokens: 6, group_size: 2}",
    "optimizer={policy: {learning_rate: 1.0e-3}}",
    "shaping={}",
    "rewards={score: {fn: trl_reward, function: 'benchmarks.pods:score'}}",
    f"steps={STEPS}",
    "data.train.count=64",
    "data.prompts_per_step=8",
    "length={min_tokens: 2, max_tokens: 4}",
    f"evaluation={{prompts: 8, samples: 1, every_steps: {HALF}}}",
    "checkpoint={every_steps: 1, keep: 100}",
]
HOLD, SCORING, SCORED = Path("hold"), Path("scoring"), Path("scored")  # in the working directory


def score(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that says when it begins and ends, and waits as long as it is held."""
    SCORING.touch()
    while HOLD.exists():
        time.sleep(0.01)
    SCORED.touch()
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pods", description=__doc__)
    parser.add_argument(
        "tables", nargs="*", default=["meshes", "resumed", "killed"], help="by default all three"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for table in options.tables:
            {"meshes": meshes, "resumed": resumed, "killed": killed}[table]()


def meshes() -> None:
    """The same run, spread in three ways."""
    head("processes x devices", "same tokens", "losses", "parameters", "seconds")
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        began = time.monotonic()
        finish(Path(f"{processes}x{devices}"), SETTINGS, processes, devices)
        seconds = f"{time.monotonic() - began:.0f}"
        row(
            f"{processes} x {devices}",
            *_apart(Path("1x8"), Path(f"{processes}x{devices}")),
            seconds,
        )


def resumed() -> None:
    """From the middle of a run on 2 x 4, elsewhere."""
    whole = Path("2x4")
    if not whole.exists():
        finish(whole, SETTINGS, 2, 4)
    head("2 x 4, then", "same tokens", "losses", "parameters")
    for processes, devices in ((1, 1), (1, 8), (4, 2), (2, 4)):
        folder = Path(f"then-{processes}x{devices}")
        shutil.copytree(whole, folder)
        for path in folder.glob("checkpoints/[0-9]*"):
            if int(path.name) > HALF:
                shutil.rmtree(path)
        finish(folder, SETTINGS, processes, devices)
        row(f"{processes} x {devices}", *_apart(whole, folder))


def killed() -> None:
    """A run that loses a process again and again, and one that is left alone."""
    alone, folder = Path("alone"), Path("killed")
    finish(alone, SETTINGS, 2, 2)
    head("killed", "while", "ended after", "code", "said")
    for victim in (0, 1):
        for phase, reached in PHASES.items():
            with running(folder, SETTINGS, 2, 2) as processes:
                reached(folder, count_lines(folder / "metrics.jsonl"), processes)
                processes[victim].kill()
                began = time.monotonic()
                code = processes[1 - victim].wait(PATIENCE_SECONDS)
                seconds = f"{time.monotonic() - began:.1f} s"
            HOLD.unlink(missing_ok=True)
            said = [
                line.removeprefix("rljax: error: ")
                for line in log(folder, 1 - victim, "err").read_text().splitlines()
                if line.startswith("rljax: ")
            ]
            row(f"process {victim}", phase, seconds, code, " / ".join(said))
    finish(folder, SETTINGS, 2, 2)
    same, losses, params = _apart(alone, folder)
    row("", "left alone: the end of it", f"tokens {same}", f"losses {losses}", f"params {params}")


def _compiling(folder, done, processes) -> None:
    until(lambda: '"program": "train"' in log(folder, 0, "out").read_text(), processes)
    time.sleep(0.3)


def _sampling(folder, done, processes) -> None:
    until(lambda: count_lines(folder / "metrics.jsonl") > done, processes)  # the next step begins


def _scoring(folder, done, processes) -> None:
    until(lambda: count_lines(folder / "metrics.jsonl") > done, processes)
    SCORING.unlink(missing_ok=True)
    HOLD.touch()
    until(SCORING.exists, processes)


def _updating(folder, done, processes) -> None:
    _scoring(folder, done, processes)
    SCORED.unlink(missing_ok=True)
    HOLD.unlink()
    until(SCORED.exists, processes)
    time.sleep(0.01)


def _saving(folder, done, processes) -> None:
    until(
        lambda: (
            count_lines(folder / "metrics.jsonl") > done and any(folder.glob("checkpoints/*tmp*"))
        ),
        processes,
    )


# How the start of a run that had recorded some steps is followed to each phase.
PHASES: dict[str, Callable[[Path, int, list], None]] = {
    "compiles": _compiling,
    "samples": _sampling,
    "scores": _scoring,
    "updates": _updating,
    "saves": _saving,
}


def _apart(one: Path, other: Path) -> tuple[str, str, str]:
    """Whether two runs sampled the same, and how far their losses and parameters are apart."""
    losses, other_losses = (records(folder / "metrics.jsonl") for folder in (one, other))
    answers = [
        [row["response"] for step in sampled_steps(folder) for row in read_samples(folder, step)]
        for folder in (one, other)
    ]
    # Of every step's responses too: their rewards and lengths are sums over all their tokens.
    told = [[(r["reward_mean"], r["length_mean"]) for r in part] for part in (losses, other_losses)]
    same = answers[0] == answers[1] and np.allclose(*told, atol=1e-6)
    apart = max(
        abs(mine[name] - theirs[name])
        for mine, theirs in zip(losses, other_losses, strict=True)
        for name in mine
    )
    params = [load_file(folder / "policy" / "model.safetensors") for folder in (one, other)]
    distance = max(np.abs(params[0][name] - params[1][name]).max() for name in params[0])
    return "yes" if same else "NO", _size(apart), _size(distance)


def _size(distance: float) -> str:
    return "bitwise" if distance == 0 else f"{distance:.1e}"


if __name__ == "__main__":
    main()
