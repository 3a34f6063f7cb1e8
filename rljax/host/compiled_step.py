"""A step compiled ahead of time, and what of it the host does while the devices work."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from rljax.host.between import NOTHING, Between
from rljax.sharding import replicated, rollout_shardings, row_sharding
from rljax.types import Evidence, Metrics, Rollout, TrainState


class Programs(NamedTuple):
    """Of a step, lowered or compiled: the whole of it, or its two halves."""

    learn: Any  # (state, batch or the parts of what was drawn) -> state, metrics, evidence
    draw: Any = None  # (state, batch, number) -> rollout, the number after it


def lower_step(
    step,
    state: TrainState,
    batch: PyTree,
    *,
    shardings: TrainState,
    mesh: Mesh,
    between: Between = NOTHING,
    parts: int = 1,
) -> Programs:
    """The programs of a ``TrainStep``, from arrays or shapes; ``learn`` takes the state's buffers.

    It is one program, unless the host adds columns ``between`` drawing and learning. Then the
    prompts may be answered in ``parts``.
    """
    finish = {"donate_argnums": 0, "out_shardings": (shardings, replicated(mesh), None)}
    if not between.columns:
        return Programs(jax.jit(step.with_evidence, **finish).lower(state, batch))
    draw = lower_draw(step, state, batch, mesh=mesh, parts=parts)
    drawn, _ = draw.out_info
    # What is learned from has the buffers of what was pending: they are not given twice.
    finish["out_shardings"] = (shardings.replace(pending=None), replicated(mesh), None)
    learn = jax.jit(step.learn_parts, **finish)
    added = [between.abstract(drawn, mesh)] * parts
    return Programs(learn.lower(state.replace(pending=None), added), draw)


def lower_draw(step, state: TrainState, batch: PyTree, *, mesh: Mesh, parts: int = 1):
    """(state, batch, number) -> rollout, the number after it. The number is that of a part; of a
    state that has a rollout pending, how many steps ahead the batch is."""
    of_part = functools.partial(step.draw_part, parts=parts)
    answer = of_part if state.pending is None else step.draw_step

    def draw(state: TrainState, batch: PyTree, number):
        return answer(state, batch, number), number + 1

    number = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(mesh))
    drawn, _ = jax.eval_shape(draw, state, batch, number)
    places = rollout_shardings(drawn, mesh), replicated(mesh)
    return jax.jit(draw, out_shardings=places).lower(state, batch, number)


class CompiledStep:
    """A step compiled ahead of time, once for each shape of batch, its state donated.

    The state's shardings are pinned, so that every step's state can enter the next. A compilation
    is waited for within ``compiling()``, which may announce and time it.

    What the host has to do ``between`` drawing and learning, it does for one of the ``parts`` of a
    rollout while the devices draw the next one; of a state that has a rollout pending, while they
    draw that of the next step.
    """

    def __init__(
        self,
        step,
        shardings: TrainState,
        mesh: Mesh,
        compiling: Callable[[], AbstractContextManager],
        between: Between = NOTHING,
        parts: int = 1,
    ):
        self._step, self._between, self._parts = step, between, parts
        self._shardings, self._mesh = shardings, mesh
        self._programs: dict[Any, Programs] = {}
        self._begun: dict[Any, Future[Programs]] = {}
        self._compiling = compiling
        self._aside = ThreadPoolExecutor(max_workers=1)  # compiles; sees when the devices are done
        self.ahead = 0 if shardings.pending is None else 1  # steps that its batches are ahead

    def place(self, batch: PyTree) -> PyTree:
        """The batch on its way to the devices, which may be at work.

        Where there are several hosts, ``batch`` holds the rows of this one.
        """
        rows = row_sharding(self._mesh)
        return jax.tree.map(lambda x: place_rows(x, rows), batch)

    def begin(self, state: TrainState, batch: PyTree) -> None:
        """Compiles the step for such a state, of shapes and shardings, and such a batch, while the
        caller does something else."""
        batch = self.place(batch)
        self._begun[_shapes(batch)] = self._aside.submit(self._compile, state, batch)

    def prepare(self, state: TrainState, batch: PyTree) -> PyTree:
        """The batch on the devices, if it is not there yet; compiles the step if its shapes are
        new."""
        batch = self.place(batch)
        shapes = _shapes(batch)
        if shapes not in self._programs:
            with self._compiling():
                begun = self._begun.pop(shapes, None)
                programs = begun.result() if begun else self._compile(state, batch)
                self._programs[shapes] = programs
        return batch

    def _compile(self, state: TrainState, batch: PyTree) -> Programs:
        with jax.set_mesh(self._mesh):  # of this thread
            lowered = lower_step(
                self._step,
                state,
                batch,
                shardings=self._shardings,
                mesh=self._mesh,
                between=self._between,
                parts=self._parts,
            )
            return Programs(*(program and program.compile() for program in lowered))

    def prime(self, state: TrainState, batch: PyTree) -> TrainState:
        """The state with the rollout pending that its next step learns from, of that step's
        batch."""
        batch = self.prepare(state, batch)
        programs = self._programs[_shapes(batch)]
        if programs.draw is None:
            with self._compiling():
                draw = lower_draw(self._step, state, batch, mesh=self._mesh).compile()
            programs = self._programs[_shapes(batch)] = programs._replace(draw=draw)
        drawn, _ = programs.draw(state, batch, np.int32(0))
        return state.replace(pending=drawn)

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics, Evidence]:
        """The next state, metrics and evidence, which are still on the devices; ``batch`` is
        prepared."""
        programs = self._programs[_shapes(batch)]
        if not self._between.columns:
            return programs.learn(state, batch)
        drawn, number = [], np.int32(self.ahead)
        for _ in range(self._parts):
            # The number is of the program before, so that one part is drawn after the other.
            rollout, number = programs.draw(state, batch, number)
            drawn.append(rollout)
        over = self._aside.submit(_over, drawn)
        waited = 0.0

        def arriving(rollouts: Iterable[Rollout]) -> Iterator[Rollout]:
            nonlocal waited
            for rollout in rollouts:
                asked = time.perf_counter()
                jax.block_until_ready(rollout)
                waited += time.perf_counter() - asked
                yield rollout

        began = time.perf_counter()
        added = list(self._between.add(arriving([state.pending] if self.ahead else drawn)))
        ended = time.perf_counter()
        state, metrics, evidence = programs.learn(state.replace(pending=None), added)
        if self.ahead:
            state = state.replace(pending=drawn[0])
        timed = {
            "perf/reward_seconds": np.float64(ended - began - waited),
            "perf/reward_wait_seconds": np.float64(max(ended - over.result(), 0.0)),
        }
        return state, metrics | timed, evidence


def place_rows(x: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """An array of the rows of every host, from those of this one; one that is placed stays."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array):
        return x
    return jax.make_array_from_process_local_data(sharding, x)


def _shapes(batch: PyTree) -> tuple[tuple[int, ...], ...]:
    return tuple(x.shape for x in jax.tree.leaves(batch))


def _over(drawn: list[Rollout]) -> float:
    """When the devices have drawn it all."""
    jax.block_until_ready(drawn)
    return time.perf_counter()
