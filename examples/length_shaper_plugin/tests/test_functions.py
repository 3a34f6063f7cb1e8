"""The three functions by themselves: numbers worked out by hand, padding, compiled as eager."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from length_shaper.algorithms import above_the_median, median_grpo
from length_shaper.rewards import brevity_match
from length_shaper.shaping import smooth_band

from rljax.errors import UserError
from rljax.tasks import character_tokenizer
from rljax.types import Experience, Outputs, Rewards, Rollout

TOKENIZER = character_tokenizer()
BAND = {"min_tokens": 4, "max_tokens": 6, "budget_tokens": 12, "weight": 1.0}
BAND |= {"knee_below": 2.0, "knee_above": 4.0, "step_tokens": 1.0}


def rollout_of(lengths, *, budget=16, prompt=2, groups=None, texts=None, answer=None) -> Rollout:
    """Rows with a prompt, then responses of these lengths or these texts, then padding."""
    ids = [TOKENIZER.encode(t, add_special_tokens=False) for t in texts or []]
    ids = [[*row, TOKENIZER.eos_token_id] for row in ids] or [[5] * length for length in lengths]
    at, ends = np.arange(prompt + budget), prompt + np.array([[len(row)] for row in ids])
    chosen = (at >= prompt) & (at < ends)
    tokens = np.zeros(chosen.shape, np.int32)
    for row, mine in zip(tokens, ids, strict=True):
        row[prompt : prompt + len(mine)] = mine
    rows = len(ids)
    return Rollout(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(at < ends),
        action_mask=jnp.asarray(chosen),
        logprobs=jnp.zeros(chosen.shape),
        truncated=jnp.zeros(rows, bool),
        greedy=jnp.zeros(rows, bool),
        group=jnp.arange(rows) if groups is None else jnp.asarray(groups),
        extras={} if answer is None else {"answer": jnp.asarray([answer] * rows)},
    )


def rewards_of(rollout: Rollout, raw, counted=None) -> Rewards:
    raw = jnp.asarray(raw, jnp.float32)
    return Rewards(
        raw=raw,
        correct=raw > 0.5,
        counted=jnp.ones(raw.shape, bool) if counted is None else jnp.asarray(counted),
        response=raw,
        token=jnp.zeros(rollout.tokens.shape),
    )


def shaped(stage, lengths, state=None, *, raw=None, counted=None, **layout):
    """What a stage takes from each response, and its state behind the batch."""
    rollout = rollout_of(lengths, **layout)
    rewards = rewards_of(rollout, [1.0] * len(lengths) if raw is None else raw, counted)
    after, state, _ = stage.apply(rewards, stage.init() if state is None else state, rollout)
    return np.asarray(rewards.response - after.response), state


# ---- smooth_band


def test_the_cost_by_hand():
    stage = smooth_band(**BAND | {"budget_tokens": 6})  # the edge is at 6 from the start
    costs, _ = shaped(stage, [1, 2, 3, 4, 6, 8, 10, 14])
    # below: u = 3/2, 2/2, 1/2; above: u = 2/4, 4/4, 8/4
    np.testing.assert_allclose(costs, [1.0, 0.5, 0.125, 0, 0, 0.125, 0.5, 1.5])


def test_nothing_is_too_long_before_the_edge_has_come_down():
    stage = smooth_band(**BAND | {"step_tokens": 4.0})
    costs, state = shaped(stage, [4, 12])
    assert costs.tolist() == [0.0, 0.0]
    assert float(state.max_tokens) == 8.0
    costs, state = shaped(stage, [4, 12], state)
    assert costs.tolist() == [0.0, 0.5]  # 4 tokens above an edge of 8
    assert float(state.max_tokens) == 6.0  # and no lower than max_tokens
    _, state = shaped(stage, [4, 12, 12], state)
    assert float(state.max_tokens) == 6.0


def test_the_edge_waits_while_the_answers_are_wrong():
    stage = smooth_band(**BAND, least_accuracy=0.75)
    _, state = shaped(stage, [4, 4, 4, 4], raw=[1, 1, 0, 0])
    assert float(state.max_tokens) == 12.0
    _, state = shaped(stage, [4, 4, 4, 4], state, raw=[1, 1, 1, 0])
    assert float(state.max_tokens) == 11.0


def test_what_does_not_count_moves_nothing():
    stage = smooth_band(**BAND, least_accuracy=0.75)
    _, state = shaped(stage, [4, 4], raw=[0, 1], counted=[False, True])
    assert float(state.max_tokens) == 11.0
    stage = smooth_band(**BAND, least_accuracy=0.0)
    _, state = shaped(stage, [4, 4], counted=[False, False])
    assert float(state.max_tokens) == 12.0


def test_padding_changes_nothing():
    stage = smooth_band(**BAND)
    near, far = (shaped(stage, [1, 5, 12], budget=budget, prompt=9) for budget in (12, 30))
    np.testing.assert_array_equal(near[0], far[0])
    np.testing.assert_array_equal(near[1], far[1])


def test_compiled_equals_eager():
    stage, rollout = smooth_band(**BAND), rollout_of([1, 5, 16])
    rewards = rewards_of(rollout, [1.0, 0.0, 1.0])
    eager = stage.apply(rewards, stage.init(), rollout)
    compiled = jax.jit(stage.apply)(rewards, stage.init(), rollout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), compiled, eager)


@pytest.mark.parametrize(
    "keywords",
    [
        *({"max_tokens": 3}, {"max_tokens": 13}, {"weight": -1.0}, {"knee_below": 0.0}),
        *({"knee_above": -1.0}, {"step_tokens": 0.0}, {"least_accuracy": 1.5}),
    ],
)
def test_numbers_that_make_no_sense_are_refused(keywords):
    with pytest.raises(UserError, match="smooth_band: needs"):
        smooth_band(**BAND | keywords)


# ---- brevity_match

ANSWER = TOKENIZER.encode("12", add_special_tokens=False)


def test_a_right_answer_is_worth_more_the_shorter_it_is():
    rollout = rollout_of(None, texts=["#12", "1+1=2 #12", "#13"], answer=ANSWER)  # of 4, 10, 4
    values = brevity_match(rollout, tokenizer=TOKENIZER, half_tokens=4.0)
    np.testing.assert_allclose(values, [0.6 + 0.4 / 2, 0.6 + 0.4 / 2**2.5, 0.0], rtol=1e-6)
    far = rollout_of(None, budget=40, texts=["#12", "1+1=2 #12", "#13"], answer=ANSWER)
    np.testing.assert_array_equal(brevity_match(far, tokenizer=TOKENIZER, half_tokens=4.0), values)


def test_a_right_answer_counts_as_correct_at_any_length():
    rollout = rollout_of(None, budget=2000, texts=["1" * 1900 + "#12"], answer=ANSWER)
    assert brevity_match(rollout, tokenizer=TOKENIZER, half_tokens=1.0)[0] > 0.5


@pytest.mark.parametrize("keywords", [{"half_tokens": 0.0}, {"least": 0.5}, {"least": 1.1}])
def test_a_bonus_that_makes_no_sense_is_refused(keywords):
    rollout = rollout_of(None, texts=["#12"], answer=ANSWER)
    with pytest.raises(UserError, match="brevity_match: needs"):
        brevity_match(rollout, tokenizer=TOKENIZER, **keywords)


# ---- median_grpo


def test_against_the_median_of_those_that_count():
    rollout = rollout_of([3] * 8, groups=[0, 0, 0, 0, 1, 1, 2, 2])
    counted = [True, True, True, False, True, True, True, False]
    rewards = rewards_of(rollout, [1.0, 0.5, -3.0, 9.0, 1.0, 0.0, 1.0, 1.0], counted)
    advantages, returns = jax.jit(above_the_median)(rewards, rollout)
    # medians 0.5 and 0.5; in the last group one is alone
    expected = np.array([0.5, 0.0, -3.5, 0.0, 0.5, -0.5, 0.0, 0.0])
    np.testing.assert_allclose(advantages, np.where(rollout.action_mask, expected[:, None], 0))
    assert returns is None


def test_what_is_above_the_median_becomes_more_probable():
    rollout = rollout_of([2, 2], groups=[0, 0])
    advantages, _ = above_the_median(rewards_of(rollout, [1.0, 0.0]), rollout)
    algorithm = median_grpo()
    batch = Experience(
        tokens=rollout.tokens,
        mask=rollout.mask,
        action_mask=rollout.action_mask,
        logprobs=rollout.logprobs,
        advantages=advantages,
        loss_weights=algorithm.weigh(rollout.action_mask),
        mean_weights=algorithm.weigh(rollout.action_mask),
    )

    def loss(logprobs):
        return algorithm.loss(Outputs(logprobs, jnp.zeros(logprobs.shape)), batch)[0]

    slope = np.asarray(jax.grad(loss)(rollout.logprobs))[:, 2:4]
    assert (slope[0] < 0).all()
    assert (slope[1] > 0).all()
    assert algorithm.needs_groups


def test_a_clip_that_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="median_grpo: needs 0 < clip_low"):
        median_grpo(clip_low=0.0)
