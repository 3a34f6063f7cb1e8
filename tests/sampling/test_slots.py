"""Rows in slots: the same responses however many decode at once, and little for ended ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samplers import (
    BUDGET,
    DECODER,
    KEY,
    MODEL,
    PAD,
    PARAMS,
    PROMPTS,
    VOCABULARY,
    assert_same,
    drawn,
    sampler,
)

from rljax.errors import UserError
from rljax.logprobs import token_logprobs
from rljax.models import decoder
from rljax.models.config import Attends
from rljax.sampling import make_sampler, sample
from rljax.sampling.chunk import cached_columns, chunk_sizes, chunk_tokens
from rljax.sharding import make_mesh


@pytest.fixture(scope="module")
def whole():
    return drawn(sampler())


def test_the_rows_are_of_all_lengths(whole):
    """So that slots are refilled, chunks are of every size, and some rows reach the budget."""
    lengths = whole.action_mask.sum(axis=1)
    assert lengths.min() < 16 < lengths.mean()  # tokens of a chunk
    assert (lengths == BUDGET).any()
    assert whole.truncated.any()


@pytest.mark.parametrize("slots", [1, 5, 15])
def test_responses_do_not_depend_on_the_slots(whole, slots):
    assert_same(drawn(sampler(slots=slots)), whole)


def test_a_budget_of_one_chunk_is_drawn_to_its_end():
    """Rows that wait do not cut it short, for nothing of it is kept for another."""
    assert_same(drawn(sampler(slots=8, max_tokens=12)), drawn(sampler(max_tokens=12)))


def test_logprobs_of_refilled_slots_are_those_of_the_training_forward():
    rollout = drawn(sampler(slots=5))
    logprobs, _ = jax.jit(lambda p, t, m: token_logprobs(MODEL, p, t, m))(
        PARAMS, rollout.tokens, rollout.mask
    )
    expected = np.where(rollout.action_mask, logprobs, 0)
    np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("slots", [None, 8])
def test_rows_stay_on_their_shards_and_draw_the_same(whole, slots):
    mesh = make_mesh(data=4, tensor=2)
    with jax.set_mesh(mesh):
        spread = drawn(sampler(slots=slots))
    assert_same(spread, whole)


def test_nothing_but_prompts_and_parameters_is_gathered_over_the_mesh():
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh):
        text = sampler(slots=8).lower(PARAMS, PROMPTS, KEY).compile().as_text()
    assert "all-to-all" not in text
    assert "all-gather" not in text


def test_a_window_is_of_tokens_and_not_of_columns():
    """Between the columns of a row and those of a chunk there may be empty ones."""
    kind = DECODER.attends[0]
    attends = (Attends(kind.rope, window=4), kind)
    near = decoder(dataclasses.replace(DECODER, attends=attends))
    rollout = drawn(sampler(near, slots=5))
    logprobs, _ = jax.jit(lambda p, t, m: token_logprobs(near, p, t, m))(
        PARAMS, rollout.tokens, rollout.mask
    )
    expected = np.where(rollout.action_mask, logprobs, 0)
    np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)


def test_layers_whose_caches_are_stacked(whole, monkeypatch):
    monkeypatch.setattr("rljax.models.transformer.MOST_UNROLLED", 1)
    assert_same(drawn(sampler(decoder(DECODER), slots=5)), whole)


def counted_steps(**settings):
    """The responses, and how many times tokens were drawn, of all slots at once."""
    calls = []

    def count(logits):
        jax.debug.callback(lambda: calls.append(logits.shape[0]))
        return logits

    rollout = sample(MODEL, PARAMS, PROMPTS, KEY, filter=count, **settings)
    jax.effects_barrier()
    return rollout, calls


def test_ended_rows_cost_no_more_than_a_chunk():
    """Work, in rows times steps, against the tokens of the responses."""
    settings = {"max_tokens": BUDGET, "eos_ids": (1, 2), "pad_id": PAD, "group_size": 2}
    rollout, calls = counted_steps(slots=4, **settings)
    tokens = int(rollout.lengths.sum())
    static = 16 * int(rollout.lengths.max())
    assert tokens <= sum(calls) < 0.6 * static
    assert max(calls) == 4


@pytest.mark.parametrize(
    ("max_tokens", "queued", "stacked", "tokens"),
    [
        (6, True, True, 6),
        (72, True, False, 16),
        (72, False, False, 72),
        (256, False, False, 32),
        (512, True, True, 64),
        (512, False, True, 512),
    ],
)
def test_tokens_of_a_chunk(max_tokens, queued, stacked, tokens):
    assert chunk_tokens(max_tokens, queued=queued, stacked=stacked) == tokens


def test_a_chunk_is_of_the_smallest_size_that_holds_what_is_alive():
    assert chunk_sizes(8, 3, 6, length=6) == [(8, 3)]
    assert chunk_sizes(32, 10, 512, length=64) == [(8, 522), (32, 266), (32, 522)]


@pytest.mark.parametrize("slots", [1, 3, 7, 64])
@pytest.mark.parametrize("max_tokens", [17, 72, 1000])
def test_some_size_holds_every_chunk(slots, max_tokens):
    assert chunk_sizes(slots, 5, max_tokens, length=16)[-1] == (slots, 5 + max_tokens)


def test_columns_of_the_caches():
    """Those of the slots, with room for one chunk, and as many in the largest chunk."""
    columns = functools.partial(cached_columns, guesses=0)
    assert columns(8, 8, 10, 512, stacked=True) == 10 + 512
    assert columns(4, 8, 10, 512, stacked=True) == 2 * (10 + 512 + 64)
    assert columns(8, 8, 10, 256, stacked=False) == 2 * (10 + 256 + 32)
    assert columns(8, 8, 10, 72, stacked=False) == 10 + 72
    assert columns(4, 8, 10, 6, stacked=False) == 10 + 10 + 6


def test_fewer_than_one_slot_are_refused():
    with pytest.raises(UserError, match="slots must be at least 1, or null for all rows; got 0"):
        make_sampler(MODEL, max_tokens=4, eos_ids=(1,), pad_id=0, slots=0)


def test_a_prompt_of_which_rows_wait_may_end_at_once():
    """Every token ends a response, so that all slots are refilled until the queue is empty."""
    eos = tuple(range(VOCABULARY))
    rollout, calls = counted_steps(
        max_tokens=BUDGET, eos_ids=eos, pad_id=PAD, group_size=2, slots=4
    )
    assert rollout.lengths.tolist() == [1] * 16
    assert calls == [4] * 4
    assert jnp.all(~rollout.truncated)
