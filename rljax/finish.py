"""The end of a run: the exported model, the curves and the summary, all in its folder."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rljax.build import Build
from rljax.checks import laid_out
from rljax.config import Config
from rljax.errors import UserError
from rljax.export import export_role, run_details
from rljax.host.agree import is_writer
from rljax.host.checkpoint import restore_parts
from rljax.host.files import write_whole
from rljax.host.metrics import json_text, read_records
from rljax.host.samples import read_samples, sampled_steps
from rljax.host.selection import best_record
from rljax.host.terminal import Terminal
from rljax.roles import Trees


def finish(
    config: Config,
    built: Build,
    folder: Path,
    terminal: Terminal,
    *,
    step: int,
    params: Trees,
    frozen: Trees,
    evaluations: list[dict[str, Any]],
    seconds: Callable[[], dict[str, float]],
) -> None:
    """Exports the state of the last ``step``, or the best one, and sums the run up.

    Raises ``UserError`` if it cannot be written; the same command does it again.
    """
    try:
        exported = step
        if config.evaluation.best is not None:
            exported, params = _best(config, built, folder, terminal, step, params, evaluations)
        export_role(
            folder / built.role,
            frozen | params,
            built.networks,
            config,
            built.tokenizer,
            eos_ids=built.eos_ids,
            role=built.role,
            details=run_details(folder, exported),
        )
        if is_writer():
            _sum_up(config, folder, terminal, step, exported, evaluations, seconds())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write to {folder}: {error}; the run is saved, and the same command writes "
            "what is missing"
        ) from error


def _best(
    config: Config,
    built: Build,
    folder: Path,
    terminal: Terminal,
    last: int,
    params: Trees,
    evaluations: list[dict[str, Any]],
) -> tuple[int, Trees]:
    """The step that did best, and its parameters; the last one's if its own are not to be had."""
    settings = config.evaluation
    step = best_step(config, evaluations)
    which = {"max": "highest", "min": "lowest"}[settings.direction]
    found = f"the {which} {settings.best} was at step {step}"
    text = f"{found}: exporting that state"
    if step != last:
        wanted, _ = laid_out(built, built.train)
        try:
            _, parts = restore_parts(folder / "best", step, {"params": wanted.params}, {})
            params = parts["params"]
        except UserError as error:
            step, text = last, f"{found}, but {error}: exporting the last"
    terminal.say("best", text, step=step)
    return step, params


def best_step(config: Config, evaluations: list[dict[str, Any]]) -> int:
    """The step whose evaluation was the best so far."""
    best = best_record(evaluations, config.evaluation.best, config.evaluation.direction)
    return 0 if best is None else best["step"]


def _sum_up(
    config: Config,
    folder: Path,
    terminal: Terminal,
    last: int,
    exported: int,
    evaluations: list[dict[str, Any]],
    seconds: dict[str, float],
) -> None:
    """Draws the curves, and writes and shows the summary."""
    from rljax.host.curves import draw_curves  # the import of what draws takes half a second

    draw_curves(
        folder / "curves.png",
        read_records(folder / "metrics.jsonl"),
        evaluations,
        **(config.length.model_dump() if config.length else {}),
        title=f"{folder.name}: seed {config.seed}",
    )
    before, after = (
        {name: value for name, value in record.items() if name != "step"}
        for record in (evaluations[0], evaluations[-1])
    )
    summary = {"before": before, "after": after, "steps": last, **seconds}
    if config.evaluation.best is not None:
        summary["exported_step"] = exported
    write_whole(folder / "summary.json", json_text(summary, 2) + "\n")
    terminal.before_after(before, after)
    if last in sampled_steps(folder):
        with contextlib.suppress(UserError):  # the table can be read later, or not at all
            sampled = [row for row in read_samples(folder, last) if not row["greedy"]]
            terminal.samples(sampled[:4], "sampled after training")
    text = f"done in {summary['wall_seconds']:.0f} s; see {folder}/curves.png and summary.json"
    terminal.say("done", text, summary=summary)
