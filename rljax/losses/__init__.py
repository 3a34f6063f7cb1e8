"""Losses over tokens, and how they become one number. None of them knows a network."""

from rljax.losses.aggregate import make_weigh, token_weights
from rljax.losses.policy import clipped_surrogate
from rljax.losses.value import clipped_value_loss, explained_variance

__all__ = [
    "clipped_surrogate",
    "clipped_value_loss",
    "explained_variance",
    "make_weigh",
    "token_weights",
]
