"""What several processes must have in common: decisions, and values that are spread over them.

All processes call each of these, in the same order. With a single one nothing is communicated.
"""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from rljax.errors import UserError
from rljax.sharding import replicated

Value = TypeVar("Value")
LEAST_BYTES = 1024  # of a message, which then grows in powers of two: few shapes to compile for


def is_writer() -> bool:
    """Whether this process writes the run's files and prints."""
    return jax.process_index() == 0


def agreed(make: Callable[[], Value]) -> Value:
    """What ``make`` returns on process 0, which must be JSON, and which alone calls it."""
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if is_writer() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    message = np.zeros(max(LEAST_BYTES, 1 << size.bit_length()), np.uint8)
    message[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(message)[:size].tobytes())


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def meet(where: str) -> None:
    """Waits until all processes have come here.

    CPUs are to meet before a program first runs, as they may have compiled for very different
    times: the one that comes first waits for another no longer than half a minute.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def check_same(facts: Mapping[str, str]) -> None:
    """Raises ``UserError`` if one of the facts, by name, is another than on process 0."""
    told = agreed(lambda: dict(facts))
    others = [name for name, value in facts.items() if told.get(name) != value]
    if others:
        raise UserError(
            f"this process has another {' and another '.join(others)} than process 0; start every "
            "process with the same command, files and version of rljax"
        )


def fetch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays that are spread over the mesh, whole on every host."""
    if jax.process_count() > 1:
        tree = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def _same(tree: PyTree) -> PyTree:
    return tree
