"""Drawing and appraising with fakes: which rows are drawn, which count, what an update starts
from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import make_rollout

from rljax.advantages import group_relative
from rljax.logprobs import token_logprobs
from rljax.losses import make_correction
from rljax.shaping import chain, kl_in_loss, kl_penalty, overlong_filter
from rljax.train import (
    init_state,
    make_appraise,
    make_draw,
    make_judge,
    make_score,
    without_yardsticks,
)
from rljax.train.collect import Appraised
from rljax.types import (
    REWARD_CROPPED,
    REWARD_TOKENS,
    Evidence,
    Model,
    Prompts,
    Role,
    Rollout,
    Scored,
)

# A network without context: the logits of the next token are a row of a table, by the token before.

VOCAB, TEMPERATURE = 4, 0.5
BIGRAM = Model(
    init=lambda key: jnp.zeros((VOCAB, VOCAB)),
    apply=lambda params, tokens, mask: params[tokens],
    head=lambda params, hidden: hidden,
    init_cache=None,
    axes=(None, None),
)
FIRST = BIGRAM._replace(head=lambda params, hidden: hidden[..., 0])  # numbers instead of logits
TABLE = jnp.sin(jnp.arange(16.0)).reshape(VOCAB, VOCAB)
ROLES = {
    "policy": Role(BIGRAM, ("policy",)),
    "reference": Role(BIGRAM, ("reference",)),
    "value": Role(FIRST, ("value",)),
}
STATE = init_state(
    key=jax.random.key(0),
    params={"policy": TABLE, "value": 3.0 * TABLE},
    optimizers={"policy": optax.sgd(1.0), "value": optax.sgd(1.0)},
    frozen={"reference": -TABLE},
    shaping={},
)


# make_draw


def sample(params, prompts, key, *, group_size, greedy=False, first_row=0) -> Rollout:
    """What it was asked with, as a rollout of zeros."""
    rows = prompts.tokens.shape[0] * group_size
    rollout = make_rollout([1] * rows)
    return rollout.replace(
        greedy=jnp.broadcast_to(greedy, (rows,)),
        extras={
            "params": jnp.broadcast_to(params, (rows, VOCAB, VOCAB)),
            "draw": jax.random.uniform(key, (rows,)),
            "row": first_row + jnp.arange(rows),
        },
    )


PROMPTS = Prompts(jnp.ones((3, 2), jnp.int32), jnp.ones((3, 2), bool), {})


@pytest.mark.parametrize(("yardstick", "group"), [(False, [0, 0]), (True, [1, 0, 0])])
def test_each_group_begins_with_its_greedy_row_if_there_is_a_yardstick(yardstick, group):
    key = jax.random.key(1)
    draw = make_draw(ROLES, functools.partial(sample, group_size=2), yardstick=yardstick)
    rollout = jax.jit(draw)(STATE, PROMPTS, key)
    assert rollout.greedy.tolist() == [bool(greedy) for greedy in group] * 3
    np.testing.assert_array_equal(rollout.extras["params"][0], TABLE)
    np.testing.assert_array_equal(
        rollout.extras["draw"], jax.random.uniform(key, (3 * len(group),))
    )


@pytest.mark.parametrize("yardstick", [False, True])
def test_a_part_has_the_rows_and_the_prompts_of_the_whole(yardstick):
    draw = make_draw(ROLES, functools.partial(sample, group_size=2), yardstick=yardstick)
    draw, size = jax.jit(draw), 2 + yardstick
    whole = draw(STATE, PROMPTS, jax.random.key(1))
    part = draw(STATE, jax.tree.map(lambda x: x[1:], PROMPTS), jax.random.key(1), 1)
    np.testing.assert_array_equal(part.extras["row"], whole.extras["row"][size:])
    np.testing.assert_array_equal(part.group, whole.group[: 2 * size] + 1)


def test_without_yardsticks_the_rows_behind_each_first_are_left():
    def appraise(state, rollout):
        seen = Evidence(
            rollout.tokens,
            rollout.mask,
            rollout.action_mask,
            logprobs=rollout.logprobs,
            bad={},
            column=rollout.group,
            figures={},
            source={},
            learned=rollout.group,
        )
        rows = {"row": rollout.group, "tokens": rollout.tokens}
        return Appraised(rows, "shaping", {"metric": 1}, seen)

    rollout = make_rollout([1] * 9).replace(tokens=jnp.arange(72).reshape(9, 8))
    rest, shaping, metrics, evidence = without_yardsticks(appraise, 2)(STATE, rollout)
    kept = [1, 2, 4, 5, 7, 8]
    assert rest["row"].tolist() == kept
    np.testing.assert_array_equal(rest["tokens"], rollout.tokens[jnp.array(kept)])
    assert (shaping, metrics) == ("shaping", {"metric": 1})
    assert len(evidence.tokens) == 9  # a yardstick may be at fault, too
    assert evidence.learned.tolist() == kept


# make_score, make_judge

TOKENS = jnp.array([[0, 1, 2, 3], [0, 3, 1, 0], [0, 2, 2, 1], [0, 1, 3, 0]])
DRAWN = make_rollout(
    [2, 1, 2, 2], prompt=2, budget=2, group=[0, 0, 1, 1], truncated=[False, False, True, False]
).replace(tokens=TOKENS)
RAW = jnp.array([1.0, 0.0, 0.25, 2.0])


def scored(state, rollout) -> Scored:
    """The last one's reward has failed."""
    return Scored(RAW, RAW > 0.5, jnp.array([True, True, True, False]), {"said": jnp.float32(7)})


