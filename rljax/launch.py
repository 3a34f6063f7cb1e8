"""``python -m rljax.launch [config.yaml] [key=value ...] [--dry-run]``: trains a model.

Without a config it teaches a small model to add, with length-aware PPO. The same command with the
same ``run_dir`` goes on where it stopped. On several hosts the same command runs on each.
"""

import argparse
import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of an absent torch

import jax
import yaml

from rljax.checks import check_step, check_weights
from rljax.config import Config, load_config, resolved
from rljax.config_file import builtin_config, builtin_configs
from rljax.describe import describe
from rljax.errors import UserError
from rljax.fit import built_to_fit
from rljax.folder import locked, open_folder, removed_if_refused, run_folder, steps_kept
from rljax.fork import find_origin, find_run, fork_together
from rljax.host.agree import is_writer, meet
from rljax.host.cluster import find_place
from rljax.host.distributed import Peers
from rljax.host.metrics import Journal
from rljax.host.secrets import guard_tracebacks, redact, redacted, refuse_placeholders, say
from rljax.host.stopping import (
    TRY_AGAIN,
    Signals,
    Stopped,
    TransientError,
    leave_at_once,
)
from rljax.host.terminal import Terminal
from rljax.listening import check_listening
from rljax.options import launch_options
from rljax.run import Run

DEFAULT_CONFIG = "addition.yaml"
NEVER = "never"  # as --resume


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 2 for anything that the user can put right, 130 if
    it was interrupted, or 75 if the same command is to be started again, which goes on."""
    options = launch_options().parse_intermixed_args(arguments)
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
        say(f"error: {error}")
        return TRY_AGAIN if isinstance(error, TransientError) else 2


def plan_or_run(options: argparse.Namespace, peers: Peers | None = None) -> int:
    """What the command line asks for, together with ``peers`` if there are several processes."""
    if options.resume and options.fork:
        raise UserError("--resume goes on with a run, --fork begins another: give one of them")
    old = None  # the run that is gone on with, or forked
    if options.fork:
        old = find_origin(options.fork).run
    elif options.resume not in (None, NEVER):
        old = find_run(options.resume)
    config_path, overrides = config_and_overrides(options.settings, old)
    if old is not None:
        overrides = [f"run_dir={'null' if options.fork else json.dumps(str(old))}", *overrides]
    config = load_config(config_path, overrides)
    if old is not None:
        refuse_placeholders(resolved(config))
    if old is not None and not options.fork and Path(config.run_dir or "") != old:
        raise UserError(
            f"--resume {old} with run_dir={config.run_dir}: a run goes on in its own folder; "
            "--fork begins another"
        )
    if options.dry_run:
        return dry_run(config, config_path)
    return run(config, config_path, options, peers)


def config_and_overrides(settings: list[str], run: Path | None = None) -> tuple[Path, list[str]]:
    """The config file of a command line, by default that of a ``run``, else the embedded task's;
    and its ``key=value``."""
    files = [setting for setting in settings if "=" not in setting]
    if len(files) > 1:
        raise UserError(f"one config file at most, got {' and '.join(files)}")
    path = run / "config.yaml" if run else builtin_config(DEFAULT_CONFIG)
    if files:
        path = Path(files[0])
        known = builtin_configs().get(path.with_suffix(".yaml").name)
        if known is not None and not path.exists():
            raise UserError(f"no config {path} here; the recipe of that name is {known}")
    return path, [setting for setting in settings if "=" in setting]


def dry_run(config: Config, config_path: Path) -> int:
    """Prints the resolved config, the mesh, the parameter counts and the memory per device."""
    check_listening(config)
    config, built = built_to_fit(config, config_path.parent, told=say)
    check_weights(built)
    check_step(built)
    if not is_writer():
        return 0
    tree = redacted(resolved(config))
    print(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100))
    for name, line in describe(built, config):
        print(redact(f"{name:<11} {line}"))
    return 0


def run(
    config: Config,
    config_path: Path,
    options: argparse.Namespace,
    peers: Peers | None,
) -> int:
    """Builds everything and trains."""
    use_compilation_cache()
    terminal = Terminal(quiet=not is_writer())
    if peers is not None:
        terminal.say("processes", peers.describe(), text=peers.describe())
    folder = None

    def leave(words: str, code: int) -> NoReturn:
        words = f"{words}; {goes_on(folder)}"
        terminal.note("stopped", words, code=code, text=words)
        terminal.close()
        if peers is not None:
            peers.end(words, code)
        leave_at_once(words, code)

    with Signals(config.time_limit, leave) as signals:
        try:
            check_listening(config)
            config, built = built_to_fit(
                config,
                config_path.parent,
                told=lambda line: terminal.say("update", line, text=line),
                report=lambda line: terminal.say("reward", line, text=line),
            )
            check_weights(built)
            check_step(built)
            folder = run_folder(config.run_dir)
            if peers is not None:
                peers.where = lambda: steps_kept(folder)
            with contextlib.ExitStack() as stack:
                stack.enter_context(removed_if_refused(folder))
                forked = options.fork and fork_together(find_origin(options.fork), folder)
                stack.enter_context(locked(folder))
                opened = open_folder(
                    folder,
                    config,
                    built,
                    may_change=bool(options.allow_config_change or forked),
                    is_new=options.resume == NEVER,
                )
                if is_writer():
                    terminal.journal = Journal(folder / "events.jsonl", report=say)
                stack.enter_context(built.pool)
                stack.enter_context(jax.set_mesh(built.mesh))
                Run(config, built, folder, opened, terminal, signals).run()
        except Stopped as stop:
            words = f"{stop.words}; {goes_on(folder)}"
            terminal.note("stopped", words, code=stop.code, text=words)
            if is_writer():
                say(words)
            return stop.code
        except Exception as error:
            terminal.note("error", "", text=f"{type(error).__name__}: {error}")
            raise
        finally:
            terminal.close()
    return 0


def goes_on(folder: Path | None) -> str:
    """How a run is gone on with."""
    return "nothing was begun" if folder is None else f"the same with run_dir={folder} resumes it"


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
    guard_tracebacks()
    sys.exit(main())
