"""Losses over tokens, and how they become one number. None of them knows a network."""

from rljax.losses.aggregate import make_weigh, token_weights
from rljax.losses.correction import Correction, make_correction
from rljax.losses.marks import mark_most_covariant, mark_random_covariant
from rljax.losses.policy import (
    cispo,
    clip_cov,
    clipped_surrogate,
    gmpo,
    gspo,
    kl_cov,
    reinforce,
    sapo,
)
from rljax.losses.value import clipped_value_loss, explained_variance

__all__ = [
    "Correction",
    "cispo",
    "clip_cov",
    "clipped_surrogate",
    "clipped_value_loss",
    "explained_variance",
    "gmpo",
    "gspo",
    "kl_cov",
    "make_correction",
    "make_weigh",
    "mark_most_covariant",
    "mark_random_covariant",
    "reinforce",
    "sapo",
    "token_weights",
]
