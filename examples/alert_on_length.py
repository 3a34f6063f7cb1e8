"""Callbacks of your own: an alert where responses leave the band, and the longest to look at."""

import json
from pathlib import Path


def alert(step, metrics, *, run_dir, least=0.9):
    """A line for every step of which fewer than this share of the responses lie in the band."""
    share, longest_tokens = metrics["in_band_ratio"], metrics["response_length_p95"]
    if share < least:
        note(run_dir, step=step, in_band=share, p95=longest_tokens)


def longest(step, figures, samples, *, run_dir, count=3):
    """Of every evaluation the longest responses."""
    for sample in sorted(samples, key=lambda sample: -sample["length_tokens"])[:count]:
        note(run_dir, step=step, tokens=sample["length_tokens"], response=sample["response"])


def note(run_dir, **fields):
    with Path(run_dir, "alerts.jsonl").open("a") as file:
        file.write(json.dumps(fields) + "\n")
