"""Estimates of KL(p ‖ q) from tokens that p drew (http://joschu.net/blog/kl-approx.html)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.errors import UserError, nearest

Estimator = Callable[[Array, Array], Array]  # (log p, log q) -> an estimate for each token


def k1(logp: Float[Array, "*n"], logq: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log p − log q: unbiased, of either sign."""
    return logp - logq


def k2(logp: Float[Array, "*n"], logq: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """½ (log p − log q)²: biased, of low variance, with the KL's own gradient."""
    return 0.5 * jnp.square(logp - logq)


def k3(logp: Float[Array, "*n"], logq: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """e^(−d) − 1 + d with d = log p − log q: unbiased, never negative. −d is held within ±20 and
    the result within ±10, as verl does, so that one token cannot swamp a batch."""
    negative = jnp.clip(logq - logp, -20.0, 20.0)
    return jnp.clip(jnp.exp(negative) - negative - 1.0, -10.0, 10.0)


def straight_through(estimate: Estimator) -> Estimator:
    """The estimate's value with the gradient of k2, which is the KL's own on average."""

    def estimate_through(logp, logq):
        square = k2(logp, logq)
        value = jax.lax.stop_gradient(estimate(logp, logq))
        return value + (square - jax.lax.stop_gradient(square))

    return estimate_through


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
LOSS_ESTIMATORS = ESTIMATORS | {"k1+": straight_through(k1), "k3+": straight_through(k3)}


def kl_estimator(name: str, *, in_loss: bool = False) -> Estimator:
    """The estimator of a name: k1, k2 or k3, and in a loss k1+ or k3+, as verl calls those whose
    gradient goes straight through to k2's."""
    known = LOSS_ESTIMATORS if in_loss else ESTIMATORS
    if name not in known:
        raise UserError(f'unknown KL estimator "{name}"; {nearest(name, known)}')
    return known[name]
