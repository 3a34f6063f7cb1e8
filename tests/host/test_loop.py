"""Where a batch's rows come from when there are several hosts: two processes over loopback."""

import os
import socket
import subprocess
import sys

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
