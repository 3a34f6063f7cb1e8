"""Recipes: each algorithm a short composition of pure functions.

Those that sample are ``compose.policy_gradient`` with other functions in it; a recipe of your own
is one more call of it.

    recipe               advantage                     policy loss         aggregation
    ppo                  gae, of a critic              clipped, dual       token-mean
    grpo                 group_relative                clipped             seq-mean-token-mean
    dr_grpo              group_relative, unscaled      clipped             sum / budget_tokens
    dapo                 group_relative, refilled      clipped higher      token-mean
    rloo                 rloo                          clipped             seq-mean-token-sum
    reinforce_plus_plus  reinforce_plus_plus[_baseline]  clipped           token-mean
    remax                remax, of a greedy response   clipped             seq-mean-token-sum
    opo                  opo                           reinforce           token-mean
    gpg                  gpg                           reinforce           token-mean
    pass_at_k            pass_at_k                     clipped             token-mean
    gspo, luspo          group_relative                gspo                seq-mean-token-mean, -sum
    gmpo                 group_relative                gmpo                seq-mean-token-mean
    cispo                group_relative                cispo               token-mean
    sapo                 group_relative                sapo                seq-mean-token-mean
    clip_cov, kl_cov     group_relative                clip_cov, kl_cov    token-mean
    distill              none: no reward teaches       a divergence        token-mean

The others learn from rows that are given, on their own or compared with a reference.

    recipe               learns from      compares                         and besides
    sft                  demonstrations
    dpo, in 12 kinds     pairs            log-ratios to the reference      sft_coef, ld_alpha
    simpo                pairs            mean log-probs, by a margin
    cpo                  pairs            log-probs                        imitates the chosen
    orpo                 pairs            odds, of mean log-probs          imitates the chosen
    kto                  labels           log-ratios and their KL
    bco                  labels           log-ratios and their mean so far
    bradley_terry        pairs            scores: trains a reward model    centring
"""

from rljax.algorithms.distillation import distill
from rljax.algorithms.online import (
    cispo,
    clip_cov,
    dapo,
    dr_grpo,
    gmpo,
    gpg,
    grpo,
    gspo,
    kl_cov,
    luspo,
    opo,
    pass_at_k,
    ppo,
    reinforce_plus_plus,
    remax,
    rloo,
    sapo,
)
from rljax.algorithms.preference import bco, bradley_terry, cpo, dpo, kto, orpo, simpo
from rljax.algorithms.supervised import sft

__all__ = [
    "bco",
    "bradley_terry",
    "cispo",
    "clip_cov",
    "cpo",
    "dapo",
    "distill",
    "dpo",
    "dr_grpo",
    "gmpo",
    "gpg",
    "grpo",
    "gspo",
    "kl_cov",
    "kto",
    "luspo",
    "opo",
    "orpo",
    "pass_at_k",
    "ppo",
    "reinforce_plus_plus",
    "remax",
    "rloo",
    "sapo",
    "sft",
    "simpo",
]
