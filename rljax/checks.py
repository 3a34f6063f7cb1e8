"""What is seen to before a run begins: that its functions and its files fit together."""

import contextlib

import jax

from rljax.build import Build
from rljax.errors import UserError
from rljax.host.weights import Weights
from rljax.phases import Phase, with_columns
from rljax.train import state_shardings
from rljax.trees import by_path
from rljax.types import Experience, Prompts, TrainState


def abstract_state(built: Build, phase: Phase) -> TrainState:
    """The shapes of the state that a phase begins with."""
    starts = {name: start.abstract for name, start in built.networks.starts.items()}
    return jax.eval_shape(phase.begin, starts)


def laid_out(built: Build, phase: Phase) -> tuple[TrainState, TrainState]:
    """The shapes of that state with their shardings, and the shardings alone."""
    state = abstract_state(built, phase)
    places = state_shardings(state, phase.axes, phase.optimizers, built.mesh)

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, state, places), places


def first_batch(built: Build) -> Prompts | Experience:
    """A batch as the step sees it, for its shapes."""
    batch = built.train.batches[0]
    return batch if built.ahead is None else with_columns(batch)


def check_weights(built: Build) -> None:
    """Sees that every folder has the tensors that its config says, without reading them."""
    for start in built.networks.starts.values():
        if start.source.folder is not None:
            with contextlib.closing(Weights(start.source.folder)) as weights:
                weights.check(start.tensors())


def check_step(built: Build) -> None:
    """Traces a step and an evaluation on shapes alone, so that a faulty reward or shaping stage is
    found before anything runs."""
    state, key = abstract_state(built, built.train), jax.random.key(0)
    step, batch = built.train.train_step, first_batch(built)
    drawn = jax.eval_shape(step.draw_step, state, batch)
    after, metrics = jax.eval_shape(step.learn, state, built.train.between.abstract(drawn))
    if built.answering is not None:
        answering = built.answering
        drawn = jax.eval_shape(answering.draw, state, answering.chunks()[0], key)
        jax.eval_shape(answering.judge, state, answering.between.abstract(drawn))
    if built.measuring is not None:
        measuring = built.measuring
        batch = measuring.table.take(measuring.items()[0])
        batch = batch if built.ahead is None else with_columns(batch)
        jax.eval_shape(measuring.measure, state, batch)
    for (name, old), new in zip(
        by_path(state.shaping).items(), jax.tree.leaves(after.shaping), strict=True
    ):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise UserError(
                f"shaping: the state {name} starts as {old.dtype}{list(old.shape)} and is "
                f"{new.dtype}{list(new.shape)} after a step; it must keep its shape and type"
            )
    for name, metric in metrics.items():
        if metric.shape:
            raise UserError(f'the metric "{name}" must be one number, has shape {metric.shape}')
