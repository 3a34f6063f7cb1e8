"""How much faster is a step than the peers'?

    python -m benchmarks.peers [--shapes small large] [--algorithms grpo ppo] [--repeats 3]

rljax against TRL and Tunix on two CPU cores of this machine: steps of GRPO and of PPO, of a model
with random weights. Each framework runs in a process and an environment of its own, which is made
from the package registry at the first use. In each repeat all of them take their turns, the next
time in the opposite order; ratios are between runs of the same repeat. Prints a table for each
shape and algorithm, and JSON as the last line.

The same for all: a Qwen2 with heads of 64, half as many for keys and values, tied embeddings and
1024 ids (as of a small task's own tokenizer: with a large vocabulary such narrow layers would be
lost beside the head), loaded from one Hugging Face folder, float32; 32 responses a step, eight to
each prompt for GRPO and one for PPO, all running to their limit; temperature 1; one epoch of one
minibatch, AdamW behind a clip of the gradient's norm; no KL, so GRPO needs no reference; for PPO a
critic that shares nothing with the policy; a reward that costs nothing. Nothing is recomputed in
the backward pass, and no checkpoint is saved between the steps measured, which are those after the
first two. Large allocations of all are in huge pages, where the kernel gives them on request
(``GLIBC_TUNABLES``).

What could not be made equal:

- rljax is started as by ``rljax.launch``, which saves a checkpoint before the first step. Its
  compilations are kept by default. It chooses its micro-batches; the peers have one, as they have
  unless a user counts what fits.
- Tunix's are kept only if a user asks JAX for it, as is done here. It samples eight times each
  prompt; for PPO it computes the log-probs of what it has just sampled, and updates policy and
  critic one after the other. It gets our release of JAX, and the transformers that it asks for.
- TRL compiles nothing, so its first step is the same cold and warm. It samples with transformers'
  ``generate``, eight times each prompt. Its newer releases have no PPO; that of 1.12, which is
  measured, runs the reference in every step, though the KL has no weight.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from benchmarks.peers.environments import default_folder, python_of, requirements
from benchmarks.peers.figures import OURS, Pair, Run, compared, parse, table
from benchmarks.peers.inputs import make_inputs
from benchmarks.peers.job import CORES, SHAPES, Job

FRAMEWORKS = (OURS, "tunix", "trl")
COMPILE = (OURS, "tunix")
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # for what is allocated at once, instead of 4 KiB each
WARMUP = 2  # steps that compile or trace something
WIDTH = 136  # columns that the table takes
ROOT = Path(__file__).resolve().parents[2]


class NotRunError(Exception):
    """Why a framework's process gave no measurement."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--algorithms", nargs="+", choices=["grpo", "ppo"], default=["grpo", "ppo"])
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=3, help="measured in each run")
    parser.add_argument("--venvs", type=Path, default=default_folder(), help="where they are made")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # which processes inherit
    console, results, packages = Console(), [], {}
    console.width = max(console.width, WIDTH)
    for shape in options.shapes:
        for algorithm in options.algorithms:
            job = {"algorithm": algorithm, "shape_name": shape}
            runs, absent = measure(job, options)
            figures = compared(runs)
            title = f"{algorithm}, {shape} shape, {CORES} cores of {processor()}"
            console.print(table(title, figures, absent))
            results.append({**job, "figures": figures, "not_run": absent})
            for name, pairs in runs.items():
                packages[f"{name} {algorithm}"] = pairs[0].cold.packages
    machine = {"processor": processor(), "cores": CORES, "python": platform.python_version()}
    print(json.dumps({"machine": machine, "packages": packages, "results": results}))


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def measure(job: Mapping, options: argparse.Namespace) -> tuple[dict[str, list[Pair]], dict]:
    """The pairs of each framework, and of those that could not be run why."""
    pythons, absent = {}, {}
    for name in options.only:
        try:
            pythons[name] = sys.executable
            if name != OURS:
                wanted = requirements(name, job["algorithm"])
                pythons[name] = python_of(options.venvs, wanted)
        except subprocess.CalledProcessError as error:
            absent[name] = last_line(error.stderr)
    runs: dict[str, list[Pair]] = {name: [] for name in pythons if name not in absent}
    for repeat in range(options.repeats):
        for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            try:
                runs[name].append(run_pair(name, pythons[name], job, options.steps))
            except NotRunError as error:
                absent[name] = str(error)
                del runs[name]
    return runs, absent


def run_pair(name: str, python: Path | str, job: Mapping, steps: int) -> Pair:
    """A run with an empty compilation cache, and the first step of another that finds it full."""
    with tempfile.TemporaryDirectory() as cache:
        cold = run(name, python, job, WARMUP + steps, cache)
        warm = run(name, python, job, 1, cache) if name in COMPILE else None
    return Pair(cold, warm)


def run(name: str, python: Path | str, job: Mapping, steps: int, cache: str) -> Run:
    """A process of a framework. Raises ``NotRunError`` if it does not measure what it was to."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": cache,
        "HF_HUB_OFFLINE": "1",
        "GLIBC_TUNABLES": HUGE_PAGES,
    }
    if name == "tunix":  # rljax has a cache of its own
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    with tempfile.TemporaryDirectory() as folder:
        task = Job(**job, steps=steps, folder=Path(folder))
        make_inputs(task)
        command = [python, "-m", f"benchmarks.peers.{name}_step", *task.arguments()]
        started = time.monotonic()
        ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise NotRunError(last_line(ended.stderr))
    try:
        result = parse(ended.stdout, started, warmup=WARMUP)
    except ValueError as error:
        raise NotRunError(str(error)) from error
    expected = task.response_tokens
    if result.response_tokens != expected:
        raise NotRunError(f"it sampled {result.response_tokens} tokens in a step, not {expected}")
    return result


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def processor() -> str:
    """The model of the CPU, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
