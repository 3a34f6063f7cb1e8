"""What the implied rewards of single responses are compared with: ``types.Baseline``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.masked import masked_mean
from rljax.types import Baseline


class RunningMean(NamedTuple):
    """The mean of all rewards so far, and their count."""

    mean: Float[Array, ""]
    count: Float[Array, ""]


def kto_reference() -> Baseline:
    """KTO's z₀ = max(0, mean log π/π_ref) in nats, over prompts with the responses to others: an
    estimate of KL(π ‖ π_ref), biased but cheap.

    Source: Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1.
    """

    def apply(ratios, counted, state):
        zero = jnp.maximum(masked_mean(jax.lax.stop_gradient(ratios), counted), 0.0)
        return zero, state, {"kto/kl": zero}

    return Baseline(init=lambda: (), apply=apply, mismatched=True)


def running_mean(beta: float) -> Baseline:
    """BCO's δ: the mean of β·log π/π_ref over every response so far, those at hand included.

    As TRL has it. The paper takes the mean of the two labels' means, which is the same where there
    are as many of each. Source: Jung et al. 2024, arXiv 2404.04656.
    """

    def init():
        return RunningMean(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def apply(ratios, counted, state: RunningMean):
        rewards = beta * jax.lax.stop_gradient(ratios)
        more = counted.sum().astype(jnp.float32)
        count = state.count + more
        step = (masked_mean(rewards, counted) - state.mean) * more / jnp.maximum(count, 1.0)
        mean = state.mean + step
        return mean, RunningMean(mean, count), {"bco/delta": mean}

    return Baseline(init=init, apply=apply)
