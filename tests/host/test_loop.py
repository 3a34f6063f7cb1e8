"""What the loop does when it is to stop, and where a batch's rows come from on several hosts."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rljax.host.loop import run_steps
from rljax.host.stopping import Stopped

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
batches, mesh = make_batches(table, batch_size=8, seed=0), make_mesh(data=2, fsdp=2)
local = host_batch(batches, 3, mesh)
assert local.tokens.shape[0] == 8, local.tokens.shape
batch = jax.tree.map(lambda x: place_rows(x, row_sharding(mesh)), local)
found = multihost_utils.process_allgather(batch, tiled=True)
jax.tree.map(np.testing.assert_array_equal, found, batches[3])
"""


class Counting:
    """A step that counts, and checkpoints of its count."""

    def __init__(self):
        self.saved, self.seen = [], []

    def prepare(self, state, batch):
        return batch

    def __call__(self, state, batch):
        return SimpleNamespace(step=state.step + 1), {"count": np.float32(batch)}

    def save(self, step, state, progress, force=False):
        if force or step % 4 == 0:
            self.saved.append((step, state.step))

    def wait(self):
        self.seen.append("waited")

    def run(self, start=0, **calls):
        calls = {"on_step": lambda *_: None, "on_state": lambda *_: None} | calls
        return run_steps(
            self,
            SimpleNamespace(step=start),
            lambda step: step,
            steps=6,
            checkpoints=self,
            records=SimpleNamespace(write=self.seen.append),
            progress=dict,
            **calls,
        )


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_run_that_is_to_stop_saves_before_the_next_step_begins(calls):
    counting, asked = Counting(), iter(range(1, 10))

    def check():
        if next(asked) == calls:
            raise Stopped(75)

    with pytest.raises(Stopped):
        counting.run(check_stop=check)
    done = calls - 1
    assert counting.saved[-1] == (done, done)
    assert len(counting.seen) == done + 1
    assert counting.seen[-1] == "waited"


def test_a_run_can_stop_before_what_follows_a_step():
    counting = Counting()

    def evaluate(step, state):
        if step == 3:
            raise Stopped(75)

    with pytest.raises(Stopped):
        counting.run(on_state=evaluate)
    assert counting.saved == [(3, 3)]


def test_an_error_saves_nothing():
    counting = Counting()

    def fail(step, state):
        raise ValueError

    with pytest.raises(ValueError):
        counting.run(on_state=fail)
    assert counting.saved == []


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
