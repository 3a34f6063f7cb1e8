"""What do Python rewards cost a step?

    python -m benchmarks.overlap [config.yaml] [key=value ...]

By default configs/grpo.yaml, with a reward that sleeps for each response, as one does that asks a
judge over the network: for a whole rollout as long as half a sampling takes, as long, and twice as
long. The rollout is drawn whole (``halves=false``), in halves, and one step ahead
(``staleness=1``): steps of the three in turn, of which the medians are taken. What a step takes
beyond the whole one with a reward that does not sleep is the reward's price. Prints a table, and
JSON as the last line.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.step import draw
from rljax.build import Build, build
from rljax.checks import laid_out
from rljax.config import load_config
from rljax.errors import UserError
from rljax.host.compiled_step import CompiledStep
from rljax.host.loop import to_host
from rljax.launch import config_and_overrides
from rljax.train import place
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

    def __init__(self, built: Build, sleeping: Sleeping):
        self.phase, mesh = built.train, built.mesh
        roles = {"axes": self.phase.axes, "optimizers": self.phase.optimizers, "mesh": mesh}
        begin = self.phase.begin
        self.state = place(lambda key: begin(draw(built, key)), jax.random.key(0), **roles)
        self.step = CompiledStep(
            self.phase.train_step,
            laid_out(built, self.phase)[1],
            mesh,
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
        built = build(load_config(path, [*settings, *own]), path.parent)
        with jax.set_mesh(built.mesh):
            trainings[mode] = Training(built, sleeping)
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
    device = jax.devices()[0].device_kind
    sampling = found[0]["sampling_seconds"]
    free = {one["mode"]: one["step_seconds"] for one in found if not one["slept_seconds"]}
    table = Table(
        title=f"a step with a reward that sleeps, {jax.device_count()} x {device}, jax "
        f"{jax.__version__}; sampling {sampling:.3f} s"
    )
    for column in ("reward, s", "mode", "step, s", "devices waited, s", "price of the reward, s"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for one in found:
        price = one["step_seconds"] - free["whole"]
        cells = (one["slept_seconds"], one["step_seconds"], one["waited_seconds"], price)
        slept, *others = (f"{cell:.3f}" for cell in cells)
        table.add_row(slept, one["mode"], *others)
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
