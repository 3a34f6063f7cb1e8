"""Estimates of KL(p ‖ q) from tokens that p drew (http://joschu.net/blog/kl-approx.html)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.errors import UserError, nearest


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


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimator(name: str):
    """The estimator of a name: k1, k2 or k3."""
    if name not in ESTIMATORS:
        raise UserError(f'unknown KL estimator "{name}"; {nearest(name, ESTIMATORS)}')
    return ESTIMATORS[name]
