"""A reward model, from its score of a row to the reward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rollout, pad_columns
from folders import numbers, shape_of

from rljax.errors import UserError
from rljax.logprobs import sequence_scores
from rljax.models import decoder
from rljax.rewards import reward_model

MODEL = decoder(dataclasses.replace(shape_of().decoder, remat="full"), "value")
PARAMS = numbers(MODEL)
TOKENS = jnp.array([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]])
LAST = jnp.array([4, 2, 0])
MASK = jnp.arange(5) <= LAST[:, None]


@jax.jit
def scores(tokens, mask):
    return sequence_scores(MODEL, PARAMS, tokens, mask)


def test_a_score_is_the_heads_at_the_last_real_token():
    everywhere = MODEL.head(PARAMS, MODEL.apply(PARAMS, TOKENS, MASK))
    expected = jnp.take_along_axis(everywhere, LAST[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(scores(TOKENS, MASK), expected, rtol=1e-5)
    assert jnp.unique(jnp.round(everywhere[MASK], 4)).size == MASK.sum()  # no two are alike


@pytest.mark.parametrize(("left", "right"), [(0, 3), (3, 0), (2, 1)])
def test_padding_changes_nothing(left, right):
    padded = scores(pad_columns(TOKENS, left, right, 3), pad_columns(MASK, left, right, False))
    np.testing.assert_allclose(padded, scores(TOKENS, MASK), rtol=1e-4)


def test_what_is_padded_is_not_read():
    np.testing.assert_array_equal(
        scores(jnp.where(MASK, TOKENS, 0), MASK), scores(jnp.where(MASK, TOKENS, 103), MASK)
    )


def test_every_real_token_counts():
    before = scores(TOKENS, MASK)
    for column in range(5):
        changed = scores(TOKENS.at[:, column].set(50), MASK) != before
        assert changed.tolist() == MASK[:, column].tolist()


ROLLOUT = make_rollout([1, 2, 3]).replace(reward_model=jnp.array([1.0, -2.0, 4.0]))


def test_a_reward_is_shifted_then_scaled():
    assert reward_model(ROLLOUT).tolist() == [1.0, -2.0, 4.0]
    assert reward_model(ROLLOUT, shift=2.0, scale=0.5).tolist() == [-0.5, -2.0, 1.0]


def test_without_a_model_it_is_refused():
    with pytest.raises(UserError, match=r"reward_model: models\.reward names no model"):
        reward_model(make_rollout([1]))
