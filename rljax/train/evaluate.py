"""Measuring a policy on held-out prompts, greedily and as sampled, without learning from it."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rljax.train.collect import Judged, Sample
from rljax.types import Prompts, Rollout, TrainState


def make_evaluate(
    sample: Sample, judge: Callable[[TrainState, Rollout], Judged]
) -> Callable[[TrainState, Prompts, PRNGKeyArray], Judged]:
    """(state, prompts, key) -> two judged responses per prompt, adjacent: the greedy one, and one
    sampled. The shaping state is read and not advanced."""

    def evaluate(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Judged:
        greedy = jnp.tile(jnp.array([True, False]), prompts.tokens.shape[0])
        rollout = sample(state.params["policy"], prompts, key, group_size=2, greedy=greedy)
        return judge(state, rollout)

    return evaluate
