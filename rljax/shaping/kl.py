"""Distance from the reference policy, as a price on every token."""

import jax.numpy as jnp

from rljax.kl import kl_estimator
from rljax.masked import masked_mean
from rljax.shaping.control import as_controller
from rljax.types import Controller, Rollout, State, Transform


def kl_penalty(coef: float | Controller = 0.001, *, estimator: str = "k1") -> Transform:
    """Subtracts coef · KL estimate from the reward of each response token.

    ``coef`` is a number or a controller (``adaptive_kl``); the value used is the one before this
    batch updates it. Metric: ``reference_kl``, in nats, the mean over responses of each one's mean
    per token. Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 2.
    """
    control = as_controller(coef)
    estimate = kl_estimator(estimator)

    def apply(rewards, state: State, rollout: Rollout):
        mask = rollout.action_mask
        kl = jnp.where(mask, estimate(rollout.logprobs, rollout.ref_logprobs), 0.0)
        per_response = masked_mean(kl, mask, axis=-1)
        has_tokens = mask.any(axis=-1)
        measured = masked_mean(per_response, has_tokens)
        shaped = rewards.replace(token=rewards.token - control.value(state) * kl)
        return shaped, control.update(state, measured, mask.shape[0]), {"reference_kl": measured}

    return Transform(control.init, apply, needs_reference=True)
