"""The train step: one pure function of (state, batch), for every algorithm."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rljax.train.collect import Appraise, Draw, state_metrics
from rljax.train.guard import guard_metrics, kept_if, sound, with_updates
from rljax.train.update import Update
from rljax.types import Evidence, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """fold the key → draw → appraise → update. Randomness depends on (key, step) alone.

    Called, it is the whole step. Its halves, ``draw_step`` and ``learn``, are for a host that has
    something to do between them. ``with_evidence`` and ``learn_with_evidence`` also return what
    there is to see of the rows, where an update was left out.
    """

    draw: Draw
    appraise: Appraise
    update: Update

    def __call__(self, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        return self.with_evidence(state, batch)[:2]

    def with_evidence(
        self, state: TrainState, batch: PyTree
    ) -> tuple[TrainState, Metrics, Evidence]:
        """The whole step, and the evidence."""
        return self.learn_with_evidence(state, self.draw_step(state, batch))

    def draw_step(self, state: TrainState, batch: PyTree) -> PyTree:
        """What is to be learned from: a rollout of the batch's prompts, or the batch itself."""
        with jax.named_scope("sample"):
            return self.draw(state, batch, _keys(state)[0])

    def learn(self, state: TrainState, drawn: PyTree) -> tuple[TrainState, Metrics]:
        """The new state, and metrics."""
        return self.learn_with_evidence(state, drawn)[:2]

    def learn_with_evidence(
        self, state: TrainState, drawn: PyTree
    ) -> tuple[TrainState, Metrics, Evidence]:
        """The new state, metrics, and the evidence.

        Of rows with something at fault nothing is learned, and the shaping keeps its state; the
        step counts, so that another batch and other noise follow.
        """
        with jax.named_scope("score"):
            experience, shaping, collected, evidence = self.appraise(state, drawn)
            is_sound = sound(evidence)
            shaping = kept_if(is_sound, shaping, state.shaping)
        with jax.named_scope("update"):
            new_state, updated, updates = self.update(state, experience, _keys(state)[1], is_sound)
            skipped = jnp.where(updates.applied.all(), 0, state.skipped + 1)
            evidence = with_updates(evidence, updates)
        new_state = new_state.replace(step=state.step + 1, skipped=skipped, shaping=shaping)
        guarded = guard_metrics(evidence, updates, skipped)
        return new_state, collected | updated | guarded | state_metrics(shaping), evidence


def _keys(state: TrainState):
    """The step's keys: for drawing, and for the update."""
    return jax.random.split(jax.random.fold_in(state.key, state.step))
