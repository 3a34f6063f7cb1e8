"""The sampler: what it draws, what it reports of it, and what it does not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.logprobs import token_logprobs
from rljax.models import decoder, llama
from rljax.sampling import make_sampler, sample
from rljax.types import Prompts

VOCABULARY, WIDTH, BUDGET, PAD = 11, 4, 6, 0
MODEL = decoder(llama(vocab_size=VOCABULARY, layers=2, width=16, heads=4, kv_heads=2).decoder)
PARAMS = jax.tree.map(lambda x: 2.5 * x, MODEL.init(jax.random.key(0)))  # far from uniform
KEY = jax.random.key(7)


def prompts(*rows, width=WIDTH):
    tokens = np.zeros((len(rows), width), np.int32)
    for array, row in zip(tokens, rows, strict=True):
        array[width - len(row) :] = row
    return Prompts(tokens=tokens, mask=tokens > 0, extras={"id": np.arange(len(rows))})


PROMPTS = prompts([5, 6, 7], [3], [1, 2, 3, 4])


def sampler(**settings):
    defaults = {"max_tokens": BUDGET, "eos_ids": (2, 9), "pad_id": PAD}
    return make_sampler(MODEL, **(defaults | settings))


draw = jax.jit(sampler(group_size=4))
draw_without_eos = jax.jit(sampler(eos_ids=(VOCABULARY,)))


@pytest.fixture(scope="module")
def rollout():
    return jax.device_get(draw(PARAMS, PROMPTS, KEY))


def test_shapes_groups_and_extras(rollout):
    assert rollout.tokens.shape == (12, WIDTH + BUDGET)
    assert rollout.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rollout.extras["id"].tolist() == rollout.group.tolist()
    np.testing.assert_array_equal(rollout.tokens[:, :WIDTH], PROMPTS.tokens.repeat(4, axis=0))


def test_tunix_the_eos_was_cut_off_and_never_trained(rollout):
    for tokens, actions, truncated in zip(
        rollout.tokens, rollout.action_mask, rollout.truncated, strict=True
    ):
        response = tokens[WIDTH:].tolist()
        ends = [i for i, token in enumerate(response) if token in (2, 9)]
        length = ends[0] + 1 if ends else BUDGET
        assert actions.tolist() == [False] * WIDTH + [i < length for i in range(BUDGET)]
        assert truncated == (not ends)
        assert set(response[length:]) <= {PAD}
    assert set(rollout.tokens[rollout.action_mask].tolist()) >= {2, 9}  # both EOS ids occur
    assert 0 < rollout.truncated.sum() < 12  # and so do both ends


def test_rows_of_a_part_are_those_of_the_whole(rollout):
    part = draw(PARAMS, jax.tree.map(lambda x: x[1:], PROMPTS), KEY, first_row=4)
    np.testing.assert_array_equal(part.tokens, rollout.tokens[4:])
    np.testing.assert_allclose(part.logprobs, rollout.logprobs[4:], atol=1e-5)
    other = draw(PARAMS, jax.tree.map(lambda x: x[1:], PROMPTS), KEY)
    assert (other.tokens != rollout.tokens[4:]).any()


def test_logprobs_equal_those_of_the_training_forward(rollout):
    logprobs, _ = jax.jit(lambda p, t, m: token_logprobs(MODEL, p, t, m))(
        PARAMS, rollout.tokens, rollout.mask
    )
    expected = np.where(rollout.action_mask, logprobs, 0)
    np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)
    assert (rollout.logprobs[rollout.action_mask] < 0).all()


def test_logprobs_are_of_the_tempered_distribution_before_the_filter():
    cold = jax.device_get(jax.jit(sampler(temperature=0.5, top_k=2))(PARAMS, PROMPTS, KEY))
    logprobs, _ = jax.jit(lambda p, t, m: token_logprobs(MODEL, p, t, m, temperature=0.5))(
        PARAMS, cold.tokens, cold.mask
    )
    np.testing.assert_allclose(cold.logprobs, np.where(cold.action_mask, logprobs, 0), atol=1e-4)


def test_greedy_is_the_argmax_of_each_step():
    greedy = jax.device_get(draw_without_eos(PARAMS, PROMPTS, KEY, greedy=True))
    for prompt, mask, tokens in zip(PROMPTS.tokens, PROMPTS.mask, greedy.tokens, strict=True):
        sequence = prompt[mask].tolist()
        for token in tokens[WIDTH:]:
            ids = jnp.array([sequence])
            hidden = MODEL.apply(PARAMS, ids, jnp.ones_like(ids, bool))
            assert token == int(MODEL.head(PARAMS, hidden[0, -1]).argmax())
            sequence.append(int(token))


def test_greedy_by_row():
    mixed = draw_without_eos(PARAMS, PROMPTS, KEY, greedy=jnp.array([True, False, True]))
    greedy = draw_without_eos(PARAMS, PROMPTS, KEY, greedy=True)
    warm = draw_without_eos(PARAMS, PROMPTS, KEY)
    np.testing.assert_array_equal(mixed.tokens[::2], greedy.tokens[::2])
    np.testing.assert_array_equal(mixed.tokens[1], warm.tokens[1])


def test_a_row_does_not_depend_on_its_neighbours(rollout):
    others = prompts([5, 6, 7], [8, 8], [2])
    changed = jax.device_get(draw(PARAMS, others, KEY))
    np.testing.assert_array_equal(changed.tokens[:4], rollout.tokens[:4])
    assert (changed.tokens[4:] != rollout.tokens[4:]).any()


def test_more_padding_changes_nothing(rollout):
    wide = prompts([5, 6, 7], [3], [1, 2, 3, 4], width=WIDTH + 3)
    padded = jax.device_get(draw(PARAMS, wide, KEY))
    np.testing.assert_array_equal(padded.tokens[:, 3:], rollout.tokens)
    np.testing.assert_allclose(padded.logprobs[:, 3:], rollout.logprobs, atol=1e-5)


def test_rows_of_a_group_and_keys_differ(rollout):
    assert len({tuple(row) for row in rollout.tokens[:4]}) > 1
    other = draw(PARAMS, PROMPTS, jax.random.key(8))
    assert (np.asarray(other.tokens) != rollout.tokens).any()


def test_frequencies_follow_the_logprobs():
    """The first token of 2,048 draws of one prompt against its probabilities."""
    many = jax.jit(sampler(group_size=2048, max_tokens=1))(PARAMS, prompts([3, 4]), KEY)
    hidden = MODEL.apply(PARAMS, jnp.array([[3, 4]]), jnp.ones((1, 2), bool))
    expected = jax.nn.softmax(MODEL.head(PARAMS, hidden[0, -1]))
    observed = np.bincount(np.asarray(many.tokens[:, -1]), minlength=VOCABULARY) / 2048
    np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / 2048))


def test_the_loop_stops_when_every_row_has_ended():
    """With every token an EOS, one decode is enough."""
    ended = sampler(eos_ids=tuple(range(VOCABULARY)))(PARAMS, PROMPTS, KEY)
    assert ended.lengths.tolist() == [1, 1, 1]
    calls = []

    def counted(logits):
        jax.debug.callback(lambda: calls.append(1))
        return logits

    sample(
        MODEL,
        PARAMS,
        PROMPTS,
        KEY,
        max_tokens=BUDGET,
        eos_ids=tuple(range(VOCABULARY)),
        pad_id=PAD,
        filter=counted,
    )
    jax.effects_barrier()
    assert len(calls) == 1


def test_bad_settings_are_refused():
    for settings in ({"temperature": 0.0}, {"group_size": 0}, {"max_tokens": 0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=r"needs|must"):
            sampler(**settings)
