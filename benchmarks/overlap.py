"""What do Python rewards cost a step?

    python -m benchmarks.overlap [config.yaml] [key=value ...]

By default configs/grpo.yaml, with a reward that sleeps for each response, as one does that asks a
judge over the network: for a whole rollout as long as half a sampling takes, as long, and twice as
long. The rollout is drawn whole (``halves=false``), in halves, and one step ahead
(``staleness=1``): steps of the three in turn, of which the medians are taken. What a step takes
beyond the whole one with a reward that does not sleep is the reward's price.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.built import Bench
from benchmarks.report import report
from rljax.build import build
from rljax.checks import laid_out
from rljax.config import load_config
from rljax.errors import UserError
from rljax.host.compiled_step import CompiledStep
from rljax.host.loop import to_host
from rljax.launch import config_and_overrides
from rljax.types import PYTHON_REWARD, Rollout

REPEATS = 5
SHARES = (0.0, 0.5, 1.0, 2.0)  # of the seconds of a sampling
MODES = {"whole": ["halves=false"], "halves": ["halves=true"], "stale": ["staleness=1"]}
REWARD = "rewards={judge: {fn: trl_reward, function: 'benchmarks.overlap:judge'}}"


def judge(completions: list[str], **columns: Any) -> list[float]:
    """Names the signature; ``Sleeping`` stands in for the processes that would call it."""
    return [0.0] * len(completions)


class Sleeping:
    """What the host adds: a reward that takes so many seconds for each response."""

    seconds = 0.0

    def __call__(self, rollouts: Iterable[Rollout]) -> Iterator[Rollout]:
        for rollout in rollouts:
            time.sleep(self.seconds * len(rollout.tokens))
            column = (rollout.lengths % 2).astype(jnp.float32)
            yield rollout.replace(extras=rollout.extras | {f"{PYTHON_REWARD}judge": column})


class Training:
    """Steps of a config, one after the other."""

    def __init__(self, bench: Bench, sleeping: Sleeping):
        self.phase, self.state = bench.built.train, bench.state()
        self.step = CompiledStep(
            self.phase.train_step,
            laid_out(bench.built, self.phase)[1],
            bench.built.mesh,
            contextlib.nullcontext,
            self.phase.between._replace(add=sleeping),
            self.phase.parts,
        )
        self.done = 0
        if self.step.ahead:
            self.state = self.step.prime(self.state, self.phase.batches[0])

    def run(self) -> dict[str, float]:
        """A step's metrics, its seconds among them."""
        batch = self.phase.batches[self.done + self.step.ahead]
        batch = self.step.prepare(self.state, batch)
        start = time.perf_counter()
        self.state, metrics, _ = self.step(self.state, batch)
        metrics = to_host(metrics)
        self.done += 1
        return metrics | {"perf/step_seconds": time.perf_counter() - start}


def measure(arguments: list[str]) -> list[dict[str, Any]]:
    """The figures of each mode and each reward."""
    if not any(one.endswith((".yaml", ".yml")) for one in arguments):
        arguments = ["configs/grpo.yaml", *arguments]
    path, overrides = config_and_overrides(arguments)
    settings = ["warm_start=null", "optimizer.policy.learning_rate=1e-12", REWARD, *overrides]
    sleeping, trainings = Sleeping(), {}
    for mode, own in MODES.items():
        config = load_config(path, [*settings, *own])
        built = build(config, path.parent)
        with jax.set_mesh(built.mesh):
            trainings[mode] = Training(Bench(config, built), sleeping)
            trainings[mode].run()  # compiles
    if trainings["halves"].phase.parts == 1:
        raise UserError("the prompts of this config do not divide into halves")
    with jax.set_mesh(built.mesh):
        sampling = sampling_seconds(trainings["whole"])
        rows = built.group_rows * built.train.batches[0].tokens.shape[0]
        found = []
        for share in SHARES:
            sleeping.seconds = share * sampling / rows
            steps: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
            for _ in range(REPEATS):
                for mode, training in trainings.items():
                    steps[mode].append(training.run())
            found += [
                {
                    "mode": mode,
                    "sampling_seconds": sampling,
                    "slept_seconds": share * sampling,
                    "step_seconds": median(steps[mode], "perf/step_seconds"),
                    "waited_seconds": median(steps[mode], "perf/reward_wait_seconds"),
                }
                for mode in MODES
            ]
    return found


def sampling_seconds(training: Training) -> float:
    """Of the whole rollout, drawn at once."""
    step, batch = training.phase.train_step, training.phase.batches[0]
    program = jax.jit(step.draw_step).lower(training.state, batch).compile()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(training.state, batch))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def median(steps: list[dict[str, float]], name: str) -> float:
    return statistics.median(step[name] for step in steps)


def main() -> None:
    try:
        found = measure(sys.argv[1:])
    except UserError as error:
        sys.exit(f"benchmarks.overlap: error: {error}")
    free = next(
        one["step_seconds"] for one in found if one["mode"] == "whole" and not one["slept_seconds"]
    )
    rows = [
        {
            "mode": one["mode"],
            "the reward sleeps, s": one["slept_seconds"],
            "a step, s": one["step_seconds"],
            "devices waited, s": one["waited_seconds"],
            "price of the reward, s": one["step_seconds"] - free,
            "sampling alone, s": one["sampling_seconds"],
        }
        for one in found
    ]
    report("a step with a reward that sleeps", rows)


if __name__ == "__main__":
    main()
