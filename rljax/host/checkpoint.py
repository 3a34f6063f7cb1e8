"""Checkpoints with Orbax: the whole TrainState, written while training goes on.

What is frozen never changes, and may be most of it (the base under adapters, a reward model): it is
written once, beside the steps. Every leaf has a digest, which is compared when it is read.
"""

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from rljax.errors import UserError
from rljax.host.agree import agreed, is_writer, largest, meet
from rljax.host.digests import digests
from rljax.host.secrets import say
from rljax.host.steps import (
    FROZEN,
    META,
    STATE,
    DamagedError,
    check_digests,
    describe_leaves,
    difference,
    read_meta,
    read_part,
    sealed,
    silent_threads,
    steps_in,
)
from rljax.host.stopping import Stopped
from rljax.types import TrainState

SET_ASIDE = "set_aside"  # beside the folder of checkpoints: steps that a run does not go on from


class Restored(NamedTuple):
    """A state, and how it was found."""

    step: int
    state: TrainState
    progress: dict[str, Any]  # as it was saved with the state
    passed_over: dict[int, str]  # newer steps that are damaged, and how


class Checkpoints:
    """The checkpoints of one phase. A step that was not written to its end does not count.

    Every process writes what its devices hold, and all must call each method together. As a
    context it is closed in the end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        keep: int,
        frozen: Path | None = None,
        about: Mapping[str, Any] = MappingProxyType({}),
        on_saved: Callable[[int, Path], None] = lambda step, path: None,
    ):
        """Saves every ``every_steps`` steps and keeps the newest ``keep``, and the newest of those
        that were due.

        What is frozen is written to ``frozen``, by default beside the steps. What there is to know
        ``about`` the run, as JSON, is saved with each step. ``on_saved`` is told of each step that
        is written, with its folder, when this is next called.
        """
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails raises, and is said once
        self.folder, self._every_steps, self._keep = folder, every_steps, keep
        self._about, self._on_saved = about, on_saved
        self._begun: list[int] = []  # steps that are being written
        self.save_seconds = 0.0  # of the longest save that was waited for, in any start of the run
        self._writes_frozen = frozen is None
        # In a folder of its own: in its own one the manager removes what it takes for unfinished.
        self._frozen = (frozen or folder / FROZEN) / STATE
        self._frozen_digests: dict[str, str] | None = None
        with self._writing():
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                item_handlers={
                    STATE: ocp.StandardCheckpointHandler(),
                    META: ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(
                        [policies.LatestN(keep), policies.EveryNSteps(every_steps, max_to_keep=1)]
                    ),
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
            )

    def latest(self) -> int | None:
        """The newest complete step, sound or not, or None."""
        return self._manager.latest_step()

    def latest_due(self) -> int | None:
        """The newest complete step that was due, else the newest of all: one that was saved because
        the run was stopped is no landmark, or a resumed run would be another."""
        due = [step for step in self._manager.all_steps() if step % self._every_steps == 0]
        return max(due, default=self.latest())

    def save(self, step: int, state: TrainState, progress: dict[str, Any], *, force: bool = False):
        """Starts writing if ``step`` is due, or if ``force``; the state may be donated right after.

        ``progress`` is small JSON about the host's side, such as seconds spent. Raises
        ``UserError`` if this step, or the one before, cannot be written.
        """
        self._tell_saved()
        if step == self.latest() or not (force or step % self._every_steps == 0):
            return
        with self._writing():
            if self._frozen_digests is None:
                self._frozen_digests = digests({FROZEN: state.frozen})
            if self._writes_frozen and not self._manager.all_steps():
                self._save_frozen(state.frozen)
            saved = state.replace(frozen={})
            found = digests(saved) | self._frozen_digests
            leaves = {
                path: {**leaf, "digest": found[path]}
                for path, leaf in describe_leaves(state).items()
            }
            meta = {"step": step, "progress": progress, **self._about, "leaves": leaves}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.StandardSave(saved),
                        META: ocp.args.JsonSave(sealed(meta)),
                    }
                ),
                force=True,
            )
        self._tell_saved()  # the one before was waited for
        self._begun.append(step)

    def _tell_saved(self) -> None:
        for step in list(self._begun):
            if (path := self.folder / str(step)).is_dir():  # it has that name once it is whole
                self._begun.remove(step)
                self._on_saved(step, path)

    def restore(self, abstract: TrainState, up_to_step: int | None = None) -> Restored:
        """The newest sound state, laid out as ``abstract`` says (shapes, types, shardings).

        Newer steps, which are damaged, are set aside; not those after ``up_to_step``, from where on
        none is looked at.

        Raises ``UserError`` if none is sound, or if it is of another model, optimizer or shaping.
        """
        passed_over: dict[int, str] = {}
        there = agreed(lambda: steps_in(self.folder))
        if up_to_step is not None:
            there = [step for step in there if step <= up_to_step]
        for candidate in reversed(there):
            try:
                meta = _agreed_meta(self.folder, candidate)
                if other := difference(meta, abstract):
                    raise UserError(
                        f"the checkpoint {self.folder}/{candidate} is {other} the config; use that "
                        "run's config, or another run_dir"
                    )
                part = self.folder / str(candidate) / STATE
                state = _on_all(lambda part=part: read_part(part, abstract.replace(frozen={})))
                check_digests(meta, state)
            except DamagedError as damage:
                passed_over[candidate] = str(damage)
                continue
            frozen, self._frozen_digests = _read_frozen(self._frozen, meta, abstract.frozen)
            if up_to_step is None:
                self._drop_surplus(candidate)
                self.drop_after(candidate, set_aside=True)
            state = state.replace(frozen=frozen)
            return Restored(candidate, state, meta["progress"], passed_over)
        raise UserError(none_sound(self.folder, passed_over))

    def drop_after(self, step: int | None, *, set_aside: bool = False) -> None:
        """Removes the steps after ``step``, which belong to another course of the run, or all; or
        moves them to ``SET_ASIDE``."""
        self.wait()
        with self._writing():
            if is_writer():
                for newer in steps_in(self.folder):
                    if step is None or newer > step:
                        path = self.folder / str(newer)
                        if set_aside:
                            path.rename(_free(self.folder.parent / SET_ASIDE, str(newer)))
                        else:
                            shutil.rmtree(path)
        meet("dropped")
        self._manager.reload()

    def _drop_surplus(self, newest: int) -> None:
        """Removes the steps that are not to be kept, of which a kill may have left some files."""
        with self._writing():
            if is_writer():
                steps = [step for step in steps_in(self.folder) if step <= newest]
                due = [step for step in steps if step % self._every_steps == 0]
                for step in set(steps) - set(steps[-self._keep :]) - set(due[-1:]):
                    shutil.rmtree(self.folder / str(step))

    def save_and_wait(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Until the state is written, whether it was due or not."""
        started = time.perf_counter()
        self.save(step, state, progress, force=True)
        self.wait()
        self.save_seconds = max(self.save_seconds, time.perf_counter() - started)

    def wait(self) -> None:
        """Until everything is written."""
        with self._writing():
            self._manager.wait_until_finished()
        self._tell_saved()

    def close(self) -> None:
        """Waits until everything is written."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Stopped):
            self.close()
        elif jax.process_count() == 1:  # else the others may be gone: waiting would never end
            with contextlib.suppress(UserError):  # that of writing; another one is on its way
                self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what was not written, and from where the run goes on."""
        try:
            with silent_threads():
                yield
        except (OSError, ValueError) as error:  # of the file system, and TensorStore's for the same
            if isinstance(error, UserError):
                raise
            kept = steps_in(self.folder)
            on = f"the run goes on from step {kept[-1]}" if kept else "there is none yet"
            raise UserError(
                f"cannot write a checkpoint to {self.folder}: {_why(error)}; once that is mended, "
                f"{on}"
            ) from error

    def _save_frozen(self, frozen: dict[str, PyTree]) -> None:
        if frozen:
            if is_writer():
                self._frozen.parent.mkdir(exist_ok=True, parents=True)
            with ocp.StandardCheckpointer() as files:
                files.save(self._frozen.absolute(), frozen, force=True)


