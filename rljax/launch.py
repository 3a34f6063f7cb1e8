"""``python -m rljax.launch [config.yaml] [key=value ...] [--dry-run]``: trains a policy.

Without a config it teaches a small model to add, with length-aware PPO. The run folder holds the
resolved config, metrics, samples, checkpoints, the policy as a Hugging Face folder, curves and a
summary. The same command with the same ``run_dir`` goes on where it stopped.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import yaml

from rljax import __version__
from rljax.build import Build, Phase, build
from rljax.config import Config, builtin_config, load_config, resolved
from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.host.curves import draw_curves
from rljax.host.evaluation import Evaluated, summarise
from rljax.host.export import export_hf
from rljax.host.loop import CompiledStep, check_finite, run_steps
from rljax.host.metrics import Records, read_records
from rljax.host.terminal import Terminal
from rljax.sharding import bytes_per_device, param_shardings
from rljax.train import make_evaluate, place, state_shardings
from rljax.types import TrainState

DEFAULT_CONFIG = "addition.yaml"
SHOWN = {  # beside the progress bar: what is shown, by the name of its metric
    "nll": "policy/nll",
    "reward": "reward_mean",
    "shaped": "reward_shaped_mean",
    "length": "length_mean",
    "in band": "in_band_ratio",
    "kl": "reference_kl",
    "s/step": "perf/step_seconds",
}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for anything that the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m rljax.launch",
        description="Train a language model by reinforcement.",
        epilog="Example: python -m rljax.launch configs/addition.yaml steps=40 mesh.fsdp=2",
    )
    parser.add_argument("config", nargs="?", help="a YAML file; by default the embedded task")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the plan, and stop"
    )
    options = parser.parse_args(arguments)
    overrides = options.overrides
    if options.config and "=" in options.config:
        options.config, overrides = None, [options.config, *overrides]
    path = Path(options.config) if options.config else None
    try:
        config_path = path or builtin_config(DEFAULT_CONFIG)
        config = load_config(config_path, overrides)
        (dry_run if options.dry_run else run)(config, config_path)
    except UserError as error:
        print(f"rljax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rljax: interrupted; the same command with run_dir resumes", file=sys.stderr)
        return 130
    return 0


def dry_run(config: Config, config_path: Path) -> None:
    """Prints the resolved config, the mesh, the parameter counts and the memory per device."""
    built = build(config, config_path.parent)
    print(yaml.safe_dump(resolved(config), sort_keys=False, default_flow_style=None, width=100))
    for line in describe(built, config).values():
        print(line)


def run(config: Config, config_path: Path) -> None:
    """Trains: warm start, evaluation, reinforcement learning, evaluation, export."""
    _use_compilation_cache()
    built = build(config, config_path.parent)
    folder = Path(config.run_dir) if config.run_dir else _new_run_dir()
    with jax.set_mesh(built.mesh):
        Run(config, built, folder, Terminal()).run()


class Run:
    """One start of a run in its folder."""

    def __init__(self, config: Config, built: Build, folder: Path, terminal: Terminal):
        self.config, self.built, self.folder, self.terminal = config, built, folder, terminal
        self.started = time.perf_counter()
        self.earlier = {"wall_seconds": 0.0, "compile_seconds": 0.0}  # of starts before this one
        self.compile_seconds = 0.0
        temperature = built.sample.keywords["temperature"]
        self._evaluate = jax.jit(make_evaluate(built.sample, built.judge, temperature=temperature))

    def run(self) -> None:
        config, built, terminal = self.config, self.built, self.terminal
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            plain = yaml.safe_dump(resolved(config), sort_keys=False, default_flow_style=None)
            (self.folder / "config.yaml").write_text(plain, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to run_dir {self.folder}: {error.strerror}") from error
        terminal.say(
            "start", f"rljax {__version__}, run folder {self.folder}", run_dir=str(self.folder)
        )
        for name, line in describe(built, config).items():
            terminal.say(name, line)

        checkpoints = self._checkpoints(built.train)
        resumed = checkpoints.latest()
        evaluations = Records(self.folder / "evaluations.jsonl", up_to_step=resumed)
        samples = Records(self.folder / "samples.jsonl", up_to_step=resumed)
        with (
            contextlib.closing(checkpoints),
            contextlib.closing(evaluations),
            contextlib.closing(samples),
        ):
            if resumed is None:
                state = self._place(built.train, self._starting_policy())
            else:
                state = self._restore(built.train, checkpoints)
                terminal.say("resume", f"resuming from step {resumed}", step=resumed)

            def evaluate(step: int, state: TrainState) -> None:
                evaluated = self.evaluate(state)
                evaluations.write({"step": step, **evaluated.figures})
                for sample in evaluated.samples[: 2 * config.evaluation.samples]:
                    samples.write({"step": step, **sample})

            if resumed is None:
                evaluate(0, state)
                checkpoints.save(0, state, self.progress(), force=True)
            every = config.evaluation.every_steps
            state = self._train(built.train, state, checkpoints, evaluate if every else None)
            final = read_records(self.folder / "evaluations.jsonl")
            if not any(record["step"] == config.steps for record in final):
                evaluate(config.steps, state)
            self._finish(state)

    def evaluate(self, state: TrainState) -> Evaluated:
        """Held-out prompts, answered greedily and as sampled, always with the same draws."""
        key = jax.random.key(self.config.seed)
        judged = self._evaluate(state, self.built.heldout, key)
        rollout, rewards, metrics = jax.device_get((judged.rollout, judged.rewards, judged.metrics))
        check_finite(metrics, "on the held-out prompts")
        return summarise(rollout, rewards, self.built.tokenizer, **self.config.length.model_dump())

    def progress(self) -> dict[str, float]:
        """Seconds spent on this run, over all its starts."""
        return {
            "wall_seconds": self.earlier["wall_seconds"] + time.perf_counter() - self.started,
            "compile_seconds": self.earlier["compile_seconds"] + self.compile_seconds,
        }

    def _starting_policy(self):
        """The policy's parameters before reinforcement learning."""
        phase = self.built.warm_start
        if phase is None:
            policy = self.built.models["policy"]
            axes = policy.axes
            key = jax.random.key(self.config.seed)
            shardings = param_shardings(axes, jax.eval_shape(policy.init, key), self.built.mesh)
            return jax.jit(policy.init, out_shardings=shardings)(key)
        with contextlib.closing(self._checkpoints(phase)) as checkpoints:
            if checkpoints.latest() is None:
                state = self._place(phase)
            else:
                state = self._restore(phase, checkpoints)
            return self._train(phase, state, checkpoints, None).params["policy"]

    def _folder(self, phase: Phase) -> Path:
        return self.folder if phase is self.built.train else self.folder / phase.name

    def _checkpoints(self, phase: Phase) -> Checkpoints:
        every = self.config.checkpoint.every_steps
        if phase is self.built.warm_start:
            every = max(every, phase.steps // 5)
        return Checkpoints(
            self._folder(phase) / "checkpoints", every_steps=every, keep=self.config.checkpoint.keep
        )

    def _place(self, phase: Phase, *args) -> TrainState:
        roles = {"models": self.built.models, "optimizers": phase.optimizers}
        return place(phase.begin, *args, **roles, mesh=self.built.mesh)

    def _shardings(self, phase: Phase) -> tuple[TrainState, TrainState]:
        """The abstract state of a phase, and its shardings."""
        policy = jax.eval_shape(self.built.models["policy"].init, jax.random.key(0))
        abstract = jax.eval_shape(
            phase.begin, *(() if phase is self.built.warm_start else (policy,))
        )
        return abstract, state_shardings(
            abstract, self.built.models, phase.optimizers, self.built.mesh
        )

    def _restore(self, phase: Phase, checkpoints: Checkpoints) -> TrainState:
        abstract, shardings = self._shardings(phase)
        laid_out = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            abstract,
            shardings,
        )
        state, self.earlier = checkpoints.restore(laid_out)
        return state

    def _train(self, phase: Phase, state: TrainState, checkpoints: Checkpoints, evaluate):
        """Runs a phase from where its state stands to its end."""
        done = int(state.step)
        if done >= phase.steps:
            return state
        records = Records(self._folder(phase) / "metrics.jsonl", up_to_step=done)
        changes: dict[str, float] = {}

        def on_compile(seconds: float) -> None:
            self.compile_seconds += seconds
            text = f"compiled the {phase.name} step in {seconds:.1f} s"
            self.terminal.say("compiled", text, phase=phase.name, seconds=round(seconds, 2))

        with (
            contextlib.closing(records),
            self.terminal.phase(phase.name, phase.steps, done) as bar,
        ):

            def on_step(step: int, metrics: dict[str, float]) -> None:
                bar.step(step, {k: metrics[name] for k, name in SHOWN.items() if name in metrics})
                for line in _changes_of_controllers(changes, metrics):
                    self.terminal.say("controller", f"step {step}: {line}", step=step, text=line)

            step = CompiledStep(
                phase.train_step, self._shardings(phase)[1], self.built.mesh, on_compile
            )
            return run_steps(
                step,
                state,
                phase.batches,
                steps=phase.steps,
                checkpoints=checkpoints,
                records=records,
                on_step=on_step,
                progress=self.progress,
            )

    def _finish(self, state: TrainState) -> None:
        """Exports the policy, draws the curves, writes and shows the summary."""
        config, built, folder = self.config, self.built, self.folder
        budget = built.sample.keywords["max_tokens"]
        export_hf(
            folder / "policy",
            state.params["policy"],
            built.decoder,
            built.tokenizer,
            eos_ids=built.eos_ids,
            max_tokens=config.data.max_prompt_tokens + budget,
        )
        evaluations = read_records(folder / "evaluations.jsonl")
        metrics = read_records(folder / "metrics.jsonl")
        draw_curves(
            folder / "curves.png",
            metrics,
            evaluations,
            **config.length.model_dump(),
            title=f"{folder.name}: seed {config.seed}",
        )
        before, after = (
            {name: value for name, value in record.items() if name != "step"}
            for record in (evaluations[0], evaluations[-1])
        )
        summary = {"before": before, "after": after, "steps": config.steps, **self.progress()}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        self.terminal.before_after(before, after)
        shown = [r for r in read_records(folder / "samples.jsonl") if r["step"] == config.steps]
        self.terminal.samples([s for s in shown if not s["greedy"]][:4], "sampled after training")
        text = f"done in {summary['wall_seconds']:.0f} s; see {folder}/curves.png and summary.json"
        self.terminal.say("done", text, summary=summary)


