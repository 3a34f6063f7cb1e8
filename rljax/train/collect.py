"""Collecting experience: draw (sample), then appraise (score → shape → estimate advantages).

Between the two the host may add columns to the rollout, where something must be done that cannot
be compiled.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from rljax.logprobs import sequence_scores, token_logprobs, token_values
from rljax.losses import explained_variance
from rljax.trees import role_params
from rljax.types import (
    REWARD_CROPPED,
    REWARD_TOKENS,
    Estimate,
    Experience,
    Metrics,
    Prompts,
    Rewards,
    Role,
    Rollout,
    Score,
    State,
    TrainState,
    Transform,
)

Sample = Callable[..., Rollout]  # (params, prompts, key, group_size=..., greedy=...)
Draw = Callable[[TrainState, PyTree, PRNGKeyArray], PyTree]  # batch -> rollout
Appraise = Callable[
    [TrainState, PyTree], tuple[Experience, State, Metrics]
]  # rollout -> experience, the new shaping state, metrics


class Judged(NamedTuple):
    """A rollout and what it earned."""

    rollout: Rollout
    rewards: Rewards
    shaping: State
    metrics: Metrics


def make_draw(roles: Mapping[str, Role], sample: Sample) -> Draw:
    """Sampling from the policy: (state, prompts, key) -> rollout."""

    def draw(state: TrainState, prompts: Prompts, key: PRNGKeyArray) -> Rollout:
        return sample(role_params(roles["policy"], state.trees), prompts, key)

    return draw


def make_judge(
    roles: Mapping[str, Role], score: Score, shaping: Transform, *, temperature: float
) -> Callable[[TrainState, Rollout], Judged]:
    """Scores and shapes rollouts.

    The reference is asked, at the temperature of the sampling, only if a shaping stage needs it.
    The reward model, if there is one, reads the rollout's own tokens, unless the host has put its
    tokens into the extras.
    """

    def judge(state: TrainState, rollout: Rollout) -> Judged:
        if shaping.needs_reference:
            reference, _ = token_logprobs(
                roles["reference"].model,
                role_params(roles["reference"], state.trees),
                rollout.tokens,
                rollout.mask,
                temperature=temperature,
            )
            rollout = rollout.replace(ref_logprobs=jnp.where(rollout.action_mask, reference, 0.0))
        if "reward" in roles:
            rollout = rollout.replace(reward_model=_reward_scores(roles["reward"], state, rollout))
        raw, correct, scored = score(rollout)
        if REWARD_CROPPED in rollout.extras:
            scored["reward_model/cropped_ratio"] = rollout.extras[REWARD_CROPPED].mean()
        token = jnp.zeros_like(rollout.logprobs)
        rewards = Rewards(raw=raw, correct=correct, response=raw, token=token)
        rewards, shaping_state, shaped = shaping.apply(rewards, state.shaping, rollout)
        return Judged(rollout, rewards, shaping_state, scored | shaped)

    return judge


def _reward_scores(role: Role, state: TrainState, rollout: Rollout):
    tokens, mask = rollout.tokens, rollout.mask
    if REWARD_TOKENS in rollout.extras:
        tokens = rollout.extras[REWARD_TOKENS]
        tokens, mask = jnp.maximum(tokens, 0), tokens >= 0
    return sequence_scores(role.model, role_params(role, state.trees), tokens, mask)


def make_appraise(
    roles: Mapping[str, Role],
    judge: Callable[[TrainState, Rollout], Judged],
    estimate: Estimate,
) -> Appraise:
    """What there is to learn from a rollout: its values, rewards and advantages."""

    def appraise(state: TrainState, rollout: Rollout):
        if "value" in roles:
            value = roles["value"]
            params = role_params(value, state.trees)
            values = token_values(value.model, params, rollout.tokens, rollout.mask)
            rollout = rollout.replace(values=values)
        rollout, rewards, shaping_state, metrics = judge(state, rollout)
        advantages, returns = estimate(rewards, rollout)
        experience = Experience(
            tokens=rollout.tokens,
            mask=rollout.mask,
            action_mask=rollout.action_mask,
            logprobs=rollout.logprobs,
            values=rollout.values,
            advantages=advantages,
            returns=returns,
        )
        metrics["response_tokens"] = rollout.action_mask.sum()
        if returns is not None and rollout.values is not None:
            metrics["value/explained_var"] = explained_variance(
                rollout.values, returns, rollout.action_mask
            )
        return experience, shaping_state, metrics

    return appraise


def draw_offline(state: TrainState, batch: Experience, key: PRNGKeyArray) -> Experience:
    """The batch is the experience already: supervised rows."""
    del state, key
    return batch


def appraise_offline(state: TrainState, batch: Experience):
    """Supervised rows are learned from as they are."""
    return batch, state.shaping, {}


def state_metrics(shaping: State) -> Metrics:
    """Every scalar of the shaping state by its path, such as ``shaping/length/weight``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(shaping)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    return {
        f"shaping/{name.removesuffix('/value')}": leaf
        for name, leaf in named.items()
        if leaf.ndim == 0
    }
