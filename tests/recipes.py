"""Every recipe, and something for it to learn from."""

import inspect

import jax
import jax.numpy as jnp
from builders import make_rewards, make_rollout

from rljax import algorithms
from rljax.advantages import learned_tokens
from rljax.losses import token_weights
from rljax.masked import masked_sum
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
STUDENT, TEACHER = jax.nn.log_softmax(
    3.0 * jnp.sin(5.0 * jnp.arange(2 * 12 * 12 * 4.0)).reshape(2, 12, 12, 4)
)

# Rows that are given, unless they are sampled: six pairs, of which the fifth only fills up.
FILLERS = jnp.arange(12) // 2 == 4
DESIRABLE = jnp.array([True, False, True, True, False, True, False, False, True, False, True, True])
MARGIN = jnp.repeat(jnp.array([0.0, 1.0, -0.5, 2.0, 9.0, 0.3]), 2)


def make(name, **keywords):
    """A recipe, with what a run would fill in."""
    if "budget_tokens" in inspect.signature(RECIPES[name]).parameters:
        keywords = {"budget_tokens": BUDGET} | keywords
    return RECIPES[name](**keywords)


SAMPLING = [name for name in RECIPES if make(name).learns_from == "prompts"]
GIVEN = [name for name in RECIPES if name not in SAMPLING]


def outputs_of(algorithm):
    """What the networks say that the algorithm trains."""
    if algorithm.trains == "reward":
        return Outputs(scores=3.0 * NOISE[0])
    if algorithm.divergence is not None:
        apart = algorithm.divergence(STUDENT, TEACHER)
        return Outputs(MOVED.logprobs, MOVED.entropy, divergence=apart)
    if algorithm.learns_from == "prompts":
        return MOVED
    return Outputs(jnp.minimum(MOVED.logprobs, -0.1), MOVED.entropy)


def weighted(algorithm, experience):
    """With the weights of a whole minibatch."""
    learned = experience.action_mask
    if experience.data_weights is not None:
        learned = experience.data_weights
    return experience.replace(
        loss_weights=algorithm.weigh(learned, experience.segments),
        mean_weights=token_weights(learned, experience.segments),
    )


def given_rows(algorithm, mask=ROLLOUT.action_mask & ~FILLERS[:, None]):
    """Rows to learn from as they are, with all that any algorithm reads of them."""
    experience = Experience(
        tokens=ROLLOUT.tokens,
        mask=ROLLOUT.mask,
        action_mask=mask,
        desirable=DESIRABLE,
        margin=MARGIN,
        ref_logprobs=ROLLOUT.ref_logprobs,
    )
    if algorithm.baseline is not None:
        ratios = jnp.abs(masked_sum(NOISE, mask, axis=-1))
        state = algorithm.baseline.init()
        value, _, _ = algorithm.baseline.apply(ratios, mask.any(axis=-1), state)
        experience = experience.replace(baseline=jnp.full(12, value))
    return weighted(algorithm, experience)


def experience_of(algorithm):
    """What an algorithm learns from."""
    if algorithm.learns_from == "prompts":
        return appraised(algorithm, make_rewards(ROLLOUT, RAW))[0]
    return given_rows(algorithm)


def learnt(algorithm, outputs, experience):
    """Loss, metrics and gradients."""
    (loss, metrics), slopes = jax.value_and_grad(algorithm.loss, has_aux=True)(outputs, experience)
    return loss, metrics, slopes


def appraised(algorithm, rewards, rollout=ROLLOUT):
    """What is learned from, and what the stages of the algorithm made of the rewards."""
    overlong = {} if algorithm.learns_truncated else {"overlong": overlong_filter()}
    stages = chain(**overlong, **algorithm.shaping, **algorithm.filters)
    rewards, _, _ = stages.apply(rewards, stages.init(), rollout)
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
    )
    experience = weighted(algorithm, experience)
    marked = algorithm.mark(experience, jax.random.key(0)) if algorithm.mark else None
    return experience.replace(marked=marked), rewards
