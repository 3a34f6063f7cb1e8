"""What do the sinks cost a step?

    python -m benchmarks.logging [key=value ...]

One run of the embedded task's training step, which moves the policy by next to nothing, so that all
steps have the same work: pairs of blocks of steps, one block with every sink and one with none, in
random order. The sinks are terminal, JSONL, TensorBoard, Prometheus scraped once a second, and, if
they are installed, Weights & Biases offline and MLflow over files. A step is timed from the end of
the one before, with all that was told of that one, so that what sinks do meanwhile counts; the
first of each block, beside which there may be work of the block before, does not.

Prints the medians; their ratio in a pair, as the median over the pairs with the interval that holds
nine in ten of those of pairs that are drawn anew; the same of the processor's time, all threads
together, which a busy machine disturbs less; and what the loop itself spends on a step's metrics.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from rljax.build import build
from rljax.checks import laid_out
from rljax.config import load_config
from rljax.host.checkpoint import Checkpoints
from rljax.host.compiled_step import CompiledStep
from rljax.host.listeners import Listeners
from rljax.host.loop import run_steps
from rljax.host.metrics import Records
from rljax.host.terminal import Terminal
from rljax.launch import config_and_overrides
from rljax.listening import open_listeners
from rljax.train import place

PAIRS, STEPS = 25, 3  # of blocks, one of them with sinks; steps of each, the first not counted
STILL = ["optimizer.policy.learning_rate=1e-12", "optimizer.value.learning_rate=1e-12"]
SCRAPER = """
import time, urllib.request
while True:
    urllib.request.urlopen({address!r}).read()
    time.sleep(1)
"""


class Switched:
    """Records that are written while the sinks are on."""

    def __init__(self, records: Records):
        self._records, self.on, self.seconds = records, False, 0.0

    def write(self, record: dict) -> None:
        if self.on:
            began = time.perf_counter()
            self._records.write(record)
            self.seconds = time.perf_counter() - began


def every_sink(folder: Path) -> dict:
    """The config of all sinks whose packages are there."""
    sinks: dict = {"tensorboard": True, "prometheus": {"port": 0}}
    if importlib.util.find_spec("wandb"):
        sinks["wandb"] = {"project": "benchmark", "mode": "offline"}
    if importlib.util.find_spec("mlflow"):
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
        sinks["mlflow"] = {"tracking_uri": (folder / "mlruns").as_uri()}
    return sinks


def measure(settings: list[str], folder: Path) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Of the steps with sinks, and of those without, seconds and processor seconds [2, blocks,
    steps]; and the seconds that the loop itself spent on each step with sinks."""
    sinks = every_sink(folder)
    path, overrides = config_and_overrides(settings)
    count = 2 * PAIRS * STEPS + 1
    fixed = [f"steps={count}", "warm_start=null", f"metrics={json.dumps(sinks)}"]
    config = load_config(path, [*fixed, *STILL, *overrides])
    built, terminal = build(config, path.parent), Terminal()
    phase, addresses = built.train, []
    first = np.random.default_rng(0).random(PAIRS) < 0.5  # the one with sinks, of a pair
    order = np.stack([first, ~first], axis=1).reshape(-1)
    times, telling = [], []

    def say(event: str, text: str, /, **fields) -> None:
        addresses.append(fields["address"])

    with (
        jax.set_mesh(built.mesh),
        open_listeners(config, folder, say, lambda failure: print(failure.text)) as listeners,
        scraped(addresses[0]),
        terminal.phase("train", count, 0) as bar,
        Checkpoints(folder / "checkpoints", every_steps=count + 1, keep=1) as checkpoints,
        contextlib.closing(Records(folder / "metrics.jsonl")) as written,
    ):
        records = Switched(written)
        listeners.begin(0, {}, {})
        key = jax.random.key(0)
        roles = {"axes": phase.axes, "optimizers": phase.optimizers, "mesh": built.mesh}
        state = place(lambda key: phase.begin(starts(built, key)), key, **roles)
        _, shardings = laid_out(built, phase)

        def on_step(step: int, metrics: dict[str, float]) -> None:
            if records.on:
                began = time.perf_counter()
                tell(listeners, bar, step, metrics)
                telling.append(records.seconds + time.perf_counter() - began)
            times.append((time.perf_counter(), time.process_time()))
            block = (step - 1) // STEPS  # of the next step
            records.on = block < 2 * PAIRS and bool(order[block])

        step = CompiledStep(
            phase.train_step, shardings, built.mesh, contextlib.nullcontext, phase.between
        )
        run_steps(
            step,
            state,
            lambda number: phase.batches[number],
            steps=count,
            checkpoints=checkpoints,
            records=records,
            on_step=on_step,
            on_state=lambda step, state: None,
            progress=dict,
        )
    seconds = np.diff(times, axis=0).T.reshape(2, 2 * PAIRS, STEPS)[..., 1:]
    return seconds[:, order], seconds[:, ~order], telling


def starts(built, key) -> dict:
    """What a run begins with, all drawn at random."""
    return {name: start.model.init(key) for name, start in built.networks.starts.items()}


def tell(listeners: Listeners, bar, step: int, metrics: dict[str, float]) -> None:
    """What a run does with the metrics of a step, beside writing them."""
    bar.step(step, {"reward": metrics["reward_mean"], "length": metrics["length_mean"]})
    listeners.on_step(step, metrics)


@contextlib.contextmanager
def scraped(address: str):
    """Scraped by another process."""
    scraper = subprocess.Popen([sys.executable, "-c", SCRAPER.format(address=address)])
    try:
        yield
    finally:
        scraper.kill()
        scraper.wait()


def ratio_of(on: np.ndarray, off: np.ndarray) -> tuple[float, float, float]:
    """The median over the pairs of the ratio of their blocks' medians, and its interval."""
    ratios = np.median(on, axis=1) / np.median(off, axis=1)
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, (0.05, 0.95))
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        on, off, telling = measure(sys.argv[1:], Path(folder))
    figures: dict[str, float] = {"steps": on[0].size + off[0].size}
    for name, with_sinks, without in zip(("seconds", "cpu_seconds"), on, off, strict=True):
        ratio, low, high = ratio_of(with_sinks, without)
        figures |= {
            f"{name}_with_sinks": float(np.median(with_sinks)),
            f"{name}_without": float(np.median(without)),
            f"{name}_ratio": ratio,
            f"{name}_ratio_low": low,
            f"{name}_ratio_high": high,
        }
    figures["seconds_of_the_loop"] = float(np.median(telling))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
