"""Where a process stands among those of its run, from faked environments."""

import pytest

from rljax.errors import UserError
from rljax.host import cluster
from rljax.host.cluster import Place, find_place

SLURM = {  # of the second of four tasks, two on each node
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "1",
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
NAMED = {
    "JAX_COORDINATOR_ADDRESS": "host:1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def found(**environment):
    return find_place(environment=environment)


def test_the_command_line_comes_first():
    place = find_place("host:1234", 2, 0, environment=SLURM)
    assert place == Place(2, 0, "host:1234", "deactivate")
    assert find_place("host:1234", 1, 0, environment=SLURM) is None


def test_then_the_variables_that_are_named_for_jax():
    assert found(**NAMED, **OMPI)[:3] == (4, 3, "host:1")
    assert found(**NAMED) == Place(4, 3, "host:1", "deactivate")
    assert found(**NAMED | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    jobset = {k: v for k, v in NAMED.items() if k != "JAX_PROCESS_ID"} | {
        "JOB_COMPLETION_INDEX": "2"
    }
    assert found(**jobset) == Place(4, 2, "host:1", "deactivate")


def test_schedulers_tell_how_many_and_which_and_jax_where():
    assert found(**SLURM) == Place(4, 1, None, "slurm")
    assert found(**OMPI) == Place(2, 1, None, "ompi", alone_on_node=True)
    assert found(**OMPI, JAX_COORDINATOR_ADDRESS="host:1").coordinator == "host:1"
    lone = found(**SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"})
    assert lone.alone_on_node


def test_a_tpu_pod_of_gke_is_counted_over_its_slices():
    assert found(TPU_WORKER_HOSTNAMES="a,b", MEGASCALE_NUM_SLICES="2") == Place(4, None, None)
    assert found(TPU_WORKER_HOSTNAMES="a,b", JAX_PLATFORMS="cpu") is None


def test_a_tpu_pod_outside_kubernetes_is_asked_for_its_workers(monkeypatch):
    monkeypatch.setattr(cluster, "_workers_by_metadata", lambda: 4)
    assert found() == Place(4, None, None)
    assert found(JAX_PLATFORMS="cpu") is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell within an allocation of four tasks
        OMPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_single_process_joins_nobody(environment):
    assert find_place(environment=environment) is None


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (("host:1", 2, None), {}, "--process is missing"),
        ((None, 2, 0), {}, "--coordinator is missing"),
        (("host", 2, 0), {}, "--coordinator must be HOST:PORT"),
        (("host:1", 2, 2), {}, "--process must lie in 0 … 1, got 2"),
        (("host:1", 0, 0), {}, "--processes must be at least 1"),
        ((), {"JAX_COORDINATOR_ADDRESS": "host:1"}, "JAX_NUM_PROCESSES is not set"),
        ((), NAMED | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a number"),
        ((), NAMED | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID must lie in 0 … 3"),
    ],
)
def test_what_is_incomplete_or_impossible_is_refused(flags, environment, says):
    with pytest.raises(UserError, match=says):
        find_place(*flags, environment=environment)
