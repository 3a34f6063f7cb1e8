"""A run in its folder: warm start, evaluation, training, evaluation, export.

The folder holds the resolved config, metrics, samples, checkpoints, the model as a Hugging Face
folder, curves and a summary. A run that was cut off goes on from its newest checkpoint.
"""

import contextlib
import functools
import json
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from rljax import __version__
from rljax.ahead import REFERENCE, fault_of, read_reference, write_reference
from rljax.build import Build
from rljax.checks import laid_out
from rljax.config import Config
from rljax.describe import describe
from rljax.errors import UserError
from rljax.evaluator import Evaluator
from rljax.finish import best_step, finish
from rljax.folder import Opened
from rljax.host.agree import agreed, is_writer, meet
from rljax.host.checkpoint import Checkpoints, Restored
from rljax.host.compiled_step import CompiledStep
from rljax.host.evidence import BadSteps
from rljax.host.guard import SKIPPED, Guard
from rljax.host.listeners import Failure, Listeners
from rljax.host.loop import host_batch, run_steps, unmeasured
from rljax.host.metrics import Records, json_text, read_records
from rljax.host.samples import SAMPLES, keep_samples, table_path, write_samples
from rljax.host.selection import out_of_patience
from rljax.host.steps import FROZEN, steps_in
from rljax.host.stopping import Stopping
from rljax.host.terminal import Terminal
from rljax.listening import open_listeners
from rljax.phases import Phase
from rljax.planning import step_speed
from rljax.roles import Trees
from rljax.starts import load_start
from rljax.train import place
from rljax.types import Params, TrainState

MANY_TRUNCATED = 0.5  # from this share on it is said
WARM_START_SAVES = 5  # checkpoints of the warm start, at least
SHOWN = {  # beside the progress bar: what is shown, by the name of its metric
    "nll": "policy/nll",
    "in order": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward": "reward_mean",
    "length": "length_mean",
    "in band": "in_band_ratio",
    "kl": "reference_kl",
    "divergence": "policy/divergence",
}


