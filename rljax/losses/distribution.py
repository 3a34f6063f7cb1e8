"""Divergences of a student's distribution from a teacher's, in nats: log-probs [..., V] -> [...].

Both are normalised over the vocabulary. A log-prob is at least −10⁴, and has no gradient below: a
token that one of the two rules out (−inf) costs much, and not infinitely much.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

MIN_LOGPROB = -1e4  # e to it is 0 in float32, and 0 · −1e4 is 0, where 0 · −inf is NaN


def forward_kl(student: Float[Array, "*n V"], teacher: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """KL(teacher ‖ student) = Σ p_T·(log p_T − log p_S): covers all that the teacher might say.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """
    return _kl(_held(teacher), _held(student))


def reverse_kl(student: Float[Array, "*n V"], teacher: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """KL(student ‖ teacher) = Σ p_S·(log p_S − log p_T): says nothing that the teacher would not.

    Source: Gu et al. 2023, arXiv 2306.08543, eq. 1.
    """
    return _kl(_held(student), _held(teacher))


def jensen_shannon(
    student: Float[Array, "*n V"], teacher: Float[Array, "*n V"], *, beta: float = 0.5
) -> Float[Array, "*n"]:
    """β·KL(teacher ‖ mixture) + (1 − β)·KL(student ‖ mixture), mixture = β·p_T + (1 − β)·p_S.

    For 0 < β < 1. It is bounded: by log 2 at β = ½. Divided by β it nears the forward KL as β goes
    to 0, and divided by 1 − β the reverse one as β goes to 1.
    Source: Agarwal et al. 2023, arXiv 2306.13649, eq. 1.
    """
    student, teacher = _held(student), _held(teacher)
    mixture = jnp.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)


def _kl(logp, logq):
    return jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)


def _held(logprobs):
    return jnp.maximum(logprobs, MIN_LOGPROB)
