"""The train step: one pure function of (state, batch), for every algorithm."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from rljax.sharding import spread_rows
from rljax.train.collect import Appraise, Draw, state_metrics
from rljax.train.guard import guard_metrics, kept_if, sound, with_updates
from rljax.train.update import Update
from rljax.types import Evidence, Metrics, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """fold the key → draw → appraise → update. Randomness depends on (key, step) alone.

    Called, it is the whole step. Its halves, ``draw_step`` and ``learn``, are for a host that has
    something to do between them. ``with_evidence`` and ``learn_with_evidence`` also return what
    there is to see of the rows, where an update was left out.

    A state that has a rollout ``pending`` is learned from one step later than it was drawn: the
    batch is then that of the next step, and what is drawn, with the parameters before the update,
    is pending afterwards. Each rollout has the keys of the step that learns from it.
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
        if state.pending is None:
            return self.learn_with_evidence(state, self.draw_step(state, batch))
        drawn = self.draw_step(state, batch, ahead=1)
        new_state, metrics, evidence = self.learn_with_evidence(state, state.pending)
        return new_state.replace(pending=drawn), metrics, evidence

    def draw_step(self, state: TrainState, batch: PyTree, ahead: int | Array = 0) -> PyTree:
        """What is to be learned from, so many steps ``ahead``: a rollout of the batch's prompts, or
        the batch itself."""
        with jax.named_scope("sample"):
            return self.draw(state, batch, _keys(state, ahead)[0])

    def draw_part(
        self, state: TrainState, batch: PyTree, part: Int[Array, ""], *, parts: int
    ) -> Rollout:
        """Of a batch of prompts one of so many ``parts``, answered as in the whole."""
        with jax.named_scope("sample"):
            some = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:])[part], batch)
            first_prompt = part * some.tokens.shape[0]
            return self.draw(state, spread_rows(some), _keys(state)[0], first_prompt=first_prompt)

    def learn(self, state: TrainState, drawn: PyTree) -> tuple[TrainState, Metrics]:
        """The new state, and metrics."""
        return self.learn_with_evidence(state, drawn)[:2]

    def learn_parts(
        self, state: TrainState, parts: Sequence[Rollout]
    ) -> tuple[TrainState, Metrics, Evidence]:
        """``learn_with_evidence``, of the parts of a rollout in order."""
        return self.learn_with_evidence(state, joined(parts))

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


def joined(parts: Sequence[Rollout]) -> Rollout:
    """The parts of a rollout as one. Metrics of the drawing are means over the parts."""
    if len(parts) == 1:
        return parts[0]
    rows = [part.replace(metrics={}) for part in parts]
    whole = spread_rows(jax.tree.map(lambda *columns: jnp.concatenate(columns), *rows))
    metrics = [part.metrics for part in parts]
    means = jax.tree.map(lambda *values: jnp.stack(values).mean(), *metrics)
    return whole.replace(metrics=means)


def _keys(state: TrainState, ahead: int | Array = 0):
    """The keys of a step: for drawing, and for the update."""
    return jax.random.split(jax.random.fold_in(state.key, state.step + ahead))
