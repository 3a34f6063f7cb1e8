"""``rljax verify RUN``: whether what lies in the folder of a run is what the run wrote."""

import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.progress import track

from rljax.ahead import REFERENCE, fault_of
from rljax.changes import changes
from rljax.config import load_config, resolved
from rljax.errors import UserError
from rljax.folder import holds_run, last_meta, phase_folders
from rljax.host.metrics import read_lines
from rljax.host.samples import SAMPLES, read_samples, sampled_steps, table_path
from rljax.host.secrets import say
from rljax.host.steps import FROZEN, STATE, DamagedError, check_saved, read_meta, steps_in
from rljax.host.terminal import Terminal
from rljax.options import verify_options

CHECKPOINTS = ("checkpoints", "best", "warm_start/checkpoints")
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


class Finding(NamedTuple):
    """What was found of one part of a run folder."""

    part: str
    sound: bool
    text: str


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 if all is sound, 1 if something is not, or 2 for
    anything else that the user can put right."""
    run = verify_options().parse_args(arguments).run
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    jax.config.update("jax_platforms", "cpu")  # what is read may be more than an accelerator holds
    terminal = Terminal()
    try:
        if not holds_run(run):
            raise UserError(
                f"{run} is no run folder: it holds neither config.yaml nor a checkpoint"
            )
        findings = verify(run, progress=terminal.rich)
    except UserError as error:
        say(f"error: {error}")
        return 2
    for part, sound, text in findings:
        verdict = "sound  " if sound else "DAMAGED"
        terminal.say("verify", f"{verdict}  {part}: {text}", part=part, sound=sound, text=text)
    on = goes_on_from(findings)
    sound = on is not None and all(finding.sound for finding in findings)
    text = f"a run here goes on from {on}" if on else "there is no sound checkpoint to go on from"
    terminal.say("verdict", text, sound=sound, text=text)
    return 0 if sound else 1


def verify(run: Path, *, progress: bool = False) -> list[Finding]:
    """What is sound in the folder of a run, and what is not, part by part.

    Every leaf is read, one at a time, and its digest compared with the one that was saved.
    """
    findings = [_check_config(run)]
    parts = [(folder, step) for folder in CHECKPOINTS for step in steps_in(run / folder)]
    for folder, step in track(parts, "reading", disable=not progress, transient=True):
        findings.append(_check_step(run, folder, step))
    for part in phase_folders(Path()).values():
        findings += _check_frozen(run, f"{part / 'checkpoints'}")
        if max(steps_in(run / part / "checkpoints"), default=0) or (run / part / METRICS).exists():
            findings.append(_check_records(run, f"{part / METRICS}", f"{part / 'checkpoints'}"))
    meta = last_meta(run)
    if (run / EVALUATIONS).exists() or (meta and meta["progress"]["evaluations"]):
        findings.append(_check_evaluations(run))
    if sampled_steps(run) or (meta and _sampled(meta)):
        findings.append(_check_samples(run, _sampled(meta) if meta else []))
    if (run / REFERENCE).exists():
        fault = fault_of(run / REFERENCE)
        findings.append(Finding(REFERENCE, fault is None, fault or "with the digest it was saved"))
    return findings


def goes_on_from(findings: list[Finding]) -> str | None:
    """The newest sound checkpoint, of training if that was begun."""
    sound = {finding.part: finding.sound for finding in findings}
    for folder in (f"{part / 'checkpoints'}" for part in phase_folders(Path()).values()):
        steps = [part for part in sound if re.fullmatch(rf"{folder}/\d+", part)]
        if steps:
            usable = [part for part in steps if sound[part]]
            newest = max(usable, key=lambda part: int(part.rpartition("/")[2]), default=None)
            return newest if sound.get(f"{folder}/{FROZEN}", True) else None
    return None


def _check_config(run: Path) -> Finding:
    path = run / "config.yaml"
    meta = last_meta(run)
    try:
        config = load_config(path, [])
    except UserError as error:
        return Finding("config.yaml", False, str(error))
    if meta is None:
        return Finding("config.yaml", True, "can be read")
    found = changes(meta["config"], resolved(config))
    if others := found.learned + found.held:
        return Finding("config.yaml", True, f"changed since the last save: {'; '.join(others)}")
    by = f"rljax {meta['versions'].get('rljax')}, jax {meta['versions'].get('jax')}"
    return Finding("config.yaml", True, f"as saved with the newest checkpoint, by {by}")


def _check_step(run: Path, folder: str, step: int) -> Finding:
    part = f"{folder}/{step}"
    try:
        meta = read_meta(run / folder, step)
        count = check_saved(run / folder / str(step) / STATE, meta)
    except DamagedError as damage:
        return Finding(part, False, str(damage))
    return Finding(part, True, f"{count} leaves, each with the digest that was saved")


def _check_frozen(run: Path, folder: str) -> list[Finding]:
    """By the newest step that says what it should be, if there should be something."""
    part = f"{folder}/{FROZEN}"
    for step in reversed(steps_in(run / folder)):
        try:
            meta = read_meta(run / folder, step)
        except DamagedError:
            continue
        if not any(name.startswith(f"{FROZEN}/") for name in meta["leaves"]):
            return []
        try:
            count = check_saved(run / folder / FROZEN / STATE, meta, under=FROZEN)
        except DamagedError as damage:
            return [Finding(part, False, str(damage))]
        return [Finding(part, True, f"{count} leaves, each with the digest that was saved")]
    return []


def _check_records(run: Path, name: str, folder: str) -> Finding:
    """Steps 1, 2, … without a gap, at least up to the newest checkpoint."""
    lines = list(read_lines(run / name))
    unread = [number for number, line in enumerate(lines, start=1) if line.record is None]
    if unread:
        return Finding(name, False, f"line {unread[0]} cannot be read ({len(unread)} in all)")
    expected = 0
    for number, line in enumerate(lines, start=1):
        expected += 1
        if line.record["step"] != expected:
            text = f"line {number} is of step {line.record['step']}, not {expected}"
            return Finding(name, False, text)
    steps = (int(path.parent.parent.name) for path in (run / folder).glob("*/meta/metadata"))
    newest = max(steps, default=0)
    if expected < newest:
        return Finding(name, False, f"ends with step {expected}, before the checkpoint of {newest}")
    return Finding(name, True, f"steps 1 to {expected}, each once" if lines else "no step yet")


def _check_evaluations(run: Path) -> Finding:
    """The records are those that the newest checkpoint knows of, and perhaps later ones."""
    name, meta = EVALUATIONS, last_meta(run)
    records = [line.record for line in read_lines(run / name)]
    known = [] if meta is None else meta["progress"].get("evaluations", [])
    if None in records:
        return Finding(name, False, f"line {records.index(None) + 1} cannot be read")
    if records[: len(known)] != known:
        return Finding(name, False, "not the evaluations that the newest checkpoint knows of")
    steps = [record["step"] for record in records]
    if steps != sorted(set(steps)):
        return Finding(name, False, "a step is there twice, or out of order")
    return Finding(name, True, f"{len(records)} evaluations")


def _sampled(meta: dict[str, Any]) -> list[int]:
    """The steps of the evaluations that a checkpoint knows of, as far as they answered prompts."""
    return [e["step"] for e in meta["progress"].get("evaluations", []) if "accuracy_greedy" in e]


def _check_samples(run: Path, expected: list[int]) -> Finding:
    """A table for each evaluation, of its step, and perhaps later ones."""
    there = sampled_steps(run)
    if missing := sorted(set(expected) - set(there)):
        return Finding(SAMPLES, False, f"lacks the table of step {missing[0]}")
    for step in there:
        name = table_path(run, step).name
        try:
            steps = {row.get("step") for row in read_samples(run, step)}
        except UserError:
            return Finding(SAMPLES, False, f"{name} cannot be read")
        if steps != {step}:
            return Finding(SAMPLES, False, f"{name} has rows of another step")
    return Finding(SAMPLES, True, f"{len(there)} tables")
