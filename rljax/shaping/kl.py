"""Distance from the reference policy, priced in the reward or in the loss."""

import jax.numpy as jnp

from rljax.kl import Estimator, kl_estimator
from rljax.masked import masked_mean
from rljax.shaping.control import as_controller, follow
from rljax.types import Controller, Rewards, Rollout, State, Transform


def kl_penalty(coef: float | Controller = 0.001, *, estimator: str = "k1") -> Transform:
    """Subtracts coef · KL estimate from the reward of each response token.

    ``coef`` is a number or a controller (``adaptive_kl``); the value used is the one before this
    batch updates it. Metric: ``reference_kl``, in nats, the mean over responses of each one's mean
    per token. Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 2.
    """
    control = as_controller(coef)
    estimate = kl_estimator(estimator)

    def apply(rewards, state: State, rollout: Rollout):
        kl, measured = _measure(estimate, rewards, rollout)
        shaped = rewards.replace(token=rewards.token - control.value(state) * kl)
        return shaped, follow(control, state, measured, rewards.counted), {"reference_kl": measured}

    return Transform(control.init, apply, needs_reference=True)


def kl_in_loss(coef: float | Controller, *, estimator: str = "k3") -> Transform:
    """Leaves the rewards as they are, and hands ``coef`` to the loss, which adds coef · KL.

    It is a stage of an algorithm (``kl_coef``), where a controller's state has its place; the
    algorithm's loss takes the estimate. Metric: ``reference_kl``, as of ``kl_penalty``.
    """
    control = as_controller(coef)
    estimate = kl_estimator(estimator, in_loss=True)

    def apply(rewards, state: State, rollout: Rollout):
        kl, measured = _measure(estimate, rewards, rollout)
        priced = rewards.replace(kl_coef=jnp.full(len(kl), control.value(state)))
        return priced, follow(control, state, measured, rewards.counted), {"reference_kl": measured}

    return Transform(control.init, apply, needs_reference=True)


def _measure(estimate: Estimator, rewards: Rewards, rollout: Rollout):
    """The estimate at each token, and the mean over responses of its mean per token."""
    mask = rollout.action_mask
    kl = jnp.where(mask, estimate(rollout.logprobs, rollout.ref_logprobs), 0.0)
    per_response = masked_mean(kl, mask, axis=-1)
    return kl, masked_mean(per_response, mask.any(axis=-1) & rewards.counted)
