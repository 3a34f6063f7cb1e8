"""Reward shaping: transforms with their state, and the chain that composes them."""

from rljax.shaping.chain import chain
from rljax.shaping.control import adaptive_kl, drift, fixed
from rljax.shaping.kl import kl_penalty
from rljax.shaping.length import band_distance, length_band, length_metrics

__all__ = [
    "adaptive_kl",
    "band_distance",
    "chain",
    "drift",
    "fixed",
    "kl_penalty",
    "length_band",
    "length_metrics",
]
