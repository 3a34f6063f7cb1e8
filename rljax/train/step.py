"""The train step: one pure function of (state, batch), for every algorithm."""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from rljax.train.collect import Collect, state_metrics
from rljax.train.update import Update
from rljax.types import Metrics, TrainState

TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


def make_train_step(collect: Collect, update: Update) -> TrainStep:
    """fold the key → collect experience → update. Randomness depends on (key, step) alone."""

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        collect_key, update_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        experience, shaping, collected = collect(state, batch, collect_key)
        new_state, updated = update(state, experience, update_key)
        new_state = new_state.replace(step=state.step + 1, shaping=shaping)
        return new_state, collected | updated | state_metrics(shaping)

    return train_step
