"""Checkpoints with Orbax: the whole TrainState, written while training goes on.

What is frozen never changes, and may be most of it (the base under adapters, a reward model): it is
written once, beside the steps.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from rljax.errors import UserError
from rljax.host.agree import agreed
from rljax.host.stopping import Stopped
from rljax.types import TrainState

STATE, PROGRESS, FROZEN = "state", "progress", "frozen"


class Checkpoints:
    """The checkpoints of one phase. A step that was not written to its end does not count.

    Every process writes what its devices hold, and all must call each method together. As a
    context it is closed in the end.
    """

    def __init__(self, folder: Path, *, every_steps: int, keep: int, frozen: Path | None = None):
        """Saves every ``every_steps`` steps and keeps the newest ``keep``.

        What is frozen is written to ``frozen``, by default beside the steps, unless it is there.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder, self._every_steps = folder, every_steps
        # In a folder of its own: in its own one the manager removes what it takes for unfinished.
        self._frozen = (frozen or folder / FROZEN).absolute() / STATE
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                STATE: ocp.StandardCheckpointHandler(),
                PROGRESS: ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def latest_due(self) -> int | None:
        """The newest complete step that was due, else the newest of all: one that was saved because
        the run was stopped is no landmark, or a resumed run would be another."""
        due = [step for step in self._manager.all_steps() if step % self._every_steps == 0]
        return max(due, default=self.latest())

    def save(self, step: int, state: TrainState, progress: dict[str, Any], *, force: bool = False):
        """Starts writing if ``step`` is due, or if ``force``; the state may be donated right after.

        ``progress`` is small JSON about the host's side, such as seconds spent.
        """
        if step == self.latest() or not (force or step % self._every_steps == 0):
            return
        if self.latest() is None and not self._manager.all_steps():
            self._save_frozen(state.frozen)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(state.replace(frozen={})),
                    PROGRESS: ocp.args.JsonSave(progress),
                }
            ),
            force=True,
        )

    def restore(
        self, abstract: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step, by default the newest, laid out as ``abstract`` says (shapes, types,
        shardings), and progress.

        Raises ``UserError`` if the checkpoint is of another model.
        """
        step = self.latest() if step is None else step
        self._check_shapes(step, abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardRestore(abstract.replace(frozen={})),
                    PROGRESS: ocp.args.JsonRestore(),
                }
            ),
        )
        frozen = {}
        if abstract.frozen:
            with ocp.StandardCheckpointer() as files:
                frozen = files.restore(self._frozen, abstract.frozen)
        return restored[STATE].replace(frozen=frozen), restored[PROGRESS]

    def wait(self) -> None:
        """Until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Stopped) or jax.process_count() == 1:
            self.close()  # else the others may be gone: waiting for them would never end

    def _save_frozen(self, frozen: dict[str, PyTree]) -> None:
        if frozen and not agreed(self._frozen.exists):
            self._frozen.parent.mkdir(exist_ok=True, parents=True)
            with ocp.StandardCheckpointer() as files:
                files.save(self._frozen, frozen, force=True)

    def _check_shapes(self, step: int, abstract: TrainState) -> None:
        saved = _shapes(self._manager.item_metadata(step)[STATE].tree)
        if self._frozen.exists():
            with ocp.StandardCheckpointer() as files:
                kept = files.metadata(self._frozen).item_metadata.tree
            saved |= _shapes({FROZEN: kept})
        wanted = _shapes(abstract)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint {self.folder}/{step} is of a different model: {name} is "
                    f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} in the "
                    "config; use that run's config, or another run_dir"
                )


def restore_parts(
    folder: Path,
    step: int | None,
    state: dict[str, PyTree],
    frozen: dict[str, PyTree],
    frozen_folder: Path | None = None,
) -> tuple[int, dict[str, PyTree]]:
    """Some fields of the state in a checkpoint, and ``frozen``; and the checkpoint's step.

    Args:
      folder: of the checkpoints.
      step: by default the newest.
      state: shapes, types and shardings of parts of the fields wanted; the rest is not read.
      frozen: likewise, of what is frozen.
      frozen_folder: by default beside the steps.

    Raises ``UserError`` if there is no such checkpoint.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
    if not steps:
        raise UserError(f"{folder} holds no checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{folder} holds no step {step}; there are {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    parts = {name: {} for name in state} | {"frozen": {}}
    if jax.tree.leaves(state):
        parts |= _restore_part(folder.absolute() / str(step) / STATE, state)
    if frozen:
        path = (frozen_folder or folder / FROZEN).absolute() / STATE
        parts["frozen"] = _restore_part(path, frozen)
    return step, parts


def _restore_part(path: Path, abstract: PyTree) -> PyTree:
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path, args=arguments)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    def shape(leaf) -> tuple[int, ...]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as its data
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(leaf.shape)

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): shape(leaf) for path, leaf in leaves
    }
