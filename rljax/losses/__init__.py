"""Losses of tokens and of responses, and how they become one number. None knows a network."""

from rljax.losses.aggregate import make_weigh, token_weights
from rljax.losses.baseline import kto_reference, running_mean
from rljax.losses.correction import Correction, make_correction
from rljax.losses.distribution import forward_kl, jensen_shannon, reverse_kl
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
from rljax.losses.preference import (
    AVERAGED,
    bradley_terry,
    check_dpo,
    dpo,
    implied_reward,
    length_desensitised,
    orpo,
    simpo,
)
from rljax.losses.unpaired import KINDS as UNPAIRED
from rljax.losses.unpaired import bco, kto
from rljax.losses.value import clipped_value_loss, explained_variance

__all__ = [
    "AVERAGED",
    "UNPAIRED",
    "Correction",
    "bco",
    "bradley_terry",
    "check_dpo",
    "cispo",
    "clip_cov",
    "clipped_surrogate",
    "clipped_value_loss",
    "dpo",
    "explained_variance",
    "forward_kl",
    "gmpo",
    "gspo",
    "implied_reward",
    "jensen_shannon",
    "kl_cov",
    "kto",
    "kto_reference",
    "length_desensitised",
    "make_correction",
    "make_weigh",
    "mark_most_covariant",
    "mark_random_covariant",
    "orpo",
    "reinforce",
    "reverse_kl",
    "running_mean",
    "sapo",
    "simpo",
    "token_weights",
]
