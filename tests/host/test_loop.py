"""What the loop does when it is to stop, and where a batch's rows come from on several hosts."""

import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import no_evidence

from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.host.compiled_step import CompiledStep
from rljax.host.guard import Guard
from rljax.host.loop import run_steps
from rljax.host.metrics import Records
from rljax.host.stopping import Stopped, Stopping
from rljax.types import TrainState

HOST = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rljax.data import Limits, Rows, make_batches, pair_table
from rljax.host.compiled_step import place_rows
from rljax.host.loop import host_batch
from rljax.sharding import make_mesh, row_sharding
from rljax.tasks import character_tokenizer
rows = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": f"{i}"} for i in range(20)]
table = pair_table([Rows(rows, "rows", None)], character_tokenizer(), Limits())
batches = make_batches(table, batch_size=8, seed=0)
first, second, third, fourth = jax.devices()
for devices in ([first, second, third, fourth], [first, third, second, fourth]):
    mesh = make_mesh(devices, data=2, fsdp=2)
    local = host_batch(batches, 3, mesh)
    assert local.tokens.shape[0] == 8, local.tokens.shape
    batch = jax.tree.map(lambda x: place_rows(x, row_sharding(mesh)), local)
    found = multihost_utils.process_allgather(batch, tiled=True)
    jax.tree.map(np.testing.assert_array_equal, found, batches[3])