def describe(built: Build, config: Config) -> dict[str, str]:
    """What runs where, a line each: devices, mesh, parameters by role, memory by role."""
    key = jax.random.key(0)
    counts, memory = {}, {}
    abstract_policy = jax.eval_shape(built.models["policy"].init, key)
    state = jax.eval_shape(built.train.begin, abstract_policy)
    shardings = state_shardings(state, built.models, built.train.optimizers, built.mesh)
    for role, tree in (state.params | state.frozen).items():
        counts[role] = sum(leaf.size for leaf in jax.tree.leaves(tree))
        placed = (shardings.params | shardings.frozen)[role]
        memory[role] = bytes_per_device(tree, placed)
    memory["optimizer"] = bytes_per_device(state.opt_state, shardings.opt_state)
    sampling = built.sample.keywords
    columns = config.data.max_prompt_tokens + sampling["max_tokens"]
    rows = config.data.prompts_per_step * sampling["group_size"]
    cache = jax.eval_shape(lambda: built.models["policy"].init_cache(rows, columns))
    shards = built.mesh.shape["data"] * built.mesh.shape["fsdp"]
    memory["kv cache"] = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)) // shards
    )
    devices = built.mesh.devices.flatten()
    mesh = " x ".join(f"{axis}={size}" for axis, size in built.mesh.shape.items())
    return {
        "devices": f"devices     {len(devices)} x {devices[0].device_kind}, jax {jax.__version__}",
        "mesh": f"mesh        {mesh}",
        "parameters": "parameters  " + _listed(counts, lambda n: f"{n:,}"),
        "memory": "memory      "
        + _listed(memory, lambda n: f"{n / 2**20:.1f}")
        + f" MiB per device; {sum(memory.values()) / 2**20:.1f} in all, activations apart",
        "batch": f"batch       {config.data.prompts_per_step} prompts x {sampling['group_size']}, "
        f"{config.data.max_prompt_tokens} + {sampling['max_tokens']} tokens",
    }


def _listed(figures: dict[str, Any], show) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in figures.items())


def _changes_of_controllers(seen: dict[str, float], metrics: dict[str, float]) -> list[str]:
    """A line for each controller whose count of changes grew since the step before."""
    lines = []
    for name, count in metrics.items():
        if name.endswith("/changes"):
            if count > seen.get(name, count):
                controller = name.removesuffix("/changes")
                lines.append(f"{controller} is now {metrics[controller]:.4g}")
            seen[name] = count
    return lines


def _new_run_dir() -> Path:
    """The first free ``runs/NNNN``."""
    numbers = [int(p.name) for p in Path("runs").glob("*") if re.fullmatch(r"\d+", p.name)]
    return Path("runs") / f"{max(numbers, default=0) + 1:04d}"


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has said where, or not to."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "rljax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    sys.exit(main())
