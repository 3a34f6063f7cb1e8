"""Length-aware shaping: what a response's length costs it, and how lengths are measured."""

from typing import NamedTuple

import jax.numpy as jnp

from rljax.errors import UserError
from rljax.lengths import band_cost, band_scale, check_band, length_figures
from rljax.masked import masked_mean
from rljax.shaping.control import as_controller, follow
from rljax.shaping.scale import RunningScale, bound_to_reward, init_scale
from rljax.shaping.select import alike_ratio
from rljax.types import Controller, Rollout, State, Transform


class BandState(NamedTuple):
    weight: State
    max_tokens: State
    reward_scale: RunningScale | tuple[()]


def length_band(
    min_tokens: int,
    max_tokens: int | Controller,
    weight: float | Controller = 0.3,
    *,
    scale_tokens: float | None = None,
    cap: float | None = 1.0,
    relative_to_reward: float | None = None,
    correct_only: bool = False,
) -> Transform:
    """Subtracts weight · min((d / scale_tokens)², cap), d the tokens outside [min, max].

    Continuous at the band's edges and 0 inside. Correct beats wrong at any length, as for any
    weight · cap below the difference between their rewards.

    Args:
      weight: in units of the reward; a number, or a controller that is told by how many tokens
        the batch's mean length exceeds the configured maximum.
      max_tokens: a number, or a controller told the same; its value is kept at ``min_tokens`` or
        above, and overlong is always judged by where it started.
      scale_tokens: the distance that costs one ``weight``; by default the width of the band.
      cap: the most that a response can pay, in units of ``weight``; None for no bound.
      relative_to_reward: if given, a batch's mean penalty is held to this share of the reward's
        magnitude, of which a running estimate is kept.
      correct_only: spare the wrong ones.

    Returns metrics ``length_penalty_mean`` and ``length_overlong_tokens``, the excess of the mean.
    """
    if relative_to_reward is not None and isinstance(weight, Controller):
        raise UserError(
            "length_band: relative_to_reward would undo what a controller does to weight; "
            "let it move max_tokens"
        )
    weight_control, max_control = as_controller(weight), as_controller(max_tokens)
    configured_max = float(max_control.value(max_control.init()))
    scale = band_scale(min_tokens, configured_max, scale_tokens, cap)
    if relative_to_reward is not None and relative_to_reward <= 0:
        raise UserError(
            f"length_band: relative_to_reward must be positive, or null; got {relative_to_reward}"
        )

    def init() -> BandState:
        scale = () if relative_to_reward is None else init_scale()
        return BandState(weight_control.init(), max_control.init(), scale)

    def apply(rewards, state: BandState, rollout: Rollout):
        lengths, counted = rollout.lengths, rewards.counted
        highest = jnp.maximum(max_control.value(state.max_tokens), min_tokens)
        penalty = band_cost(
            lengths,
            min_tokens,
            highest,
            weight_control.value(state.weight),
            scale_tokens=scale,
            cap=cap,
        )
        if correct_only:
            penalty = jnp.where(rewards.correct, penalty, 0.0)
        reward_scale = state.reward_scale
        if relative_to_reward is not None:
            penalty, reward_scale = bound_to_reward(
                penalty, rewards.raw, counted, reward_scale, share=relative_to_reward
            )
        excess = masked_mean(lengths.astype(jnp.float32), counted) - configured_max
        new_state = BandState(
            follow(weight_control, state.weight, excess, counted),
            follow(max_control, state.max_tokens, excess, counted),
            reward_scale,
        )
        metrics = {
            "length_penalty_mean": masked_mean(penalty, counted),
            "length_overlong_tokens": excess,
        }
        return rewards.replace(response=rewards.response - penalty), new_state, metrics

    return Transform(init, apply)


def length_metrics(min_tokens: int, max_tokens: int, *, groups: bool = False) -> Transform:
    """Measures the responses' lengths, in tokens, and changes nothing.

    Metrics: the ``length_figures`` of the responses that count, ``length_correct_mean`` and
    ``length_wrong_mean``; where ``groups`` are compared ``frac_reward_zero_std``, the share of
    those whose raw rewards are all the same.
    """
    check_band(min_tokens, max_tokens)

    def apply(rewards, state: State, rollout: Rollout):
        counted, tokens = rewards.counted, rollout.lengths.astype(jnp.float32)
        metrics = {
            **length_figures(rollout.lengths, rollout.truncated, counted, min_tokens, max_tokens),
            "length_correct_mean": masked_mean(tokens, rewards.correct & counted),
            "length_wrong_mean": masked_mean(tokens, ~rewards.correct & counted),
        }
        if groups:
            metrics["frac_reward_zero_std"] = alike_ratio(rewards.raw, rollout.group, counted)
        return rewards, state, metrics

    return Transform(init=lambda: (), apply=apply)
