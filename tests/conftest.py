"""Eight simulated devices for every test, and a compilation cache that outlives the session."""

import os
import tempfile
from pathlib import Path

# Before JAX starts: its thread pool must outnumber the devices, or their collectives can deadlock.
os.environ.setdefault("NPROC", "16")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "rljax-test-cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
