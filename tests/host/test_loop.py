"""What the loop does when it is to stop, and where a batch's rows come from on several hosts."""

import contextlib
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.host.loop import CompiledStep, run_steps
from rljax.host.metrics import Records
from rljax.host.stopping import Stopped
from rljax.types import TrainState

HOST = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rljax.data import Limits, Rows, make_batches, pair_table
from rljax.host.loop import host_batch, place_rows
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

    def __init__(self):
        pass

    def prepare(self, state, batch):
        return batch

    def __call__(self, state, batch):
        return state.replace(step=state.step + 1), {"count": jnp.float32(batch)}, None


class Kept(Checkpoints):
    """Checkpoints of a count: (step, what was saved of it), and None where they were waited for."""

    def __init__(self):
        self.log = []

    def save(self, step, state, progress, *, force=False):
        if force or step % 4 == 0:
            self.log.append((step, int(state.step)))

    def wait(self):
        self.log.append(None)


def run(**calls) -> list:
    """What six steps save, until they stop."""
    kept, key = Kept(), jax.random.key(0)
    zero = jnp.int32(0)
    state = TrainState(zero, zero, key, params={}, frozen={}, opt_state={}, shaping=())
    calls = {"on_step": lambda step, metrics: None, "on_state": lambda step, state: None} | calls
    with contextlib.suppress(Stopped, UserError):
        run_steps(
            Counting(),
            state,
            lambda step: np.float32(step),
            steps=6,
            checkpoints=kept,
            records=Records(None),
            progress=dict,
            **calls,
        )
    return kept.log


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_run_that_is_to_stop_saves_before_the_next_step_begins(calls):
    asked = iter(range(1, 10))

    def check():
        if next(asked) == calls:
            raise Stopped(75)

    earlier = [(4, 4)] if calls > 4 else []
    assert run(check_stop=check) == [*earlier, (calls - 1, calls - 1), None]


def test_a_run_can_stop_before_what_follows_a_step():
    def evaluate(step, state):
        if step == 3:
            raise Stopped(75)

    assert run(on_state=evaluate) == [(3, 3), None]


def test_an_error_saves_nothing():
    def fail(step, state):
        raise UserError("no")

    assert run(on_state=fail) == []


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
