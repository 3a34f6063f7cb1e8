"""``rljax eval CONFIG|RUN [key=value ...]``: how a model answers held-out prompts.

Of a config it evaluates the model that training would begin with, of a run folder a checkpoint.
The figures and every response go to a folder, which preferences can be learned from.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rljax.build import Build, build
from rljax.checks import check_weights, laid_out
from rljax.config import Config, load_config, resolved
from rljax.errors import UserError
from rljax.evaluator import Evaluator
from rljax.export import checkpoints_of
from rljax.folder import numbered_folder
from rljax.host.checkpoint import restore_parts
from rljax.host.secrets import redacted, refuse_placeholders, say
from rljax.host.steps import FROZEN
from rljax.host.terminal import Terminal
from rljax.launch import enough_threads, use_compilation_cache
from rljax.options import eval_options
from rljax.starts import load_start
from rljax.train import place
from rljax.types import TrainState


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for anything that the user can put right."""
    options = eval_options().parse_intermixed_args(arguments)
    enough_threads()
    try:
        evaluate(**vars(options))
    except UserError as error:
        say(f"error: {error}")
        return 2
    return 0


def evaluate(
    target: Path, settings: list[str], *, step: int | None, best: bool, out: Path | None
) -> None:
    """Evaluates, writes ``figures.json`` and ``samples.jsonl``, and shows the figures."""
    if not os.path.exists(target):
        raise UserError(f"{target}: neither a config file nor the folder of a run")
    run = target if target.is_dir() else None
    if run is not None and not (run / "config.yaml").exists():
        raise UserError(f"{run} is no run folder: it holds no config.yaml")
    if run is None and (step is not None or best):
        raise UserError("--step and --best are of a run; a config has no checkpoints")
    path = target if run is None else run / "config.yaml"
    config = load_config(path, settings)
    if run is not None:
        refuse_placeholders(resolved(config))
    use_compilation_cache()
    terminal = Terminal()
    built = build(config, path.parent, report=lambda line: terminal.say("reward", line, text=line))
    if built.ahead is not None:  # the held-out loss needs a reference that is not there
        built = built._replace(measuring=None)
    if built.answering is None and built.measuring is None:
        lacks = "data.eval" if built.ahead is None else "rewards, to judge answers by"
        raise UserError(f"there is nothing to evaluate: the config lacks {lacks}")

    @contextlib.contextmanager
    def compiling(what: str):
        terminal.say("compiling", f"compiling: {what} …", program=what)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        terminal.say("compiled", f"compiled: {what}, in {seconds:.1f} s", program=what)

    with built.pool, jax.set_mesh(built.mesh):
        if run is None:
            state = _started(built, config, terminal)
        else:
            kept = checkpoints_of(run, best=best)
            state = _restored(built, kept, run / "checkpoints", step)
        figures, samples = Evaluator(config, built, compiling)(state)
    of = {"of": str(target), "settings": settings, "step": int(state.step)}
    folder = _written(out, of | figures, samples, built)
    terminal.figures(figures, f"held-out rows, step {int(state.step)}")
    terminal.samples([s for s in samples if not s["greedy"]][:4], "sampled")
    terminal.say("done", f"see {folder}/figures.json and samples.jsonl", figures=figures)


def _started(built: Build, config: Config, terminal: Terminal) -> TrainState:
    """The state that training would begin with, without its optimizers."""
    if built.warm_start is not None:
        raise UserError("warm_start: it is part of a run; evaluate the folder of one")
    check_weights(built)
    starts = {
        name: load_start(built, name, config.seed, terminal.say) for name in built.networks.starts
    }
    axes, mesh = built.train.axes, built.mesh
    return place(
        lambda starts: built.train.begin(starts).replace(opt_state={}),
        starts,
        axes=axes,
        optimizers={},
        mesh=mesh,
    )


def _restored(built: Build, folder: Path, frozen: Path, step: int | None) -> TrainState:
    """The state of a checkpoint, without its optimizers."""
    wanted, _ = laid_out(built, built.train)
    step, parts = restore_parts(
        folder,
        step,
        {"params": wanted.params, "shaping": wanted.shaping},
        wanted.frozen,
        frozen / FROZEN,
    )
    return TrainState(
        step=jnp.int32(step),
        skipped=jnp.int32(0),
        key=jax.random.key(0),
        params=parts["params"],
        frozen=parts["frozen"],
        opt_state={},
        shaping=parts["shaping"],
    )


def _written(out: Path | None, figures: dict[str, Any], samples: list[dict], built: Build) -> Path:
    """Writes the figures, and every response with the prompt as the data has it."""
    try:
        folder = numbered_folder("evals") if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(redacted(figures), indent=2)
        (folder / "figures.json").write_text(text + "\n", encoding="utf-8")
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
            for sample in samples:
                prompt = built.answering.table.rows[sample["prompt_index"]]["prompt"]
                record = redacted({**sample, "prompt": prompt}, by_looks=False)
                file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out or 'evals/'}: {error.strerror}") from error
    return folder