"""


class Counting(CompiledStep):
    """A step that counts."""

    def __init__(self, ahead: int = 0):
        self.ahead = ahead

    def place(self, batch):
        return batch

    def prepare(self, state, batch):
        return batch

    def __call__(self, state, batch):
        return state.replace(step=state.step + 1), {"count": jnp.float32(batch)}, None


class Skipping(Counting):
    """A step that leaves its update out in every step of ``bad``."""

    def __init__(self, *bad: int, ahead: int = 0):
        super().__init__(ahead)
        self.bad = bad

    def __call__(self, state, batch):
        step = int(state.step) + 1
        skipped = state.skipped + 1 if step in self.bad else jnp.int32(0)
        metrics = {
            "guard/skipped_updates": jnp.int32(step in self.bad),
            "guard/skipped_in_a_row": skipped,
            "guard/bad_losses": jnp.int32(step in self.bad),
            "policy/loss": jnp.float32(jnp.nan if step in self.bad else 1.0),
        }
        return state.replace(step=state.step + 1, skipped=skipped), metrics, no_evidence()


class Kept(Checkpoints):
    """Checkpoints of a count: (step, what was saved of it), and None where they were waited for."""

    save_seconds = 3.0

    def __init__(self):
        self.log = []

    def save(self, step, state, progress, *, force=False):
        if force or step % 4 == 0:
            self.log.append((step, int(state.step)))

    def wait(self):
        self.log.append(None)

    def latest(self):
        return max((step for step, _ in filter(None, self.log)), default=None)


def run(step=None, errors=None, skipped=0, **calls) -> list:
    """What six steps save, until they stop."""
    kept, key = Kept(), jax.random.key(0)
    zero = jnp.int32(0)
    state = TrainState(zero, zero + skipped, key, params={}, frozen={}, opt_state={}, shaping=())
    calls = {"on_step": lambda step, metrics: None, "on_state": lambda step, state: None} | calls
    try:
        run_steps(
            step or Counting(),
            state,
            lambda step: np.float32(step),
            steps=6,
            checkpoints=kept,
            records=Records(None),
            progress=dict,
            **calls,
        )
    except (Stopped, UserError) as error:
        if errors is not None:
            errors.append(str(error))
    return kept.log


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_run_that_is_to_stop_saves_before_the_next_step_begins(calls):
    class After(Stopping):
        asked = 0

        def check(self, needed_seconds=0.0):
            self.asked += 1
            assert self.unsaved == (self.asked > 1)
            assert needed_seconds >= 2 * Kept.save_seconds
            if self.asked == calls:
                raise Stopped(75)

    earlier = [(4, 4)] if calls > 4 else []
    assert run(stopping=After()) == [*earlier, (calls - 1, calls - 1), None]


def test_in_the_end_all_is_saved():
    stopping = Stopping()
    assert run(stopping=stopping) == [(4, 4), (6, 6), None]
    assert not stopping.unsaved


def test_what_the_host_does_between_two_steps_is_timed():
    recorded = []

    def evaluate(step, state):
        time.sleep(0.02 * (step == 2))

    run(on_state=evaluate, on_step=lambda step, metrics: recorded.append(metrics))
    assert [metrics["count"] for metrics in recorded] == [0, 1, 2, 3, 4, 5]
    first, *others = (metrics.get("perf/between_seconds") for metrics in recorded)
    assert first is None
    assert others[1] >= 0.02
    assert min(others) > 0


def test_the_next_batch_is_on_its_way_before_a_step_is_over():
    """So that it is part of the step's time, in which the devices are at work, and not of the time
    between two."""
    events, recorded = [], []

    class Slow(Counting):
        def place(self, batch):
            events.append(f"placed {batch:.0f}")
            time.sleep(0.02)
            return batch

    def told(step, metrics):
        events.append(f"told {step}")
        recorded.append(metrics)

    run(Slow(), on_step=told)
    expected = [f"{what} {step}" for step in range(1, 7) for what in ("placed", "told")]
    expected.remove("placed 6")  # there is none after the last
    assert events == expected
    assert min(metrics["perf/step_seconds"] for metrics in recorded[:-1]) >= 0.02


def test_a_step_that_draws_ahead_takes_the_batch_after_its_own():
    class Ahead(Counting):
        primed = ()

        def prime(self, state, batch):
            self.primed += (float(batch),)
            return state

    recorded = []
    step = Ahead(ahead=1)
    run(step, on_step=lambda step, metrics: recorded.append(metrics["count"]))
    assert (step.primed, recorded) == ((0,), [1, 2, 3, 4, 5, 6])


def test_a_run_can_stop_before_what_follows_a_step():
    def evaluate(step, state):
        if step == 3:
            raise Stopped(75)

    assert run(on_state=evaluate) == [(3, 3), None]


def test_an_error_saves_nothing():
    def fail(step, state):
        raise UserError("no")

    assert run(on_state=fail) == []


@pytest.mark.parametrize(
    ("bad", "limit", "last"),
    [
        ((2, 3), 2, 3),
        ((1, 3, 5), 2, None),  # not in a row
        ((1, 2, 3, 4, 5, 6), 4, 4),
        ((2, 3, 4), None, None),
        ((6,), 1, 6),  # the last of all
    ],
)
def test_so_many_bad_steps_in_a_row_stop_the_run_with_its_state_saved(bad, limit, last):
    seen, evaluated, errors = [], [], []
    log = run(
        Skipping(*bad),
        errors,
        guard=Guard(max_skipped=limit),
        on_step=lambda step, metrics: seen.append(step),
        on_state=lambda step, state: evaluated.append(step),
    )
    assert seen == list(range(1, (last or 6) + 1))  # the last is recorded, too
    if last is None:
        assert (log[-2:], errors) == ([(6, 6), None], [])
        return
    assert log[-2:] == [(last, last), None]  # and waited for
    assert evaluated == seen[:-1]
    assert f"stopped at step {last}" in errors[0]
    assert f"guard.max_skipped={limit}" in errors[0]


def test_the_count_of_a_resumed_run_goes_on():
    errors = []
    run(Skipping(1), errors, skipped=2, guard=Guard(max_skipped=3))
    assert "in 3 step(s) in a row" in errors[0]
    run(Skipping(2, 3), errors, skipped=2, guard=Guard(max_skipped=3))
    assert len(errors) == 1  # a good one was between


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_that_goes_back_saves_at_once_where_it_stands(ahead):
    """A rollout that was drawn ahead is drawn anew: the one of then may be what diverged."""
    primed = []

    class Diverging(Skipping):
        def prime(self, state, batch):
            primed.append((int(state.step), float(batch)))
            return state

        def __call__(self, state, batch):
            state, metrics, evidence = super().__call__(state, batch)
            return (
                state,
                metrics | {"guard/over_max_kl": metrics["guard/skipped_updates"]},
                evidence,
            )

    def roll_back():
        zero = jnp.int32(0)
        return TrainState(
            zero, zero, jax.random.key(0), params={}, frozen={}, opt_state={}, shaping=()
        )

    recorded = []
    guard = Guard(None, "roll_back", roll_back=roll_back)
    log = run(
        Diverging(3, ahead=ahead),
        guard=guard,
        on_step=lambda step, metrics: recorded.append(metrics),
    )
    assert log == [(3, 3), None, (4, 4), (6, 6), None]
    assert [metrics.get("guard/rolled_back", 0.0) for metrics in recorded] == [0, 0, 1, 0, 0, 0]
    assert primed == [(0, 0), (3, 3)] * ahead


def test_each_host_makes_its_own_rows_and_together_they_are_the_batch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, address, str(index)],
            env={**os.environ, "XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for host in hosts:
        _, error = host.communicate(timeout=120)
        assert host.returncode == 0, error
