"""Measuring a policy on held-out prompts, greedily and as sampled, without learning from it."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from rljax.train.collect import Draw, Sample
from rljax.trees import role_params
from rljax.types import Prompts, Role, Rollout, TrainState


def make_draw_heldout(roles: Mapping[str, Role], sample: Sample, *, samples: int = 1) -> Draw:
    """(state, prompts, key) -> 1 + ``samples`` responses per prompt, adjacent: the greedy one, then
    sampled ones."""

    def draw(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Rollout:
        greedy = jnp.tile(jnp.array([True] + [False] * samples), prompts.tokens.shape[0])
        params = role_params(roles["policy"], state.trees)
        return sample(params, prompts, key, group_size=1 + samples, greedy=greedy)

    return draw