def judge_by(**stages):
    return make_judge(ROLES, scored, chain(**stages), temperature=TEMPERATURE)


def with_shaping(**stages):
    return STATE.replace(shaping=chain(**stages).init())


def logprobs_by_hand(table, tokens=TOKENS, temperature=TEMPERATURE):
    """log softmax(table[before] / temperature)[token], column by column; the first is 0."""
    logits = np.asarray(table, np.float64) / temperature
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    columns = [logp[tokens[:, t - 1], tokens[:, t]] for t in range(1, tokens.shape[1])]
    return np.stack([np.zeros(len(tokens)), *columns], axis=1)


def test_a_group_whose_yardstick_was_not_scored_does_not_count():
    """Its baseline would be 0, as if the greedy response had been wrong."""
    drawn = DRAWN.replace(greedy=jnp.array([True, False, False, True]))  # the last has failed
    judge = make_judge(ROLES, scored, chain(), temperature=TEMPERATURE, yardstick=True)
    assert judge(STATE, drawn).rewards.counted.tolist() == [False, True, False, False]
    assert judge_by()(STATE, drawn).rewards.counted.tolist() == [False, True, True, False]


def test_responses_whose_reward_failed_and_greedy_ones_do_not_count():
    greedy = DRAWN.replace(greedy=jnp.array([True, False, False, False]))
    judged = judge_by()(STATE, greedy)
    assert judged.rewards.counted.tolist() == [False, True, True, False]
    assert judged.rewards.raw.tolist() == RAW.tolist()
    assert judged.rewards.correct.tolist() == [True, False, False, True]
    assert float(judged.metrics["said"]) == 7.0
    assert float(judged.metrics["reward_mean"]) == pytest.approx(0.125)


def test_the_reference_is_asked_only_where_a_stage_needs_it():
    assert judge_by()(STATE, DRAWN).rollout.ref_logprobs is None
    stages = {"kl": kl_in_loss(0.1)}
    judged = judge_by(**stages)(with_shaping(**stages), DRAWN)
    expected = np.where(DRAWN.action_mask, logprobs_by_hand(-TABLE), 0.0)
    np.testing.assert_allclose(judged.rollout.ref_logprobs, expected, rtol=1e-5, atol=1e-6)


