"""Where this process stands among those of its run, from the command line or the environment.

What starts the processes (Slurm, mpirun, GKE, gcloud on every worker of a TPU pod) tells each of
them in variables of its environment, or leaves it to a metadata server.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from rljax.errors import UserError

FLAGS = ("--coordinator", "--processes", "--process")
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
COMPLETION = "JOB_COMPLETION_INDEX"  # of a pod of an indexed Kubernetes job
SCHEDULERS = {  # how JAX calls each, and its variables: processes, index, processes by node
    "slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
    "ompi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}


class Place(NamedTuple):
    """Of one process among several."""

    processes: int
    process: int | None  # None: JAX finds it out
    coordinator: str | None  # host:port of process 0, likewise
    method: str | None = None  # how JAX finds out what is None; None: it tries what it knows
    alone_on_node: bool = False  # so that all of the node's accelerators are this process's


def find_place(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this process; None if it is the only one.

    The command line's three come first, then the three variables that are named for JAX, then what
    Slurm, Open MPI or a TPU pod say. Raises ``UserError`` if they are incomplete or impossible.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        missing = [flag for flag, value in zip(FLAGS, given, strict=True) if value is None]
        if missing:
            raise UserError(f"{' and '.join(FLAGS)} belong together; {missing[0]} is missing")
        return _checked(Place(processes, process, coordinator, "deactivate"), FLAGS)
    return _named(environment) or _scheduled(environment) or _tpu_pod(environment)


def _named(environment: Mapping[str, str]) -> Place | None:
    """From JAX's variables; what they leave open may come from a scheduler."""
    address = environment.get(ADDRESS) or None
    count, index = _number(environment, COUNT), _number(environment, INDEX)
    if address is None and count is None and index is None:
        return None
    if count == 1:
        return None
    scheduled = _scheduled(environment)
    if index is None and scheduled is None:
        index = _number(environment, COMPLETION)
    if scheduled is not None:
        place = scheduled._replace(coordinator=address)
        if count is not None and index is not None:
            place = place._replace(processes=count, process=index)
        return _checked(place, (ADDRESS, COUNT, INDEX))
    values = {ADDRESS: address, COUNT: count, INDEX: index}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        raise UserError(f"{', '.join(values)} belong together; {missing[0]} is not set")
    return _checked(Place(count, index, address, "deactivate"), (ADDRESS, COUNT, INDEX))


def _scheduled(environment: Mapping[str, str]) -> Place | None:
    """From Slurm, of the step that this process is a task of, or from Open MPI."""
    for method, (count_name, index_name, by_node_name) in SCHEDULERS.items():
        count, index = _number(environment, count_name), _number(environment, index_name)
        if count is not None and count > 1 and index is not None:
            by_node = re.sub(r"\(x\d+\)", "", environment.get(by_node_name, ""))
            alone = set(by_node.split(",")) == {"1"}
            return Place(count, index, None, method, alone)
    return None


def _tpu_pod(environment: Mapping[str, str]) -> Place | None:
    """From GKE's variables, or the metadata server of a TPU machine."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return None
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers:
        slices = _number(environment, "MEGASCALE_NUM_SLICES") or 1
        count = len(workers.split(",")) * slices
    else:
        count = _workers_by_metadata()
    return Place(count, None, None) if count > 1 else None


def _workers_by_metadata() -> int:
    """Of a TPU pod outside Kubernetes; 1 on any other machine."""
    # Private: JAX tells nobody but itself how many workers a pod has, and only initialises.
    try:
        from jax._src.clusters import GceTpuCluster
    except ImportError:
        return 1
    return GceTpuCluster.get_process_count() if GceTpuCluster.is_env_present() else 1


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdigit():
        raise UserError(f"{name} must be a number, got {text!r}")
    return int(text) if text else None


def _checked(place: Place, names: tuple[str, str, str]) -> Place | None:
    address, count, index = place.coordinator, place.processes, place.process
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{names[0]} must be HOST:PORT of process 0, got {address!r}")
    if count < 1:
        raise UserError(f"{names[1]} must be at least 1, got {count}")
    if not 0 <= index < count:
        raise UserError(f"{names[2]} must lie in 0 … {count - 1}, got {index}")
    return place if count > 1 else None
