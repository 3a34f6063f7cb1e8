"""Eight simulated devices for every test, and a compilation cache that outlives the session."""

import os
import tempfile
from pathlib import Path

# Before JAX starts: its thread pool must outnumber the devices, or their collectives can deadlock.
os.environ.setdefault("NPROC", "16")
# Where several workers share the cores, a device may wait long for the others.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "rljax-test-cache")
)
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # a file of the cache has one writer
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
