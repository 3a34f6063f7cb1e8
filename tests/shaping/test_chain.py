"""Stages in a row: their state, their metrics, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rewards, make_rollout

from rljax.errors import UserError
from rljax.shaping import (
    adaptive_kl,
    chain,
    drift,
    kl_penalty,
    l1_exact,
    length_band,
    length_metrics,
)
from rljax.types import Transform

# Responses of 4 and 6 tokens: the band costs the second 0.25·(2/2)²; the KL of each token is 0.1.
ROLLOUT = make_rollout([4, 6], logprobs=[[0.1] * 8] * 2, ref_logprobs=[[0.0] * 8] * 2)
REWARDS = make_rewards(ROLLOUT, [1.0, 0.0])
LENGTH = length_band(2, 4, weight=0.25)


def apply(transform, rewards=REWARDS):
    return transform.apply(rewards, transform.init(), ROLLOUT)


def test_reward_shaping_ratio_by_hand():
    shaped, _, metrics = apply(chain(length=LENGTH))
    assert shaped.response.tolist() == [1.0, -0.25]
    np.testing.assert_allclose(metrics["reward_shaping_ratio"], 0.25 / 1.25, rtol=1e-6)
    assert float(metrics["reward_mean"]) == 0.5
    assert float(metrics["reward_shaped_mean"]) == 0.375
    assert float(metrics["accuracy"]) == 0.5


def test_what_tokens_earn_is_part_of_the_ratio():
    shaped, _, metrics = apply(chain(length=LENGTH, kl=kl_penalty(0.5)))
    # KL takes 0.5·0.1 per token: 0.2 and 0.3; with the length 0.2 and 0.55 of a raw 1
    np.testing.assert_allclose(shaped.shaped, [0.8, -0.55], rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_shaping_ratio"], 0.75 / 1.75, rtol=1e-6)


def test_the_raw_reward_is_kept():
    shaped, _, _ = apply(chain(length=LENGTH, kl=kl_penalty(0.5)))
    np.testing.assert_array_equal(shaped.raw, REWARDS.raw)
    assert shaped.correct.tolist() == [True, False]


def test_state_and_metrics_are_those_of_the_stages():
    stages = {
        "length": length_band(2, 4, drift(0.25, limit=1.0, factor=2.0)),
        "kl": kl_penalty(adaptive_kl(0.5, target=0.01, horizon=10.0)),
        "measure": length_metrics(2, 4),
    }
    transform = chain(**stages)
    state = transform.init()
    assert state == {name: stage.init() for name, stage in stages.items()}
    _, new_state, metrics = apply(transform)
    assert new_state.keys() == state.keys()
    assert int(new_state["length"].weight.streak) == 1
    assert float(new_state["kl"].value) != 0.5
    assert {"length_penalty_mean", "reference_kl", "response_length_p95"} <= metrics.keys()


def stage(change, **metrics):
    def apply(rewards, state, rollout):
        return rewards.replace(response=change(rewards.response)), state, metrics

    return Transform(lambda: (), apply)


def test_a_metric_that_an_earlier_stage_has_too_bears_its_stages_name():
    narrow, wide = length_band(2, 4, weight=0.25), length_band(2, 5, weight=0.9)
    _, _, metrics = apply(chain(narrow=narrow, wide=wide))
    # 6 tokens: 2 beyond 4 at a scale of 2, 1 beyond 5 at a scale of 3; a mean over two rows
    np.testing.assert_allclose(metrics["length_penalty_mean"], 0.25 / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["wide/length_penalty_mean"], 0.1 / 2, rtol=1e-6)
    assert float(metrics["length_overlong_tokens"]) == 1.0
    assert float(metrics["wide/length_overlong_tokens"]) == 0.0
    assert not any(name.startswith("narrow/") for name in metrics)


def test_a_third_stage_of_the_same_metric_has_a_name_too():
    same = [stage(lambda r: r, cost=jnp.float32(i)) for i in range(3)]
    _, _, metrics = apply(chain(a=same[0], b=same[1], c=same[2]))
    named = {name: float(value) for name, value in metrics.items() if "cost" in name}
    assert named == {"cost": 0.0, "b/cost": 1.0, "c/cost": 2.0}


def test_stages_follow_one_another():
    double, add = stage(lambda r: 2 * r), stage(lambda r: r + 1)
    assert apply(chain(first=double, second=add))[0].response.tolist() == [3.0, 1.0]
    assert apply(chain(first=add, second=double))[0].response.tolist() == [4.0, 2.0]


def leave_out(*rows):
    def apply(rewards, state, rollout):
        counted = rewards.counted & jnp.array([i not in rows for i in range(2)])
        return rewards.replace(counted=counted), state, {}

    return Transform(lambda: (), apply)


def test_what_a_stage_leaves_out_is_still_measured_by_the_chain():
    """Its rewards are logged, and its share: what was sampled, not what is learned from."""
    shaped, _, metrics = apply(chain(out=leave_out(0), length=LENGTH))
    assert shaped.counted.tolist() == [False, True]
    assert float(metrics["left_out_ratio"]) == 0.5
    assert float(metrics["reward_mean"]) == 0.5
    assert float(metrics["accuracy"]) == 0.5
    assert float(metrics["length_penalty_mean"]) == 0.25  # of the one that is left


def test_what_did_not_count_before_is_not_measured():
    rewards = REWARDS.replace(counted=jnp.array([False, True]))
    _, _, metrics = apply(chain(length=LENGTH), rewards)
    expected = {
        "reward_mean": 0.0,
        "reward_shaped_mean": -0.25,
        "accuracy": 0.0,
        "left_out_ratio": 0.5,  # of all
        "reward_shaping_ratio": 1.0,
    }
    for name, value in expected.items():
        assert float(metrics[name]) == value, name
    _, _, metrics = apply(chain(length=LENGTH), REWARDS.replace(counted=jnp.zeros(2, bool)))
    assert float(metrics.pop("left_out_ratio")) == 1.0
    assert not any(float(metrics[name]) for name in expected if name in metrics)


@pytest.mark.parametrize("field", ["response", "token", "counted"])
def test_a_stage_that_changes_a_shape_is_named(field):
    def apply_stage(rewards, state, rollout):
        return rewards.replace(**{field: getattr(rewards, field)[:1]}), state, {}

    with pytest.raises(UserError, match='shaping stage "odd" must keep the shapes of response'):
        apply(chain(odd=Transform(lambda: (), apply_stage)))


def test_a_fault_of_a_stage_is_told_in_its_terms():
    def apply_stage(rewards, state, rollout):
        raise KeyError("column")

    with pytest.raises(UserError, match='shaping stage "mine" raised KeyError'):
        apply(chain(mine=Transform(lambda: (), apply_stage)))
    with pytest.raises(UserError, match=r"^l1_exact: the data has no column"):
        apply(chain(length=l1_exact()))


def test_the_reference_is_needed_if_a_stage_needs_it():
    assert chain(length=LENGTH, kl=kl_penalty(0.5)).needs_reference
    assert not chain(length=LENGTH).needs_reference


def test_no_stages_and_no_rewards():
    shaped, state, metrics = apply(chain())
    assert state == {}
    assert shaped.shaped.tolist() == [1.0, 0.0]
    assert float(metrics["reward_shaping_ratio"]) == 0.0
    _, _, metrics = apply(chain(), make_rewards(ROLLOUT, [0.0, 0.0]))
    assert float(metrics["reward_shaping_ratio"]) == 0.0  # 0/0, and no NaN


def test_compiled_equals_eager():
    transform = chain(length=LENGTH, kl=kl_penalty(adaptive_kl(0.5)), measure=length_metrics(2, 4))
    eager = apply(transform)
    compiled = jax.jit(transform.apply)(REWARDS, transform.init(), ROLLOUT)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), compiled, eager
    )


def test_metrics_are_scalars_on_the_device():
    _, _, metrics = jax.jit(chain(length=LENGTH).apply)(REWARDS, {"length": LENGTH.init()}, ROLLOUT)
    assert all(isinstance(m, jax.Array) and m.shape == () for m in metrics.values())
    assert all(jnp.isfinite(m) for m in metrics.values())