def test_tunix_the_kl_of_identical_models_was_not_0():
    """The reference was asked at another temperature than the one that sampled."""
    drawn, _ = token_logprobs(BIGRAM, -TABLE, TOKENS, DRAWN.mask, temperature=TEMPERATURE)
    rollout = DRAWN.replace(logprobs=jnp.where(DRAWN.action_mask, drawn, 0.0))
    stages = {"kl": kl_in_loss(0.1)}
    judged = judge_by(**stages)(with_shaping(**stages), rollout)
    assert float(judged.metrics["reference_kl"]) == 0.0


def test_the_reward_model_reads_the_tokens_that_the_host_made_if_there_are_any():
    roles = ROLES | {"reward": Role(FIRST, ("value",))}

    def score_it(state, rollout):
        return make_score(
            roles, lambda rollout: Scored(rollout.reward_model, RAW > 0, RAW > 0, {})
        )(state, rollout)

    table = np.asarray(3.0 * TABLE)[:, 0]
    plain = score_it(STATE, DRAWN)
    last = TOKENS[jnp.arange(4), jnp.array([3, 2, 3, 3])]  # of the row's real tokens
    np.testing.assert_allclose(plain.raw, table[last], rtol=1e-6)
    foreign = jnp.array([[2, 1, -1], [3, -1, -1], [0, 0, 2], [1, -1, -1]])
    cropped = jnp.array([True, False, False, False])
    extras = {REWARD_TOKENS: foreign, REWARD_CROPPED: cropped}
    other = score_it(STATE, DRAWN.replace(extras=extras))
    np.testing.assert_allclose(other.raw, table[np.array([1, 3, 2, 1])], rtol=1e-6)
    assert float(other.metrics["reward_model/cropped_ratio"]) == 0.25
    assert not plain.metrics


# make_appraise


def appraise(rollout=DRAWN, *, correction=None, roles=("policy", "reference"), **stages):
    appraise_it = make_appraise(
        {name: ROLES[name] for name in roles},
        judge_by(**stages),
        functools.partial(group_relative, scale="none"),
        temperature=TEMPERATURE,
        correction=correction,
    )
    return appraise_it(with_shaping(**stages), rollout)[:3]


STALE = DRAWN.replace(logprobs=jnp.where(DRAWN.action_mask, -1.0, 0.0))


def test_rows_that_do_not_count_have_no_tokens_to_learn_from():
    """The last row's reward has failed, so that its neighbour is alone in its group."""
    experience, _, metrics = appraise()
    counted = jnp.array([True, True, True, False])
    assert experience.action_mask.tolist() == (DRAWN.action_mask & counted[:, None]).tolist()
    assert experience.mask.tolist() == DRAWN.mask.tolist()
    assert experience.advantages[:, 2].tolist() == [0.5, -0.5, 0.0, 0.0]
    assert int(metrics["response_tokens"]) == 7  # all that were drawn


def test_without_a_correction_an_update_starts_from_the_log_probs_drawn_with():
    experience, _, metrics = appraise(STALE)
    np.testing.assert_array_equal(experience.logprobs, STALE.logprobs)
    assert experience.importance is None
    assert not any(name.startswith("correction/") for name in metrics)


def test_with_a_correction_it_starts_from_the_policy_of_now():
    experience, _, metrics = appraise(STALE, correction=make_correction(cap=8.0))
    now, mask = logprobs_by_hand(TABLE), np.asarray(DRAWN.action_mask)
    np.testing.assert_allclose(experience.logprobs[mask], now[mask], rtol=1e-5)
    expected = np.where(mask, np.exp(now + 1.0), 0.0)
    np.testing.assert_allclose(experience.importance, expected, rtol=1e-5)
    counted = mask & np.array([True, True, True, False])[:, None]
    mean = expected[counted].mean()
    np.testing.assert_allclose(metrics["correction/importance_mean"], mean, rtol=1e-5)


