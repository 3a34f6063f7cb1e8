"""Reward shaping: transforms with their state, and the chain that composes them."""

from rljax.shaping.adaptive import a_dlp, hapo, laser_d
from rljax.shaping.chain import chain
from rljax.shaping.control import adaptive_kl, drift, fixed
from rljax.shaping.kl import kl_in_loss, kl_penalty
from rljax.shaping.length import length_band, length_metrics
from rljax.shaping.overlong import missing_eos, soft_overlong
from rljax.shaping.relative import alp, arora_zanette, drpo, grpo_lead, kimi, shorter_better
from rljax.shaping.select import informative, informative_groups, overlong_filter
from rljax.shaping.target import cosine, l1_exact, l1_max, laser, o1_pruner

__all__ = [
    "a_dlp",
    "adaptive_kl",
    "alp",
    "arora_zanette",
    "chain",
    "cosine",
    "drift",
    "drpo",
    "fixed",
    "grpo_lead",
    "hapo",
    "informative",
    "informative_groups",
    "kimi",
    "kl_in_loss",
    "kl_penalty",
    "l1_exact",
    "l1_max",
    "laser",
    "laser_d",
    "length_band",
    "length_metrics",
    "missing_eos",
    "o1_pruner",
    "overlong_filter",
    "shorter_better",
    "soft_overlong",
]
