"""rljax's part of ``benchmarks.peers``: a run as ``python -m rljax.launch`` makes it."""

import json
import time
from pathlib import Path

import yaml

from benchmarks.peers.job import (
    GROUP,
    LEARNING_RATE,
    Job,
    read_job,
    report,
)
from rljax import launch
from rljax.types import Rollout

HERE = "benchmarks.peers.rljax_step"


def config(job: Job) -> dict:
    """The run's, with the library's defaults wherever they do the same work as the peers."""
    shape = job.shape
    ppo = job.algorithm == "ppo"
    return {
        "steps": job.steps,
        "run_dir": str(job.folder / "run"),
        "tokenizer": job.tokenizer,
        "models": {"policy": {"fn": job.model, "remat": "none"}},
        "data": {
            "train": str(job.folder / "prompts.jsonl"),
            "prompts_per_step": job.prompts_per_step,
            "max_prompt_tokens": shape.prompt_tokens,
        },
        "sampling": {
            "max_tokens": shape.response_tokens,
            "group_size": 1 if ppo else GROUP,
        },
        "rewards": {"odd": f"{HERE}:odd"},
        "length": {"min_tokens": 0, "max_tokens": shape.response_tokens},
        "algorithm": "ppo" if ppo else {"fn": "grpo", "kl_coef": 0.0},
        "optimizer": {
            role: {"learning_rate": LEARNING_RATE} for role in ["policy", "value"][: 1 + ppo]
        },
        "checkpoint": {"every_steps": job.steps},
        "callbacks": {"on_step": {"fn": f"{HERE}:note", "file": str(job.folder / "steps.jsonl")}},
    }


def odd(rollout: Rollout):
    """Whether the last token's id is odd."""
    return (rollout.tokens[:, -1] % 2).astype("float32")


def note(step: int, metrics: dict[str, float], *, file: str) -> None:
    record = {"end": time.monotonic(), "response_tokens": metrics["response_tokens"]}
    with open(file, "a") as steps:
        steps.write(json.dumps(record) + "\n")


def main() -> None:
    job = read_job()
    path = job.folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(job)))
    if code := launch.main([str(path)]):
        raise SystemExit(code)
    noted = [json.loads(line) for line in Path(job.folder / "steps.jsonl").read_text().splitlines()]
    ends = [record["end"] for record in noted]
    report(ends, int(noted[-1]["response_tokens"]), ["rljax", "jax", "jaxlib", "flax", "optax"])


if __name__ == "__main__":
    main()
