"""Losses of single responses that are labelled desirable or not, row by row: [B] -> [B].

They take r = log π/π_ref of whole responses, in nats, and a baseline, through which no gradient
flows (``baseline``).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.errors import UserError, nearest

KINDS = ("kto", "apo_zero_unpaired")


def kto(
    ratios: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    baseline: Float[Array, " B"] | None,
    *,
    kind: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, " B"]:
    """λ_y − v of a human's value of gains and losses:

        λ_D·(1 − σ(β·(r − z₀))) where desirable, λ_U·(1 − σ(β·(z₀ − r))) else

    ``baseline`` is z₀ in nats (``kto_reference``); ``apo_zero_unpaired`` has none, and compares
    with 0. λ_D and λ_U are ``desirable_weight`` and ``undesirable_weight``.
    Sources: Ethayarajh et al. 2024, arXiv 2402.01306, eqs. 7 and 8; APO-zero: arXiv 2408.06266,
    eq. 7.
    """
    if kind not in KINDS:
        raise UserError(f'unknown kind "{kind}"; {nearest(kind, KINDS)}')
    if (kind == "kto") != (baseline is not None):
        raise UserError("kto: needs a baseline, and apo_zero_unpaired takes none")
    zero = 0.0 if baseline is None else jax.lax.stop_gradient(baseline)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return weight * jax.nn.sigmoid(-beta * _signed(ratios - zero, desirable))


def bco(
    ratios: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    baseline: Float[Array, " B"],
    *,
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """The cross entropy of a classifier whose logit is the reward above the baseline:

        −log σ(β·r − δ) where desirable, −log σ(−(β·r − δ)) else

    ``baseline`` is δ, in units of the reward β·r (``running_mean``).
    Source: Jung et al. 2024, arXiv 2404.04656.
    """
    logit = beta * ratios - jax.lax.stop_gradient(baseline)
    return -jax.nn.log_sigmoid(_signed(logit, desirable))


def _signed(x, desirable):
    return jnp.where(desirable, x, -x)