def test_a_correction_of_identical_policies_changes_nothing():
    now, _ = token_logprobs(BIGRAM, TABLE, TOKENS, DRAWN.mask, temperature=TEMPERATURE)
    fresh = DRAWN.replace(logprobs=jnp.where(DRAWN.action_mask, now, 0.0))
    plain, _, _ = appraise(fresh)
    corrected, _, metrics = appraise(fresh, correction=make_correction(reject_above=1e-6))
    mask = DRAWN.action_mask
    np.testing.assert_array_equal(corrected.importance, mask.astype(jnp.float32))
    np.testing.assert_array_equal(corrected.logprobs[mask], plain.logprobs[mask])
    np.testing.assert_array_equal(corrected.action_mask, plain.action_mask)
    np.testing.assert_array_equal(corrected.advantages, plain.advantages)
    assert float(metrics["correction/rejected_ratio"]) == 0.0


def test_rejected_rows_have_no_tokens_and_enter_no_statistics():
    """Of the first group a third row is rejected, whose reward would move the mean."""
    rows = jnp.array([0, 1, 3])
    three = jax.tree.map(lambda x: x[rows], DRAWN).replace(group=jnp.zeros(3, jnp.int32))

    def judge(state, rollout):
        judged = judge_by()(state, DRAWN)
        rewards = jax.tree.map(lambda x: x[rows], judged.rewards)
        scored = judged.scored._replace(raw=RAW[rows], counted=rows >= 0)
        rewards = rewards.replace(counted=rows >= 0)
        return judged._replace(rollout=rollout, scored=scored, rewards=rewards)

    def correct(logprobs, rollout, counted):
        return jnp.ones(logprobs.shape), jnp.array([True, True, False]), {}

    make = functools.partial(
        make_appraise,
        ROLES,
        judge,
        functools.partial(group_relative, scale="none"),
        temperature=TEMPERATURE,
    )
    experience, *_ = make(correction=correct)(STATE, three)
    assert experience.advantages[:, 2].tolist() == [0.5, -0.5, 0.0]
    assert experience.action_mask.any(axis=-1).tolist() == [True, True, False]
    everything, *_ = make()(STATE, three)
    assert everything.advantages[:, 2].tolist() == [0.0, -1.0, 1.0]


def test_the_reference_goes_along_only_where_the_loss_prices_it():
    plain, _, metrics = appraise(kl=kl_penalty(0.25))  # in the reward
    assert "reference_kl" in metrics
    assert plain.kl_coef is None
    assert plain.ref_logprobs is None
    priced, _, metrics = appraise(kl=kl_in_loss(0.25))
    assert priced.kl_coef.tolist() == [0.25] * 4
    expected = np.where(DRAWN.action_mask, logprobs_by_hand(-TABLE), 0.0)
    np.testing.assert_allclose(priced.ref_logprobs, expected, rtol=1e-5, atol=1e-6)
    assert "reference_kl" in metrics


def test_values_are_of_the_state_before_each_token():
    """The shift test: column t's value is the table's, at the token before."""
    experience, _, _ = appraise(roles=("policy", "value"))
    before = np.asarray(TOKENS)[:, :-1]
    np.testing.assert_allclose(experience.values[:, 1:], 3.0 * TABLE[before, 0], rtol=1e-6)
    assert not experience.values[:, 0].any()
    assert appraise()[0].values is None


def test_trl_truncated_responses_were_masked_from_the_loss_and_still_in_the_statistics():
    rollout = DRAWN.replace(group=jnp.zeros(4, jnp.int32))
    experience, _, metrics = appraise(rollout, overlong=overlong_filter())
    # 1 and 0 count; 0.25 was cut off, and 2 has failed
    assert experience.advantages[:, 2].tolist() == [0.5, -0.5, 0.0, 0.0]
    assert experience.action_mask.any(axis=-1).tolist() == [True, True, False, False]
    assert float(metrics["left_out_ratio"]) == 0.5


@pytest.mark.parametrize("correction", [None, make_correction(reject_above=1.0)])
def test_compiled_equals_eager(correction):
    stages = {"kl": kl_in_loss(0.25)}
    compiled = jax.jit(lambda rollout: appraise(rollout, correction=correction, **stages))(STALE)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        compiled,
        appraise(STALE, correction=correction, **stages),
    )
