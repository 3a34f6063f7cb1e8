"""The train step: one pure function of (state, batch), for every algorithm."""

import dataclasses

import jax
from jaxtyping import PyTree

from rljax.train.collect import Appraise, Draw, state_metrics
from rljax.train.update import Update
from rljax.types import Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """fold the key → draw → appraise → update. Randomness depends on (key, step) alone.

    Called, it is the whole step. Its halves, ``draw_step`` and ``learn``, are for a host that has
    something to do between them.
    """

    draw: Draw
    appraise: Appraise
    update: Update

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        return self.learn(state, self.draw_step(state, batch))

    def draw_step(self, state: TrainState, batch: PyTree) -> PyTree:
        """What is to be learned from: a rollout of the batch's prompts, or the batch itself."""
        with jax.named_scope("sample"):
            return self.draw(state, batch, _keys(state)[0])

    def learn(self, state: TrainState, drawn: PyTree) -> tuple[TrainState, Metrics]:
        """The new state, and metrics."""
        with jax.named_scope("score"):
            experience, shaping, collected = self.appraise(state, drawn)
        with jax.named_scope("update"):
            new_state, updated = self.update(state, experience, _keys(state)[1])
        new_state = new_state.replace(step=state.step + 1, shaping=shaping)
        return new_state, collected | updated | state_metrics(shaping)


def _keys(state: TrainState):
    """The step's keys: for drawing, and for the update."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))
