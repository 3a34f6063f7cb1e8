"""Collecting experience: draw (sample), then appraise (score → shape → estimate advantages).

Between the two the host may add columns to the rollout, where something must be done that cannot
be compiled.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from rljax.advantages import learned_tokens
from rljax.grouped import group_count
from rljax.logprobs import sequence_scores, token_logprobs, token_values
from rljax.losses import Correction, explained_variance
from rljax.sharding import spread_rows
from rljax.train.buckets import MapRows, map_rows
from rljax.train.guard import examine_rollout
from rljax.trees import by_path, role_params
from rljax.types import (
    REWARD_CROPPED,
    REWARD_TOKENS,
    ROW,
    Estimate,
    Evidence,
    Experience,
    Metrics,
    Prompts,
    Rewards,
    Role,
    Rollout,
    Score,
    Scored,
    State,
    TrainState,
    Transform,
)

Sample = Callable[..., Rollout]  # (params, prompts, key, group_size=..., greedy=..., first_row=...)
ScoreRollout = Callable[[TrainState, Rollout], Scored]
Draw = Callable[..., PyTree]  # (state, batch, key) -> rollout


class Appraised(NamedTuple):
    """What there is to learn from a rollout, and what is at fault in it."""

    experience: Experience
    shaping: State  # the new one
    metrics: Metrics
    evidence: Evidence


Appraise = Callable[[TrainState, PyTree], Appraised]  # of a rollout, or of given rows


class Judged(NamedTuple):
    """A rollout and what it earned."""

    rollout: Rollout
    scored: Scored
    rewards: Rewards
    shaping: State
    metrics: Metrics


def make_draw(roles: Mapping[str, Role], sample: Sample, *, yardstick: bool = False) -> Draw:
    """Sampling from the policy: (state, prompts, key) -> rollout.

    With a ``yardstick``, each group begins with one response more: the greedy one. Prompts that are
    a part of more come with the number of the ``first_prompt``: their responses are those of the
    whole.
    """
    group_size = sample.keywords["group_size"] + yardstick
    first = np.arange(group_size) == 0

    def draw(
        state: TrainState,
        prompts: Prompts,
        key: PRNGKeyArray,
        first_prompt: int | Int[Array, ""] = 0,
    ) -> Rollout:
        params = role_params(roles["policy"], state.trees)
        greedy = jnp.tile(first, prompts.tokens.shape[0]) if yardstick else False
        rollout = sample(
            params,
            prompts,
            key,
            group_size=group_size,
            greedy=greedy,
            first_row=first_prompt * group_size,
        )
        return rollout.replace(group=first_prompt + rollout.group)

    return draw


def make_score(
    roles: Mapping[str, Role], score: Score, *, over_rows: MapRows = map_rows
) -> ScoreRollout:
    """(state, rollout) -> what the task says of it.

    The reward model, if there is one, reads the rollout's own tokens, unless the host has put its
    tokens into the extras. ``over_rows`` says in which parts it reads them.
    """

    def score_rollout(state: TrainState, rollout: Rollout) -> Scored:
        if "reward" in roles:
            scores = _reward_scores(roles["reward"], state, rollout, over_rows)
            rollout = rollout.replace(reward_model=scores)
        scored = score(rollout)
        if REWARD_CROPPED in rollout.extras:
            scored.metrics["reward_model/cropped_ratio"] = rollout.extras[REWARD_CROPPED].mean()
        return scored

    return score_rollout


def make_judge(
    roles: Mapping[str, Role],
    score: ScoreRollout,
    shaping: Transform,
    *,
    temperature: float,
    yardstick: bool = False,
    over_rows: MapRows = map_rows,
) -> Callable[[TrainState, Rollout], Judged]:
    """Scores and shapes rollouts.

    The reference is asked, at the temperature of the sampling and in parts as ``over_rows`` has
    them, only if a shaping stage needs it.
    With a ``yardstick`` in each group, a group where its reward failed is not learned from.
    """

    def judge(state: TrainState, rollout: Rollout) -> Judged:
        if shaping.needs_reference:
            reference = _logprobs(roles["reference"], state, rollout, temperature, over_rows)
            rollout = rollout.replace(ref_logprobs=jnp.where(rollout.action_mask, reference, 0.0))
        scored = score(state, rollout)
        counted = scored.counted & ~rollout.greedy
        if yardstick:
            counted &= group_count(rollout.group, rollout.greedy & scored.counted) > 0
        rewards = Rewards(
            raw=scored.raw,
            correct=scored.correct,
            counted=counted,
            response=scored.raw,
            token=jnp.zeros_like(rollout.logprobs),
        )
        rewards, shaping_state, shaped = shaping.apply(rewards, state.shaping, rollout)
        return Judged(rollout, scored, rewards, shaping_state, scored.metrics | shaped)

    return judge


def _logprobs(
    role: Role, state: TrainState, rollout: Rollout, temperature: float, over_rows: MapRows
):
    params = role_params(role, state.trees)

    def of_rows(tokens, mask):
        return token_logprobs(role.model, params, tokens, mask, temperature=temperature)[0]

    return over_rows(of_rows, rollout.tokens, rollout.mask)


def _values(role: Role, state: TrainState, rollout: Rollout, over_rows: MapRows):
    of_rows = functools.partial(token_values, role.model, role_params(role, state.trees))
    return over_rows(of_rows, rollout.tokens, rollout.mask)


def _reward_scores(role: Role, state: TrainState, rollout: Rollout, over_rows: MapRows):
    tokens, mask = rollout.tokens, rollout.mask
    if REWARD_TOKENS in rollout.extras:
        tokens = rollout.extras[REWARD_TOKENS]
        tokens, mask = jnp.maximum(tokens, 0), tokens >= 0
    of_rows = functools.partial(sequence_scores, role.model, role_params(role, state.trees))
    return over_rows(of_rows, tokens, mask)


def make_appraise(
    roles: Mapping[str, Role],
    judge: Callable[[TrainState, Rollout], Judged],
    estimate: Estimate,
    *,
    temperature: float,
    correction: Correction | None = None,
    over_rows: MapRows = map_rows,
) -> Appraise:
    """What there is to learn from a rollout: its values, rewards and advantages.

    The networks read the rows in parts as ``over_rows`` has them.

    With a ``correction``, the log-probs that the update starts from are the policy's of now, and
    each token weighs by how they differ from those it was drawn with.
    """

    def appraise(state: TrainState, rollout: Rollout):
        if "value" in roles:
            rollout = rollout.replace(values=_values(roles["value"], state, rollout, over_rows))
        rollout, scored, rewards, shaping_state, metrics = judge(state, rollout)
        logprobs, importance = rollout.logprobs, None
        if correction is not None:
            logprobs = _logprobs(roles["policy"], state, rollout, temperature, over_rows)
            importance, kept, corrected = correction(logprobs, rollout, rewards.counted)
            rewards = rewards.replace(counted=rewards.counted & kept)
            metrics |= corrected
        advantages, returns = estimate(rewards, rollout)
        learned = learned_tokens(rewards, rollout)
        metrics |= rollout.metrics | {"response_tokens": rollout.action_mask.sum()}
        if returns is not None and rollout.values is not None:
            metrics["value/explained_var"] = explained_variance(rollout.values, returns, learned)
        experience = Experience(
            tokens=rollout.tokens,
            mask=rollout.mask,
            action_mask=learned,
            logprobs=logprobs,
            ref_logprobs=rollout.ref_logprobs if rewards.kl_coef is not None else None,
            kl_coef=rewards.kl_coef,
            importance=importance,
            values=rollout.values,
            advantages=advantages,
            returns=returns,
        )
        source = {"prompt_index": rollout.group}
        if ROW in rollout.extras:
            source["data_row"] = rollout.extras[ROW]
        evidence = examine_rollout(rollout, scored, rewards, experience).replace(source=source)
        return Appraised(experience, shaping_state, metrics, evidence)

    return appraise


def without_yardsticks(appraise: Appraise, group_size: int) -> Appraise:
    """``appraise``, and then only the ``group_size`` rows behind each group's greedy first one."""

    def drop(column):
        groups = column.reshape(-1, group_size + 1, *column.shape[1:])
        return spread_rows(groups[:, 1:].reshape(-1, *column.shape[1:]))

    def appraise_rest(state: TrainState, rollout: Rollout):
        appraised = appraise(state, rollout)
        evidence = appraised.evidence
        return appraised._replace(
            experience=jax.tree.map(drop, appraised.experience),
            evidence=evidence.replace(learned=drop(evidence.learned)),
        )

    return appraise_rest


def state_metrics(shaping: State) -> Metrics:
    """Every scalar of the shaping state by its path, such as ``shaping/length/weight``."""
    return {
        f"shaping/{name.removesuffix('/value')}": leaf
        for name, leaf in by_path(shaping).items()
        if leaf.ndim == 0
    }
