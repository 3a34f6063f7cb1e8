"""The rows of a step of which an update was left out, as a file in the run's folder."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rljax.host.agree import fetch, is_writer
from rljax.host.files import write_whole
from rljax.host.metrics import json_text
from rljax.host.secrets import redacted
from rljax.types import Evidence

ROWS, FILES = 64, 100  # of a file, and of a folder, at most


class BadSteps:
    """A folder with a file for each such step, the newest ``FILES`` of them."""

    def __init__(self, folder: Path, mesh: Mesh, tokenizer, say: Callable[..., None]):
        """``say`` is a terminal's."""
        self._folder, self._mesh, self._tokenizer, self._say = folder, mesh, tokenizer, say
        self._refused = False

    def keep(self, step: int, why: str, evidence: Evidence) -> Path | None:
        """Writes what is known of a step, and says so; returns the file, None if there is none.

        Where it cannot be written that is said once, and is no reason to stop. Several processes
        call it together, and one of them writes.
        """
        evidence = fetch(evidence, self._mesh)
        path = self._folder / f"{step:06d}.json"
        told = describe(evidence, self._tokenizer)
        updates, skipped = len(evidence.updates["applied"]), told["updates_left_out"]
        try:
            if is_writer():
                self._write(path, {"step": step, "why": why, **told})
        except OSError as error:
            if not self._refused:
                text = f"cannot write {path}: {error.strerror}; the run goes on without it"
                self._say("warning", text, step=step, text=text)
            self._refused, path = True, None
        text = f"step {step}: {skipped} of {updates} update(s) left out: {why}"
        self._say(
            "skipped",
            text if path is None else f"{text}; see {path}",
            step=step,
            updates=skipped,
            reason=why,
            file=path and str(path),
        )
        return path

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json_text(redacted(record, by_looks=False), indent=2) + "\n")
        files = [file for file in self._folder.glob("*.json") if file.stem.isdigit()]
        files.sort(key=lambda file: int(file.stem))
        for old in files[:-FILES]:
            old.unlink()


def describe(evidence: Evidence, tokenizer) -> dict[str, Any]:
    """Arrays of the host in words: the updates, and the rows at fault, the first ``ROWS`` of them.

    Numbers that are not finite are given as text, since JSON has none.
    """
    bad = {name: np.flatnonzero(rows) for name, rows in evidence.bad.items() if rows.any()}
    at_fault = np.unique(np.concatenate([*bad.values(), []])).astype(int)
    names = sorted(evidence.updates)
    columns = [np.asarray(evidence.updates[name]).tolist() for name in names]
    updates = [
        {name: _number(value) for name, value in zip(names, values, strict=True)}
        for values in zip(*columns, strict=True)
    ]
    return {
        "updates_left_out": sum(not update["applied"] for update in updates),
        "updates": updates,
        "rows_at_fault": len(at_fault),
        "rows": [_row(evidence, row, bad, tokenizer) for row in at_fault[:ROWS].tolist()],
    }


def _row(evidence: Evidence, row: int, bad: dict[str, np.ndarray], tokenizer) -> dict[str, Any]:
    tokens, chosen = evidence.tokens[row], evidence.action_mask[row]
    told: dict[str, Any] = {
        "row": row,
        **{name: int(column[row]) for name, column in evidence.source.items()},
        "bad": [name for name, rows in bad.items() if row in rows],
        "prompt": tokenizer.decode(tokens[evidence.mask[row] & ~chosen]),
        "response": tokenizer.decode(tokens[chosen]),
        "length_tokens": int(chosen.sum()),
        **{name: _number(column[row].item()) for name, column in evidence.figures.items()},
    }
    column = int(evidence.column[row])
    if column >= 0:
        told |= {"column": column, "token": tokenizer.decode(tokens[column : column + 1])}
        if evidence.logprobs is not None:
            told["logprob"] = _number(evidence.logprobs[row, column].item())
    return told


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