def restore_parts(
    folder: Path,
    step: int | None,
    state: dict[str, PyTree],
    frozen: dict[str, PyTree],
    frozen_folder: Path | None = None,
    report: Callable[[str], None] = say,
) -> tuple[int, dict[str, PyTree]]:
    """Some fields of the state in a checkpoint, and ``frozen``; and the checkpoint's step.

    Args:
      folder: of the checkpoints.
      step: by default the newest that is sound.
      state: shapes, types and shardings of parts of the fields wanted; the rest is not read.
      frozen: likewise, of what is frozen.
      frozen_folder: by default beside the steps.
      report: is told of a damaged step that is passed over.

    Raises ``UserError`` if there is no such checkpoint, or none that is sound.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    there = steps_in(folder)
    if (step is not None and step not in there) or not there:
        raise UserError(no_step(folder, step, there))
    faults: dict[int, str] = {}
    for candidate in reversed(there) if step is None else [step]:
        parts = {name: {} for name in state} | {FROZEN: {}}
        try:
            meta = _agreed_meta(folder, candidate)
            if other := difference(meta, {**state, FROZEN: frozen}, of_part=True):
                raise UserError(f"the checkpoint {folder}/{candidate} is {other} the config")
            if jax.tree.leaves(state):
                path = folder / str(candidate) / STATE
                parts |= _on_all(lambda path=path: read_part(path, state))
                check_digests(meta, {name: parts[name] for name in state})
        except DamagedError as damage:
            faults[candidate] = str(damage)
            report(f"{folder}/{candidate} is damaged ({damage})")
            continue
        path = (frozen_folder or folder / FROZEN) / STATE
        parts[FROZEN], _ = _read_frozen(path, meta, frozen)
        return candidate, parts
    raise UserError(none_sound(folder, faults))


def no_step(folder: Path, step: int | None, there: list[int]) -> str:
    if not there:
        return f"{folder} holds no checkpoint"
    return f"{folder} holds no step {step}; there are {', '.join(map(str, there))}"


def none_sound(folder: Path, faults: Mapping[int, str]) -> str:
    listed = "; ".join(f"step {step}: {why}" for step, why in faults.items())
    return (
        f"{folder} holds no sound checkpoint ({listed}); put one back from a copy, or begin anew "
        "in another run_dir"
    )


def _read_frozen(
    path: Path, meta: Mapping[str, Any], abstract: dict[str, PyTree]
) -> tuple[dict[str, PyTree], dict[str, str]]:
    """What is frozen, or the part of it that ``abstract`` has, and its digests."""
    if not abstract:
        return {}, {}
    try:
        frozen = _on_all(lambda: read_part(path, abstract))
        return frozen, check_digests(meta, {FROZEN: frozen})
    except DamagedError as damage:
        raise UserError(
            f"{path.parent} is damaged ({damage}), and every checkpoint needs it; put it back from "
            "a copy, or begin anew in another run_dir"
        ) from damage


def _agreed_meta(folder: Path, step: int) -> dict[str, Any]:
    def read() -> dict[str, Any] | str:
        try:
            return read_meta(folder, step)
        except DamagedError as damage:
            return str(damage)

    meta = agreed(read)
    if isinstance(meta, str):
        raise DamagedError(meta)
    return meta


def _on_all(read: Callable[[], PyTree]) -> PyTree:
    """What ``read`` returns; raises ``DamagedError`` on all processes if it does on one."""
    tree, damage = None, None
    try:
        tree = read()
    except DamagedError as error:
        damage = error
    if largest(damage is not None):
        raise damage or DamagedError("another process cannot read its part")
    return tree


def _free(folder: Path, name: str) -> Path:
    """A path in ``folder`` that is not taken: ``name``, or with a number behind it."""
    folder.mkdir(exist_ok=True)
    number, path = 1, folder / name
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path


def _why(error: Exception) -> str:
    """Why something was not written, in a few words."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if found := re.search(r"os_error_code='(\d+)'", text):  # as TensorStore has it
        text = os.strerror(int(found[1]))
    return text if len(text) <= 200 else f"{text[:200]} …"
