"""Recipes that sample: what each is made of, and what their losses have in common."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rewards, make_rollout
from recipes import (
    BUDGET,
    MOVED,
    RAW,
    RECIPES,
    ROLLOUT,
    SAMPLING,
    appraised,
    experience_of,
    learnt,
    make,
    outputs_of,
)

from rljax import advantages, losses
from rljax.algorithms import ppo, sft
from rljax.losses import token_weights
from rljax.shaping import adaptive_kl
from rljax.types import Experience, Outputs

# Two rows, three response tokens in all: ratios 1.5, 0.5 | 4; advantages 1, −1 | −1.
MASK = jnp.array([[False, True, True], [False, True, False]])
OLD = jnp.full((2, 3), -1.0)
NEW = OLD + jnp.log(jnp.array([[7.0, 1.5, 0.5], [7.0, 4.0, 7.0]]))
ADVANTAGES = jnp.array([[0.0, 1.0, -1.0], [0.0, -1.0, 0.0]])
# values 1, 0 | 0.3 from 0; returns 1, 1 | 1
VALUES = jnp.array([[5.0, 1.0, 0.0], [5.0, 0.3, 5.0]])
ENTROPY = jnp.array([[9.0, 0.5, 1.0], [9.0, 1.5, 9.0]])
OUTPUTS = Outputs(NEW, ENTROPY, VALUES)


def batch(algorithm, mask=MASK):
    return Experience(
        tokens=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        action_mask=mask,
        logprobs=OLD,
        values=jnp.zeros(mask.shape),
        advantages=ADVANTAGES,
        returns=jnp.ones(mask.shape) * mask,
        loss_weights=algorithm.weigh(mask),
        mean_weights=token_weights(mask),
    )


# policy: −1.2, 0.8 | 3, of which the first two are clipped and the third dually
# value: 0.125 (held at 0.5), 0.5 | 0.245, of which the first is clipped
POLICY, VALUE, ENTROPIES = (-1.2 + 0.8 + 3) / 3, (0.125 + 0.5 + 0.245) / 3, (0.5 + 1 + 1.5) / 3


def test_ppo_by_hand():
    algorithm = ppo(entropy_coef=0.1)
    loss, metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    np.testing.assert_allclose(loss, POLICY + VALUE - 0.1 * ENTROPIES, rtol=1e-5)
    expected = {
        "policy/loss": POLICY,
        "policy/entropy": 1.0,
        "policy/ppo_kl": -np.log(1.5 * 0.5 * 4) / 3,
        "policy/clipfrac": 2 / 3,
        "policy/clipfrac_dual": 1 / 3,
        "value/loss": VALUE,
        "value/clipfrac": 1 / 3,
        "value/mean": 0.0,
        "value/return_mean": 1.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_ppo_rows_weigh_as_the_aggregation_says():
    algorithm = ppo(aggregation="seq-mean-token-mean", value_clip=None)
    _, metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    np.testing.assert_allclose(metrics["policy/loss"], ((-1.2 + 0.8) / 2 + 3) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clipfrac"], 2 / 3, rtol=1e-6)  # metrics stay means


@pytest.mark.parametrize("make", [ppo, sft])
def test_norm_tokens_acts_with_its_aggregation(make):
    algorithm = make(aggregation="seq-mean-token-sum-norm", norm_tokens=8.0)
    np.testing.assert_allclose(algorithm.weigh(MASK)[MASK], 1 / 16, rtol=1e-6)


def test_sft_by_hand():
    algorithm = sft()
    outputs = Outputs(jnp.array([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]]), ENTROPY)
    loss, metrics = algorithm.loss(outputs, batch(algorithm))
    assert float(loss) == pytest.approx(2.0)
    assert float(metrics["policy/nll"]) == pytest.approx(2.0)
    slope = jax.grad(lambda x: algorithm.loss(Outputs(x, ENTROPY), batch(algorithm))[0])(NEW)
    np.testing.assert_allclose(slope, -token_weights(MASK), rtol=1e-6)
    assert algorithm.estimate is None
    assert not algorithm.needs_value


def differentiated(algorithm, outputs, experience):
    def loss(logprobs, values):
        return algorithm.loss(outputs._replace(logprobs=logprobs, values=values), experience)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(outputs.logprobs, outputs.values)


def test_gradients_raise_good_tokens_and_draw_values_to_the_return():
    algorithm = ppo()
    near = OUTPUTS._replace(logprobs=OLD, values=0.1 * VALUES)
    _, (by_logprob, by_value) = differentiated(algorithm, near, batch(algorithm))
    np.testing.assert_allclose(by_logprob, -ADVANTAGES * MASK / 3, atol=1e-6)
    assert (by_value[MASK] < 0).all()  # returns of 1 lie above
    assert not by_value[~MASK].any()


def test_padding_rows_and_columns_change_nothing():
    algorithm = ppo(entropy_coef=0.1)
    plain, plain_metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    wide = lambda x, value=0.0: jnp.pad(x, [(0, 1), (1, 2)], constant_values=value)  # noqa: E731
    experience = jax.tree.map(wide, batch(algorithm)).replace(
        loss_weights=algorithm.weigh(wide(MASK)), mean_weights=token_weights(wide(MASK))
    )
    padded, metrics = algorithm.loss(jax.tree.map(lambda x: wide(x, 3.0), OUTPUTS), experience)
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    for name, value in plain_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("make", [ppo, sft])
def test_compiled_equals_eager(make):
    algorithm = make()
    eager = algorithm.loss(OUTPUTS, batch(algorithm))
    compiled = jax.jit(algorithm.loss)(OUTPUTS, batch(algorithm))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), compiled, eager
    )


def test_ppo_advantages_are_whitened_gae():
    rollout = make_rollout([3, 5], values=[[0.0] * 8] * 2)
    advantages, returns = ppo().estimate(make_rewards(rollout, [1.0, 0.0]), rollout)
    # over 3 ones and 5 zeros: mean 3/8, unbiased variance 15/56
    std = np.sqrt(15 / 56)
    np.testing.assert_allclose(advantages[0, 2:5], 0.625 / std, rtol=1e-5)
    np.testing.assert_allclose(advantages[1, 2:7], -0.375 / std, rtol=1e-5)
    np.testing.assert_allclose(returns[0, 2:5], 1.0, rtol=1e-6)
    assert ppo().needs_value


# What each is made of: its advantages, its loss, what a token weighs, and its price of the KL.
RELATIVE, CLIPPED = advantages.group_relative, partial(losses.clipped_surrogate, dual_clip=None)
MADE_OF = {
    "cispo": (RELATIVE, losses.cispo, "token-mean", 0.0),
    "clip_cov": (RELATIVE, losses.clip_cov, "token-mean", 0.0),
    "dapo": (RELATIVE, partial(CLIPPED, clip_high=0.28), "token-mean", 0.0),
    "dr_grpo": (partial(RELATIVE, scale="none"), CLIPPED, "seq-mean-token-sum-norm", 0.0),
    "gmpo": (RELATIVE, losses.gmpo, "seq-mean-token-mean", 0.0),
    "gpg": (advantages.gpg, losses.reinforce, "token-mean", 0.0),
    "grpo": (RELATIVE, CLIPPED, "seq-mean-token-mean", 0.04),
    "gspo": (RELATIVE, losses.gspo, "seq-mean-token-mean", 0.0),
    "kl_cov": (RELATIVE, losses.kl_cov, "token-mean", 0.0),
    "luspo": (RELATIVE, losses.gspo, "seq-mean-token-sum", 0.0),
    "opo": (advantages.opo, losses.reinforce, "token-mean", 0.0),
    "pass_at_k": (advantages.pass_at_k, CLIPPED, "token-mean", 0.0),
    "ppo": (advantages.gae, losses.clipped_surrogate, "token-mean", 0.0),
    "reinforce_plus_plus": (advantages.reinforce_plus_plus, CLIPPED, "token-mean", 0.0),
    "remax": (advantages.remax, CLIPPED, "seq-mean-token-sum", 0.0),
    "rloo": (advantages.rloo, CLIPPED, "seq-mean-token-sum", 0.0),
    "sapo": (RELATIVE, losses.sapo, "seq-mean-token-mean", 0.0),
}
every_recipe = pytest.mark.parametrize("name", MADE_OF)
every_sampling = pytest.mark.parametrize("name", SAMPLING)


def test_every_recipe_is_in_the_table():
    assert {*MADE_OF, "distill"} == set(SAMPLING)  # without an advantage


@every_recipe
def test_what_a_recipe_is_made_of(name):
    estimate, policy_loss, mode, price = MADE_OF[name]
    algorithm = make(name)
    experience, rewards = appraised(algorithm, make_rewards(ROLLOUT, RAW))
    expected, returns = estimate(rewards, ROLLOUT)
    np.testing.assert_array_equal(experience.advantages, expected)
    assert (experience.returns is None) == (returns is None)
    weights = token_weights(experience.action_mask, mode=mode, norm_tokens=BUDGET)
    np.testing.assert_array_equal(experience.loss_weights, weights)
    tokens, stats = policy_loss(MOVED.logprobs, experience)
    _, metrics = algorithm.loss(MOVED, experience)
    np.testing.assert_allclose(metrics["policy/loss"], jnp.sum(weights * tokens), rtol=1e-5)
    assert {f"policy/{stat}" for stat in stats} <= metrics.keys()
    assert (rewards.kl_coef is None) == (price == 0.0)
    if price:
        np.testing.assert_allclose(rewards.kl_coef, price, rtol=1e-6)


@every_recipe
def test_what_a_recipe_needs(name):
    algorithm = make(name)
    ungrouped = name in ("ppo", "reinforce_plus_plus", "remax")
    assert algorithm.needs_value == (name == "ppo")
    assert algorithm.needs_greedy == (name == "remax")
    assert algorithm.needs_groups == (not ungrouped)
    assert algorithm.refill_rounds == (3 if name == "dapo" else 1)
    assert (algorithm.mark is not None) == (name in ("clip_cov", "kl_cov"))
    assert make("reinforce_plus_plus", baseline=True).needs_groups


@every_recipe
def test_where_the_policy_has_not_moved_the_gradient_is_the_policy_gradient(name):
    """−weight · A per log-prob, but for the tokens that Clip-Cov marks."""
    free = {"kl_coef": 0.0} if "kl_coef" in inspect.signature(RECIPES[name]).parameters else {}
    algorithm = make(name, **free)
    experience, _ = appraised(algorithm, make_rewards(ROLLOUT, RAW))
    still = MOVED._replace(logprobs=experience.logprobs)
    _, _, slopes = learnt(algorithm, still, experience)
    expected = -experience.loss_weights * experience.advantages
    if name == "clip_cov":
        assert experience.marked.sum() == 1
        expected = jnp.where(experience.marked, 0.0, expected)
    np.testing.assert_allclose(slopes.logprobs, expected, rtol=1e-4, atol=1e-7)


@every_sampling
def test_verl_losses_depended_on_micro_batches(name):
    """Whatever the parts, and the order of the rows in them, they add up to the whole."""
    algorithm = make(name)
    outputs, experience = outputs_of(algorithm), experience_of(algorithm)
    loss, metrics, slopes = learnt(algorithm, outputs, experience)
    order = np.random.default_rng(0).permutation(12)
    parts = [
        learnt(algorithm, *jax.tree.map(lambda x, rows=rows: x[rows], (outputs, experience)))
        for rows in (order[:2], order[2:6], order[6:])
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-4, atol=1e-6)
    for metric, value in metrics.items():
        summed = sum(part[1][metric] for part in parts)
        np.testing.assert_allclose(summed, value, rtol=1e-4, atol=1e-6, err_msg=metric)
    of_parts = jax.tree.map(lambda *x: np.concatenate(x), *(part[2] for part in parts))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y[order], rtol=1e-5, atol=1e-7),
        of_parts,
        slopes,
    )


@every_sampling
def test_a_batch_in_which_nothing_counts_is_zero_with_zero_gradients(name):
    algorithm = make(name)
    nothing = make_rewards(ROLLOUT, RAW).replace(counted=jnp.zeros(12, bool))
    experience, _ = appraised(algorithm, nothing)
    loss, metrics, slopes = learnt(algorithm, outputs_of(algorithm), experience)
    assert float(loss) == 0.0
    assert not any(metric for metric in metrics.values())  # nor NaN, which is true
    assert not any(slope.any() for slope in jax.tree.leaves(slopes))


@every_sampling
@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_log_ratios_of_100_stay_finite(name, shift):
    algorithm = make(name)
    experience = experience_of(algorithm)
    far = outputs_of(algorithm)._replace(logprobs=experience.logprobs + shift)
    loss, metrics, slopes = learnt(algorithm, far, experience)
    assert np.isfinite(loss)
    assert all(np.isfinite(metric) for metric in metrics.values())
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


def test_luspo_is_gspo_with_each_sequence_s_loss_times_its_length():
    lengths = jnp.maximum(ROLLOUT.lengths, 1)[:, None]
    gspo, luspo = (
        appraised(make(name), make_rewards(ROLLOUT, RAW))[0] for name in ("gspo", "luspo")
    )
    np.testing.assert_allclose(luspo.loss_weights, gspo.loss_weights * lengths, rtol=1e-6)
    whole = make("gspo").loss(MOVED, gspo.replace(loss_weights=gspo.loss_weights * lengths))[0]
    np.testing.assert_allclose(make("luspo").loss(MOVED, luspo)[0], whole, rtol=1e-6)


def test_a_controller_prices_the_kl():
    _, rewards = appraised(make("grpo", kl_coef=adaptive_kl(0.25)), make_rewards(ROLLOUT, RAW))
    np.testing.assert_allclose(rewards.kl_coef, 0.25, rtol=1e-6)


# DAPO: the first group is alike in its raw rewards, and its second response nears the budget.

DAPO = make_rollout([2, 10, 3, 4, 5, 10], budget=BUDGET, group=[0, 0, 0, 1, 1, 1])


def test_nemo_rl_2431_dynamic_sampling_filtered_on_the_shaped_reward():
    rewards = make_rewards(DAPO, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    experience, shaped = appraised(make("dapo"), rewards, DAPO.replace(values=DAPO.logprobs))
    assert shaped.response.tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]  # they differ
    assert shaped.counted.tolist() == [False] * 3 + [True] * 3
    assert not experience.advantages[:3].any()
    assert experience.action_mask.any(axis=-1).tolist() == shaped.counted.tolist()


@pytest.mark.parametrize(
    ("filters", "counted"), [(True, [True, True, False]), (False, [True, True, True])]
)
def test_trl_truncated_responses_were_masked_from_the_loss_and_still_in_the_statistics(
    filters, counted
):
    cut = DAPO.replace(truncated=jnp.arange(6) == 5)
    rewards = make_rewards(cut, [1.0, 1.0, 1.0, 1.0, 0.0, 9.0])
    experience, shaped = appraised(make("dapo", filter_overlong=filters), rewards, cut)
    assert shaped.counted[3:].tolist() == counted
    assert not experience.action_mask[:3].any()
    kept = np.array([1.0, 0.0] if filters else [1.0, 0.0, 8.0])  # the last has paid 1
    expected = (kept - kept.mean()) / kept.std(ddof=1)
    np.testing.assert_allclose(experience.advantages[3:, 2][: len(kept)], expected, rtol=1e-4)


def test_a_group_that_only_its_truncated_response_told_apart_is_left_out():
    cut = DAPO.replace(truncated=jnp.arange(6) == 5)
    _, shaped = appraised(make("dapo"), make_rewards(cut, [1, 1, 0, 1, 1, 0]), cut)
    assert shaped.counted.tolist() == [True] * 3 + [False] * 3
