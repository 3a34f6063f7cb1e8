"""A virtual environment for each peer, from the package registry, made once."""

import hashlib
import importlib.metadata
import os
import subprocess
import venv
from pathlib import Path

TORCH = ("torch==2.13.0", "transformers==5.24.0")


def requirements(framework: str, algorithm: str) -> tuple[str, ...]:
    """What a peer's environment holds. Tunix gets our own release of JAX."""
    return {
        ("trl", "grpo"): ("trl==1.16.0", *TORCH),
        ("trl", "ppo"): ("trl==1.12.0", *TORCH),  # the last that has a PPO
        ("tunix", "grpo"): ("google-tunix==0.1.7", f"jax=={importlib.metadata.version('jax')}"),
        ("tunix", "ppo"): ("google-tunix==0.1.7", f"jax=={importlib.metadata.version('jax')}"),
    }[framework, algorithm]


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rljax" / "peers"


def python_of(folder: Path, packages: tuple[str, ...]) -> Path:
    """The interpreter of an environment with these packages, which is made if there is none.

    Raises ``subprocess.CalledProcessError`` if they cannot be installed.
    """
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    environment = folder / f"{packages[0].replace('==', '-')}-{digest}"
    python, whole = environment / "bin" / "python", environment / "installed"
    if not whole.exists():
        print(f"installing {' '.join(packages)} into {environment}", flush=True)
        venv.create(environment, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(install, check=True, capture_output=True, text=True)
        whole.touch()
    return python
