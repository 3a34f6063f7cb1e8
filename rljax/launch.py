"""``python -m rljax.launch [config.yaml] [key=value ...] [--dry-run]``: trains a model.

Without a config it teaches a small model to add, with length-aware PPO. The same command with the
same ``run_dir`` goes on where it stopped. On several hosts the same command runs on each.
"""

import argparse
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of an absent torch

import jax
import yaml

from rljax.build import build
from rljax.checks import check_step, check_weights
from rljax.config import Config, builtin_config, load_config, resolved
from rljax.describe import describe
from rljax.errors import UserError
from rljax.folder import removed_if_refused, run_folder, steps_kept
from rljax.host.agree import is_writer, meet
from rljax.host.cluster import find_place
from rljax.host.distributed import Peers
from rljax.host.stopping import INTERRUPTED, TRY_AGAIN, Signals, Stopped, TransientError
from rljax.host.terminal import Terminal
from rljax.run import Run

DEFAULT_CONFIG = "addition.yaml"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 2 for anything that the user can put right, 130 if
    it was interrupted, or 75 if the same command is to be started again, which goes on."""
    parser = argparse.ArgumentParser(
        prog="python -m rljax.launch",
        usage="%(prog)s [config.yaml] [key=value ...] [--dry-run]",
        description="Train a language model.",
        epilog="Example: python -m rljax.launch configs/addition.yaml steps=40 mesh.fsdp=2",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        help="a YAML file, by default that of the embedded task, and settings to change in it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the plan, and stop"
    )
    several = parser.add_argument_group(
        "several processes", "where nothing starts them that JAX knows: each its own number"
    )
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="a free port of process 0's host"
    )
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    options = parser.parse_intermixed_args(arguments)
    enough_threads()
    try:
        place = find_place(options.coordinator, options.processes, options.process)
        if place is None:
            return plan_or_run(options)
        with Peers(place) as peers:
            meet("joined")
            code = plan_or_run(options, peers)
            peers.leave(code)
        return code
    except UserError as error:
        print(f"rljax: error: {error}", file=sys.stderr)
        return TRY_AGAIN if isinstance(error, TransientError) else 2


def plan_or_run(options: argparse.Namespace, peers: Peers | None = None) -> int:
    """What the command line asks for, together with ``peers`` if there are several processes."""
    config_path, overrides = config_and_overrides(options.settings)
    config = load_config(config_path, overrides)
    if options.dry_run:
        return dry_run(config, config_path)
    return run(config, config_path, peers)


def config_and_overrides(settings: list[str]) -> tuple[Path, list[str]]:
    """The config file of a command line, by default the embedded task's, and its ``key=value``."""
    files = [setting for setting in settings if "=" not in setting]
    if len(files) > 1:
        raise UserError(f"one config file at most, got {' and '.join(files)}")
    path = Path(files[0]) if files else builtin_config(DEFAULT_CONFIG)
    return path, [setting for setting in settings if "=" in setting]


def dry_run(config: Config, config_path: Path) -> int:
    """Prints the resolved config, the mesh, the parameter counts and the memory per device."""
    built = build(config, config_path.parent)
    check_weights(built)
    check_step(built)
    if not is_writer():
        return 0
    print(yaml.safe_dump(resolved(config), sort_keys=False, default_flow_style=None, width=100))
    for name, line in describe(built, config):
        print(f"{name:<11} {line}")
    return 0


def run(config: Config, config_path: Path, peers: Peers | None = None) -> int:
    """Builds everything and trains."""
    use_compilation_cache()
    terminal = Terminal(quiet=not is_writer())
    if peers is not None:
        terminal.say("processes", peers.describe(), text=peers.describe())
    built = build(
        config, config_path.parent, report=lambda line: terminal.say("reward", line, text=line)
    )
    check_weights(built)
    check_step(built)
    folder = run_folder(config.run_dir)
    if peers is not None:
        peers.where = lambda: steps_kept(folder)
    try:
        with (
            removed_if_refused(folder),
            built.pool,
            jax.set_mesh(built.mesh),
            Signals() as signals,
        ):
            Run(config, built, folder, terminal, signals.check).run()
    except (Stopped, KeyboardInterrupt) as stop:
        if peers is not None and isinstance(stop, KeyboardInterrupt):
            raise  # the others have not stopped
        code = stop.code if isinstance(stop, Stopped) else INTERRUPTED
        if is_writer():
            how = "terminated" if code == TRY_AGAIN else "interrupted"
            print(f"rljax: {how}; the same with run_dir={folder} resumes it", file=sys.stderr)
        return code
    return 0


def enough_threads() -> None:
    """Gives simulated devices a thread each, and more: fewer can wait for each other for ever."""
    simulated = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if simulated:  # read when JAX first looks for devices
        os.environ.setdefault("NPROC", str(2 * int(simulated[1])))


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has said where, or not to."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "rljax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
