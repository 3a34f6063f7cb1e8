"""Every recipe, and something for it to learn from."""

import inspect

import jax
import jax.numpy as jnp
from builders import make_rollout

from rljax import algorithms
from rljax.advantages import learned_tokens
from rljax.losses import token_weights
from rljax.shaping import chain, overlong_filter
from rljax.types import Experience, Outputs

RECIPES = {name: getattr(algorithms, name) for name in algorithms.__all__}

# Three groups of four, the first of each greedy, the second group alike, two responses cut off:
# whatever a keyword acts on, differs somewhere in here.
BUDGET = 10
LENGTHS = [3, 8, 1, 9, 9, 9, 10, 2, 5, 10, 6, 7]
RAW = [1.0, 0.0, 0.5, 0.25, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, -2.0]
NOISE = jnp.sin(7.0 * jnp.arange(12 * 12.0)).reshape(12, 12)  # of all sizes between −1 and 1
ROLLOUT = make_rollout(
    LENGTHS,
    budget=BUDGET,
    truncated=[n == BUDGET for n in LENGTHS],
    group=[row // 4 for row in range(12)],
    greedy=[row % 4 == 0 for row in range(12)],
    logprobs=-3.0 + 2.5 * NOISE,
    ref_logprobs=-3.0 + 2.0 * NOISE[::-1],
    values=0.5 * NOISE[:, ::-1],
)
DRIFT = jnp.array([0.0, -0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5, -0.5, 0.5])[:, None]
MOVED = Outputs(ROLLOUT.logprobs + DRIFT + 2.0 * NOISE.T, 1.0 + NOISE**2, ROLLOUT.values + NOISE.T)


def make(name, **keywords):
    """A recipe, with what a run would fill in."""
    if "budget_tokens" in inspect.signature(RECIPES[name]).parameters:
        keywords = {"budget_tokens": BUDGET} | keywords
    return RECIPES[name](**keywords)


def appraised(algorithm, rewards, rollout=ROLLOUT):
    """What is learned from, and what the stages of the algorithm made of the rewards."""
    overlong = {} if algorithm.learns_truncated else {"overlong": overlong_filter()}
    stages = chain(**overlong, **algorithm.shaping, **algorithm.filters)
    rewards, _, _ = stages.apply(rewards, stages.init(), rollout)
    advantages = returns = None
    if algorithm.estimate is not None:
        advantages, returns = algorithm.estimate(rewards, rollout)
    mask = learned_tokens(rewards, rollout)
    experience = Experience(
        tokens=rollout.tokens,
        mask=rollout.mask,
        action_mask=mask,
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs if rewards.kl_coef is not None else None,
        kl_coef=rewards.kl_coef,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
        loss_weights=algorithm.weigh(mask),
        mean_weights=token_weights(mask),
    )
    marked = algorithm.mark(experience, jax.random.key(0)) if algorithm.mark else None
    return experience.replace(marked=marked), rewards
