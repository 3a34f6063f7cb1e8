"""Collecting experience: sample → score → shape → estimate advantages."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from rljax.logprobs import token_logprobs, token_values
from rljax.losses import explained_variance
from rljax.types import (
    Estimate,
    Experience,
    Metrics,
    Model,
    Prompts,
    Rewards,
    Rollout,
    Score,
    State,
    TrainState,
    Transform,
)

Sample = Callable[..., Rollout]  # (params, prompts, key, group_size=..., greedy=...)
Collect = Callable[
    [TrainState, PyTree, PRNGKeyArray], tuple[Experience, State, Metrics]
]  # -> experience, the new shaping state, metrics


class Judged(NamedTuple):
    """A rollout and what it earned."""

    rollout: Rollout
    rewards: Rewards
    shaping: State
    metrics: Metrics


def make_judge(
    models: Mapping[str, Model], score: Score, shaping: Transform, *, temperature: float
) -> Callable[[TrainState, Rollout], Judged]:
    """Scores and shapes rollouts. The reference is asked, at the temperature of the sampling, only
    if a shaping stage needs it."""

    def judge(state: TrainState, rollout: Rollout) -> Judged:
        if shaping.needs_reference:
            reference, _ = token_logprobs(
                models["reference"],
                state.frozen["reference"],
                rollout.tokens,
                rollout.mask,
                temperature=temperature,
            )
            rollout = rollout.replace(ref_logprobs=jnp.where(rollout.action_mask, reference, 0.0))
        raw, correct, scored = score(rollout)
        token = jnp.zeros_like(rollout.logprobs)
        rewards = Rewards(raw=raw, correct=correct, response=raw, token=token)
        rewards, shaping_state, shaped = shaping.apply(rewards, state.shaping, rollout)
        return Judged(rollout, rewards, shaping_state, scored | shaped)

    return judge


def make_collect(
    models: Mapping[str, Model],
    sample: Sample,
    judge: Callable[[TrainState, Rollout], Judged],
    estimate: Estimate,
) -> Collect:
    """On-policy collection: (state, prompts, key) -> (experience, shaping state, metrics)."""

    def collect(state: TrainState, prompts: Prompts, key: PRNGKeyArray):
        rollout = sample(state.params["policy"], prompts, key)
        if "value" in models:
            values = token_values(
                models["value"], state.params["value"], rollout.tokens, rollout.mask
            )
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

    return collect


def collect_offline(state: TrainState, batch: Experience, key: PRNGKeyArray):
    """The batch is the experience already: supervised rows."""
    del key
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