class Run:
    """One start of a run: its functions, its folder, and the seconds it has taken.

    It stops between two steps if ``stopping`` says so. Several processes run it together, and one
    of them writes: what that one reads of the folder to decide by, it tells the others.
    """

    def __init__(
        self,
        config: Config,
        built: Build,
        folder: Path,
        opened: Opened,
        terminal: Terminal,
        stopping: Stopping,
    ):
        self.config, self.built, self.folder, self.terminal = config, built, folder, terminal
        self._opened, self._stopping = opened, stopping
        self._started = time.perf_counter()
        self._compile_seconds = 0.0
        self._earlier: dict[str, Any] | None = None  # progress of the starts before this one
        self._evaluations: list[dict] = []  # their figures, of all starts
        self._evaluation_seconds = 0.0  # of the longest
        self._made: Trees | None = None  # starts that are not used yet
        self._tired = False  # no better evaluation is waited for
        self._listeners = Listeners([], self._report)

    def run(self) -> None:
        """Runs to the end, from the newest sound checkpoint if there is one."""
        self._say_hello()
        phase, settings = self.built.train, self.config.evaluation
        with contextlib.ExitStack() as closing:
            self._listeners = closing.enter_context(
                open_listeners(self.config, self.folder, self.terminal.say, self._report)
            )
            checkpoints = closing.enter_context(self._checkpoints(phase))
            best = None
            if settings.best is not None:
                best = closing.enter_context(self._best_checkpoint())
            restored = self._resume(phase, checkpoints)
            resumed, state = (None, None) if restored is None else restored[:2]
            if best is not None:
                best.drop_after(resumed)
            records = self._records("evaluations.jsonl", known=self._evaluations)
            evaluations = closing.enter_context(contextlib.closing(records))
            self._keep_samples()
            self._begin_listening(resumed or 0)
            phase, evaluator = self._with_reference(phase, checkpoints)
            if state is not None:
                self._made = None  # they were only to ask the reference
            step = self._compiled_step(phase)
            if state is None:  # compiled while the starts are made and evaluated
                step.begin(laid_out(self.built, phase)[0], self._batches(phase)(0))

            def evaluate(step: int, state: TrainState) -> None:
                began = time.perf_counter()
                # Of what is broken from the start is heard at once; later on the run is kept.
                warn = functools.partial(self._warn, step=step) if step else None
                figures, responses = evaluator(state, warn)
                self._evaluations.append(json.loads(json_text({"step": step, **figures})))
                self._write_samples(step, responses)
                evaluations.write(self._evaluations[-1])
                self._listeners.on_eval(step, figures, responses)
                if best is not None and best_step(self.config, self._evaluations) == step:
                    best.save(step, state, self._progress(checkpoints), force=True)
                    best.wait()  # a checkpoint after this one must not be without it
                self._tired = self._out_of_patience()
                seconds = time.perf_counter() - began
                self._evaluation_seconds = max(self._evaluation_seconds, seconds)

            def evaluate_if_due(step: int, state: TrainState) -> None:
                every = settings.every_steps
                if step == phase.steps or (every and step % every == 0):
                    # It may take longer than a run is given to stop.
                    self._check_stop(checkpoints, self._evaluation_seconds)
                    evaluate(step, state)

            if state is None:
                state = self._place(phase, self._starts())
                evaluate(0, state)
                checkpoints.save_and_wait(0, state, self._progress(checkpoints))
            else:
                self._tired = self._out_of_patience()
                if all(record["step"] != resumed for record in self._evaluations):
                    evaluate_if_due(resumed, state)  # it was asked to stop before
            state = self._train(
                phase, step, state, checkpoints, evaluate_if_due, lambda: self._tired
            )
        done, params, frozen = int(state.step), state.params, state.frozen
        del state  # the optimizers' memory is wanted for what is read again
        finish(
            self.config,
            self.built,
            self.folder,
            self.terminal,
            step=done,
            params=params,
            frozen=frozen,
            evaluations=self._evaluations,
            seconds=self._seconds,
        )

    def _resume(self, phase: Phase, checkpoints: Checkpoints) -> Restored | None:
        """What a phase goes on from, if it was begun."""
        if agreed(lambda: not steps_in(checkpoints.folder)):
            return None
        restored = self._restore(phase, checkpoints)
        if restored.step > phase.steps:
            raise UserError(
                f"{self._folder(phase)} is at step {restored.step} already, beyond the "
                f"{phase.steps} steps of the config"
            )
        text = f"resuming from step {restored.step}"
        self.terminal.say("resume", text, phase=phase.name, step=restored.step)
        if self._earlier is None:  # else it is the warm start, gone back to for a reference
            self._earlier = restored.progress
            self._evaluations = restored.progress["evaluations"]
            self._evaluation_seconds = restored.progress["evaluation_seconds"]
            checkpoints.save_seconds = restored.progress["save_seconds"]
        return restored

    def _restore(
        self, phase: Phase, checkpoints: Checkpoints, up_to_step: int | None = None
    ) -> Restored:
        wanted, _ = laid_out(self.built, phase)
        restored = checkpoints.restore(wanted, up_to_step)
        for newer, why in restored.passed_over.items():
            text = f"the checkpoint of step {newer} is damaged ({why}): passed over"
            self.terminal.say("damaged", text, phase=phase.name, step=newer, why=why)
        return restored

    def _check_stop(self, checkpoints: Checkpoints, needed_seconds: float = 0.0) -> None:
        """Raises ``Stopped`` if the run is to stop rather than work on for so long, and save."""
        self._stopping.check(needed_seconds + 2 * checkpoints.save_seconds)

    def _say_hello(self) -> None:
        say = self.terminal.say
        say(
            "start",
            f"rljax {__version__}, run folder {self.folder}",
            run_dir=str(self.folder),
            version=__version__,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        if origin := self._opened.about["forked_from"]:
            say("forked", f"forked from {origin['run']}", **origin)
        for name, line in describe(self.built, self.config):
            say(name, f"{name:<11} {line}", text=line)
        for change in self._opened.changed:
            say("changed", f"changed     {change}", text=change)

    def _records(self, name: str, **which: Any) -> Records:
        return Records(self.folder / name if is_writer() else None, report=self._warn, **which)

    def _keep_samples(self) -> None:
        """Removes the tables of evaluations that are not known, and says of which one is lost."""
        if not is_writer():
            return
        try:
            missing = keep_samples(self.folder, [record["step"] for record in self._evaluations])
        except OSError as error:
            self._warn(f"cannot write to {self.folder / SAMPLES}: {error.strerror}")
            return
        if missing and self.built.answering is not None:
            listed = ", ".join(map(str, missing))
            self._warn(f"{self.folder / SAMPLES} lacks the tables of the evaluations at {listed}")

    def _write_samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        most = self.config.evaluation.samples
        kept = [row for row in samples if most is None or row["prompt_index"] < most]
        if not kept or not is_writer():
            return
        try:
            write_samples(self.folder, step, kept)
        except OSError as error:
            self._warn(f"cannot write {table_path(self.folder, step)}: {error.strerror}", step)

    def _warn(self, text: str, step: int | None = None) -> None:
        at = {} if step is None else {"step": step}
        words = text if step is None else f"step {step}: {text}"
        self.terminal.say("warning", words, **at, text=text)

    def _begin_listening(self, step: int) -> None:
        """Tells the listeners from where the run goes on, with what is known of that step."""
        metrics, figures = (
            next((dict(record) for record in reversed(records) if record["step"] == step), {})
            for records in (read_records(self.folder / "metrics.jsonl"), self._evaluations)
        )
        for record in (metrics, figures):
            record.pop("step", None)
        self._listeners.begin(step, metrics, figures)

    def _report(self, failure: Failure) -> None:
        """Of a listener."""
        self._warn(failure.text)
        if failure.trace is not None:
            self.terminal.note("traceback", failure.text, text=failure.text, trace=failure.trace)

    def _best_checkpoint(self) -> Checkpoints:
        """Where the best state is kept; what is frozen lies with the others."""
        folder = self._folder(self.built.train)
        return Checkpoints(
            folder / "best",
            every_steps=1,
            keep=1,
            frozen=folder / "checkpoints" / FROZEN,
            about=self._opened.about,
            on_saved=self._listeners.on_save,
        )

    def _out_of_patience(self) -> bool:
        settings = self.config.evaluation
        if settings.patience is None:
            return False
        tired = out_of_patience(
            self._evaluations, settings.best, settings.direction, settings.patience
        )
        if tired:
            text = f"no better {settings.best} in {settings.patience} evaluations: stopping early"
            self.terminal.say("early stop", text, patience=settings.patience)
        return tired

    def _with_reference(self, phase: Phase, checkpoints: Checkpoints) -> tuple[Phase, Evaluator]:
        """The phase and the evaluator, with the reference's log-probs if they are computed ahead.

        They are kept in the run's folder, for a resumed run to have the very same.
        """
        built, measuring = self.built, self.built.measuring
        if built.ahead is not None:
            tables = {"train": phase.batches.table}
            if measuring is not None:
                tables["heldout"] = measuring.table
            path = self.folder / REFERENCE
            if fault := agreed(lambda: fault_of(path, tables)):
                if agreed(path.exists):
                    self._warn(f"{path} {fault}: asking the reference anew")
                self._made = self._make_starts()
                trees = jax.jit(built.ahead.make)(self._made)
                with self._compiling("reference"):
                    at_once = self.config.data.batch_size
                    write_reference(path, tables, built.ahead, trees, built.mesh, at_once)
            tables = read_reference(path, tables)
            phase = phase._replace(batches=phase.batches.over(tables["train"]))
            if measuring is not None:
                measuring = measuring._replace(table=tables["heldout"])
        check_stop = functools.partial(self._check_stop, checkpoints)
        return phase, Evaluator(self.config, built, self._compiling, measuring, check_stop)

    def _seconds(self) -> dict[str, float]:
        """Seconds spent on this run, over all its starts."""
        here = {
            "wall_seconds": time.perf_counter() - self._started,
            "compile_seconds": self._compile_seconds,
        }
        earlier = self._earlier or {}
        return {name: earlier.get(name, 0.0) + seconds for name, seconds in here.items()}

    def _progress(self, checkpoints: Checkpoints) -> dict[str, Any]:
        """What a checkpoint holds of the host's side."""
        return {
            **self._seconds(),
            "evaluations": self._evaluations,
            "evaluation_seconds": self._evaluation_seconds,
            "save_seconds": checkpoints.save_seconds,
        }

    @contextlib.contextmanager
    def _compiling(self, what: str):
        """Says that ``what`` is being compiled, and how long it took."""
        self.terminal.say("compiling", f"compiling: {what} …", program=what)
        start = time.perf_counter()
        yield
        meet(f"compiled: {what}")
        seconds = time.perf_counter() - start
        self._compile_seconds += seconds
        text = f"compiled: {what}, in {seconds:.1f} s"
        self.terminal.say("compiled", text, program=what, seconds=round(seconds, 2))

    def _starts(self) -> Trees:
        """The starts, to be used up."""
        starts, self._made = self._made or self._make_starts(), None
        return starts

    def _make_starts(self) -> Trees:
        """What the training proper begins with: models that were read, drawn, or warmed up."""
        warm_start, starts = self.built.warm_start, self.built.networks.starts
        if warm_start is None:
            return {name: self._load(name) for name in starts}
        with self._checkpoints(warm_start) as checkpoints:
            if restored := self._resume(warm_start, checkpoints):
                state = restored.state
            else:
                state = self._place(warm_start, {"policy": self._load("policy")})
                checkpoints.save_and_wait(0, state, self._progress(checkpoints))
            state = self._train(warm_start, self._compiled_step(warm_start), state, checkpoints)
        others = {name: self._load(name) for name in starts if name != "policy"}
        return {"policy": state.params["policy"], **others}

    def _load(self, name: str) -> Params:
        return load_start(self.built, name, self.config.seed, self.terminal.say)

    def _train(
        self,
        phase: Phase,
        step: CompiledStep,
        state: TrainState,
        checkpoints: Checkpoints,
        on_state: Callable[[int, TrainState], None] = lambda step, state: None,
        enough: Callable[[], bool] = lambda: False,
    ) -> TrainState:
        """Runs a phase from where its state stands to its end, or until it is ``enough``."""
        done, trains = int(state.step), phase.name == self.built.train.name
        changes: dict[str, float] = {}
        warned: set[str] = set()

        def on_step(step: int, metrics: dict[str, float]) -> None:
            bar.step(step, {k: metrics[name] for k, name in SHOWN.items() if name in metrics})
            for name, value in moved_controllers(changes, metrics).items():
                text = f"step {step}: {name} is now {value:.4g}"
                self.terminal.say("controller", text, step=step, name=name, value=value)
            for text in new_warnings(warned, metrics):
                self._warn(text, step)
            if trains:
                self._listeners.on_step(step, metrics)

        part = self._folder(phase).relative_to(self.folder)
        records = self._records(str(part / "metrics.jsonl"), up_to_step=done)
        recorded = [record["step"] for record in read_records(self.folder / part / "metrics.jsonl")]
        if is_writer() and recorded != list(range(1, done + 1)):
            self._warn(f"{part / 'metrics.jsonl'} has records of {len(recorded)} of {done} steps")
        with (
            contextlib.closing(records),
            self.terminal.phase(phase.name, phase.steps, done) as bar,
        ):
            return run_steps(
                step,
                state,
                self._batches(phase),
                steps=phase.steps,
                checkpoints=checkpoints,
                records=records,
                on_step=on_step,
                on_state=on_state,
                enough=enough,
                speed=step_speed(self.built, self.config) if trains else unmeasured,
                progress=functools.partial(self._progress, checkpoints),
                stopping=self._stopping,
                guard=self._guard(phase, checkpoints),
            )

    def _compiled_step(self, phase: Phase) -> CompiledStep:
        _, shardings = laid_out(self.built, phase)
        compiling = functools.partial(self._compiling, phase.name)
        return CompiledStep(
            phase.train_step, shardings, self.built.mesh, compiling, phase.between, phase.parts
        )

    def _batches(self, phase: Phase) -> Callable[[int], PyTree]:
        return functools.partial(host_batch, phase.batches, mesh=self.built.mesh)

    def _guard(self, phase: Phase, checkpoints: Checkpoints) -> Guard:
        settings, built = self.config.guard, self.built

        def roll_back() -> TrainState:
            checkpoints.wait()
            restored = self._restore(phase, checkpoints, checkpoints.latest_due())
            text = f"back to the state of step {restored.step}"
            self.terminal.say("rolled back", text, phase=phase.name, step=restored.step)
            return restored.state

        folder = self._folder(phase) / "bad_steps"
        bad_steps = BadSteps(folder, built.mesh, built.tokenizer, self.terminal.say)
        return Guard(settings.max_skipped, settings.on_divergence, bad_steps.keep, roll_back)

    def _folder(self, phase: Phase) -> Path:
        return self.folder / phase.name if phase is self.built.warm_start else self.folder

    def _checkpoints(self, phase: Phase) -> Checkpoints:
        every, heard = self.config.checkpoint.every_steps, {"on_saved": self._listeners.on_save}
        if phase is self.built.warm_start:  # its steps are short: saving at that rate would cost
            every, heard = max(every, phase.steps // WARM_START_SAVES), {}
        return Checkpoints(
            self._folder(phase) / "checkpoints",
            every_steps=every,
            keep=self.config.checkpoint.keep,
            about=self._opened.about,
            **heard,
        )

    def _place(self, phase: Phase, starts: Trees) -> TrainState:
        mesh = self.built.mesh
        return place(phase.begin, starts, axes=phase.axes, optimizers=phase.optimizers, mesh=mesh)


def moved_controllers(seen: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
    """The controllers whose count of changes grew since the step before, and their new values.

    ``seen`` holds the counts of that step, and is brought up to date.
    """
    counts = {k.removesuffix("/changes"): v for k, v in metrics.items() if k.endswith("/changes")}
    counts = {name: count for name, count in counts.items() if name in metrics}
    moved = {name: metrics[name] for name, n in counts.items() if n > seen.get(name, n)}
    seen.update(counts)
    return moved


def new_warnings(said: set[str], metrics: dict[str, float]) -> list[str]:
    """What in a step's metrics a person should know of; ``said`` keeps it from being said twice."""
    cut_off = metrics.get("truncated_ratio", 0.0)
    found = {
        "truncated": cut_off > MANY_TRUNCATED
        and f"{cut_off:.0%} of the responses are cut off by the budget, sampling.max_tokens",
        "left out": metrics.get("left_out_ratio") == 1.0
        and "every response is left out, so that nothing is learned from this step",
    }
    if not metrics.get(SKIPPED):  # which is said by itself, and has made others so
        found |= {
            name: f"{name} is {value}, which is recorded as null; it affects no parameter"
            for name, value in metrics.items()
            if not math.isfinite(value)
        }
    new = {name: text for name, text in found.items() if text and name not in said}
    said.update(new)
    return list(new.values())
