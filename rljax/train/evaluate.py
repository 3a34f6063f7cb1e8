"""Measuring a policy on held-out prompts, greedily and as sampled, without learning from it."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rljax.train.collect import Draw, Sample
from rljax.trees import role_params
from rljax.types import Prompts, Role, Rollout, TrainState


def make_draw_both(roles: Mapping[str, Role], sample: Sample) -> Draw:
    """(state, prompts, key) -> two responses per prompt, adjacent: the greedy one, and one
    sampled."""

    def draw(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Rollout:
        greedy = jnp.tile(jnp.array([True, False]), prompts.tokens.shape[0])
        params = role_params(roles["policy"], state.trees)
        return sample(params, prompts, key, group_size=2, greedy=greedy)

    return draw
