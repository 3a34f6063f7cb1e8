"""Folders of runs, written by hand."""

import json
from pathlib import Path

import numpy as np

from rljax.host.samples import write_samples
from rljax.lengths import VERDICTS, verdict

BAND = (20, 40)
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)> & <b>"


def figures(step: int, *, length: float = 30.0, **others) -> dict:
    """A record of training."""
    return {
        "step": step,
        "reward_mean": 0.5 + step / 100,
        "length_mean": length + step % 3 / 10,
        "response_length_p95": length + 5,
        "in_band_ratio": float(20 <= length <= 40),
        "reward_shaping_ratio": 0.1,
        "truncated_ratio": 0.0,
        "guard/skipped_updates": 0,
        **others,
    }


def write_run(
    folder: Path,
    records: list[dict] | str,
    evaluations: list[dict] = (),
    *,
    config: str = "length: {min_tokens: 20, max_tokens: 40}\nseed: 0\n",
    events: list[dict] = (),
    responses: list[tuple[str, int]] = (),
) -> Path:
    """A run; ``records`` may be the text of the file, ``responses`` are texts and lengths, that
    each evaluation has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = records if isinstance(records, str) else as_lines(records)
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "evaluations.jsonl").write_text(as_lines(evaluations))
    (folder / "events.jsonl").write_text(as_lines(events))
    (folder / "config.yaml").write_text(config)
    for evaluation in evaluations if responses else ():
        rows = [sample(index, *response) for index, response in enumerate(responses)]
        write_samples(folder, evaluation["step"], rows)
    return folder


def as_lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def sample(index: int, response: str, tokens: int, *, truncated: bool = False) -> dict:
    """A row of a table of samples."""
    judged = VERDICTS[int(verdict(np.array(tokens), *BAND))]
    return {
        "prompt_index": index,
        "prompt": f"prompt {index}",
        "response": response,
        "greedy": False,
        "length_tokens": tokens,
        "length_verdict": judged,
        "truncated": truncated,
        "correct": index % 2 == 0,
        "reward/correct": float(index % 2 == 0),
        "reward_raw": float(index % 2 == 0),
        "shaping": -0.25,
        "reward_shaped": float(index % 2 == 0) - 0.25,
    }


def healthy(folder: Path, steps: int = 20, **others) -> Path:
    """A run in which nothing is wrong."""
    return write_run(folder, [figures(step, **others) for step in range(1, steps + 1)])
