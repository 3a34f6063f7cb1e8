"""The loop around a compiled step: batches in, metrics out, checkpoints on the way."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from rljax.data import Batches
from rljax.host.checkpoint import Checkpoints
from rljax.host.compiled_step import CompiledStep
from rljax.host.guard import NO_GUARD, ROLLED_BACK, SKIPPED, Guard, respond
from rljax.host.metrics import Records
from rljax.host.stopping import Stopped, Stopping
from rljax.sharding import row_sharding
from rljax.types import Metrics, TrainState

Speed = Callable[[dict[str, float], float], dict[str, float]]  # (metrics, seconds) -> more metrics


def unmeasured(metrics: dict[str, float], seconds: float) -> dict[str, float]:
    """A ``Speed`` that says nothing."""
    return {}


def host_batch(batches: Batches, step: int, mesh: Mesh) -> PyTree:
    """The rows of a batch whose devices are this host's."""
    if jax.process_count() == 1:
        return batches[step]
    items = len(batches.items(step))
    held = np.zeros(items, bool)  # not always one stretch: a host of a pod is a block of its torus
    for (part,) in row_sharding(mesh).addressable_devices_indices_map((items,)).values():
        held[part] = True
    return batches.part(step, np.flatnonzero(held))


def run_steps(
    step: CompiledStep,
    state: TrainState,
    batches: Callable[[int], PyTree],
    *,
    steps: int,
    checkpoints: Checkpoints,
    records: Records,
    on_step: Callable[[int, dict[str, float]], None],
    on_state: Callable[[int, TrainState], None],
    progress: Callable[[], dict[str, Any]],
    enough: Callable[[], bool] = lambda: False,
    speed: Speed = unmeasured,
    stopping: Stopping | None = None,
    guard: Guard = NO_GUARD,
) -> TrainState:
    """Runs from the state's own step up to ``steps``, or until it is ``enough``, and saves the
    last.

    While the devices work on a step, the host makes the next batch and sends it to them. After each
    step ``on_step`` gets its number, from 1, and its metrics, to which ``speed`` adds what follows
    from them and the step's seconds; ``on_state`` gets the new state, which it must not keep: the
    next step takes its buffers. Before each step ``stopping`` is asked, and told how long a step
    and saving may take. What is done about a step of which an update was left out is the
    ``guard``'s to say.

    A step that learns from what was drawn one step ahead is given the batch of the step after it;
    the first one, and one whose state went back to an earlier one, learns from a rollout of its own
    batch.

    Raises, when the state is saved, ``UserError`` if the guard stops the run, and ``Stopped`` if
    ``stopping`` or ``on_state`` does.
    """
    stopping = stopping or Stopping()
    longest = 0.0  # of the steps, in seconds
    ended: float | None = None  # when the step before was over
    done = int(state.step)
    last = steps if done < steps and not enough() else done
    batch = batches(done + step.ahead) if done < last else None
    if step.ahead and done == 0 < last:
        state = step.prime(state, batches(done))
    try:
        while done < last:
            batch = step.prepare(state, batch)
            stopping.check(2 * (longest + checkpoints.save_seconds))
            stopping.unsaved = True
            start = time.perf_counter()
            state, metrics, evidence = step(state, batch)
            jax.copy_to_host_async(metrics)
            done += 1
            batch = step.place(batches(done + step.ahead)) if done < last else None
            metrics = to_host(metrics)
            seconds = time.perf_counter() - start
            longest = max(longest, seconds)
            metrics["perf/step_seconds"] = seconds
            if ended is not None:
                metrics["perf/between_seconds"] = start - ended
            ended = start + seconds
            if "response_tokens" in metrics:
                metrics["perf/tokens_per_second"] = metrics["response_tokens"] / seconds
            metrics |= speed(metrics, seconds)
            rolled_back, error = False, None
            if metrics.get(SKIPPED):
                state, rolled_back, error = respond(guard, done, state, metrics, evidence)
                metrics[ROLLED_BACK] = float(rolled_back)
            if rolled_back and step.ahead:
                state = step.prime(state, batches(done))
            records.write({"step": done, **metrics})
            on_step(done, metrics)
            if rolled_back or error is not None:
                checkpoints.save_and_wait(done, state, progress())
            if error is not None:
                raise error
            on_state(done, state)
            last = done if enough() else last
            if done < last:
                checkpoints.save(done, state, progress())
    except Stopped:
        checkpoints.save_and_wait(done, state, progress())
        raise
    checkpoints.save_and_wait(done, state, progress())
    stopping.unsaved = False
    return state


def to_host(metrics: Metrics) -> dict[str, float]:
    """Metrics as plain numbers, fetched in one go."""
    return {name: value.item() for name, value in jax.device_get(metrics).items()}


def not_finite(metrics: dict[str, float]) -> list[str]:
    """Which rewards gave values that are not finite, and which metrics are not, in words."""
    rewards = [
        f'reward "{name.split("/")[1]}" gave {int(value)} non-finite value(s)'
        for name, value in metrics.items()
        if name.startswith("rewards/") and name.endswith("/nonfinite") and value
    ]
    others = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    return rewards + others
