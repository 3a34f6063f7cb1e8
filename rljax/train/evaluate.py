"""Measuring a policy on held-out prompts, greedily and as sampled, without learning from it."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rljax.train.collect import Judged, Sample
from rljax.types import Prompts, Rollout, TrainState


def make_evaluate(
    sample: Sample, judge: Callable[[TrainState, Rollout], Judged], *, temperature: float
) -> Callable[[TrainState, Prompts, PRNGKeyArray], Judged]:
    """(state, prompts, key) -> two judged responses per prompt: the greedy one, and one sampled at
    ``temperature``, adjacent. The shaping state is read and not advanced."""

    def evaluate(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Judged:
        temperatures = jnp.tile(jnp.array([0.0, temperature]), prompts.tokens.shape[0])
        rollout = sample(
            state.params["policy"], prompts, key, group_size=2, temperature=temperatures
        )
        return judge(state, rollout)

    return evaluate
