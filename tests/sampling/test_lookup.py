"""Prompt lookup: the responses of drawing token by token, in fewer passes where guesses hit."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from samplers import assert_same

from rljax.errors import UserError
from rljax.models import decoder, llama
from rljax.models.config import Attends
from rljax.sampling import make_sampler, sample
from rljax.sampling.chunk import cached_columns
from rljax.sampling.lookup import Text, guess
from rljax.sharding import make_mesh
from rljax.types import Cache, Model, Prompts

VOCABULARY, BUDGET, PAD = 7, 40, 0
DECODER = llama(vocab_size=VOCABULARY, layers=2, width=16, heads=2, kv_heads=1).decoder
MODEL = decoder(DECODER)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
KEY = jax.random.key(3)
ROWS = np.array(
    [[0, 0, 5], [0, 4, 6], [3, 2, 3], [0, 0, 3], [0, 5, 5], [2, 3, 4], [0, 6, 1], [4, 4, 4]]
)
PROMPTS = Prompts(tokens=ROWS, mask=ROWS > 0, extras={})
GREEDY = np.arange(16) % 4 == 0


def drawn(model=MODEL, **settings):
    defaults = {"max_tokens": BUDGET, "eos_ids": (1,), "pad_id": PAD, "group_size": 2}
    draw = jax.jit(make_sampler(model, **(defaults | settings)))
    return jax.device_get(draw(PARAMS, PROMPTS, KEY, greedy=GREEDY))


@pytest.fixture(scope="module")
def plain():
    return drawn()


def test_the_rows_are_of_all_lengths(plain):
    assert plain.lengths.min() < 16 < plain.lengths.mean()  # tokens of a chunk
    assert 0 < plain.truncated.sum() < 16


@pytest.mark.parametrize("settings", [{}, {"slots": 5}, {"slots": 5, "prompt_lookup": BUDGET - 1}])
def test_responses_are_those_of_drawing_token_by_token(plain, settings):
    assert_same(drawn(**({"prompt_lookup": 3} | settings)), plain)


def test_rows_stay_on_their_shards_and_draw_the_same(plain):
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        assert_same(drawn(prompt_lookup=3, slots=8), plain)


def test_nothing_but_prompts_and_parameters_is_gathered_over_the_mesh():
    settings = {"max_tokens": BUDGET, "eos_ids": (1,), "pad_id": PAD, "group_size": 2}
    draw = jax.jit(make_sampler(MODEL, slots=8, prompt_lookup=3, **settings))
    with jax.set_mesh(make_mesh(data=8)):
        text = draw.lower(PARAMS, PROMPTS, KEY).compile().as_text()
    assert "all-to-all" not in text
    assert "all-gather" not in text


def test_windows_stacked_caches_temperature_and_filters(monkeypatch):
    monkeypatch.setattr("rljax.models.transformer.MOST_UNROLLED", 1)
    kind = DECODER.attends[0]
    attends = (Attends(kind.rope, window=4), kind)
    near = decoder(dataclasses.replace(DECODER, attends=attends))
    settings = {"slots": 5, "temperature": 0.8, "top_k": 5}
    assert_same(drawn(near, prompt_lookup=3, **settings), drawn(near, **settings))


def test_guesses_over_a_cache_of_eight_bits():
    eight = {"kv_cache_dtype": "int8", "slots": 5}
    assert_same(drawn(prompt_lookup=3, **eight), drawn(**eight), atol=1e-3)


def follow(apply=lambda: None):
    """A model whose next token is told by the last: 2 3 4 5 2 ... and 6 1, without a doubt.

    ``apply`` is called at every pass.
    """
    after = jnp.array([0, 0, 3, 4, 5, 2, 1])

    def pass_on(params, tokens, mask, cache, column=0):
        jax.debug.callback(apply)
        return 100 * jax.nn.one_hot(after[tokens], VOCABULARY), cache

    def init_cache(rows, columns):
        return Cache((jnp.zeros((rows, 1, 1, columns)),), (jnp.zeros((rows, 1, columns, 1)),))

    return Model(None, pass_on, lambda params, hidden: hidden, init_cache, {})


def passes(*prompt, **settings):
    """The response of ``follow`` to a prompt, and how many passes drew it."""
    calls = []
    tokens = np.array([prompt])
    defaults = {"eos_ids": (1,), "pad_id": PAD, "max_tokens": 20}
    rollout = sample(
        follow(lambda: calls.append(None)),
        {},
        Prompts(tokens=tokens, mask=tokens > 0, extras={}),
        KEY,
        **(defaults | settings),
    )
    jax.effects_barrier()
    np.testing.assert_allclose(rollout.logprobs, 0, atol=1e-6)
    return rollout.tokens[0, len(prompt) :].tolist(), len(calls) - 1, bool(rollout.truncated[0])


CYCLE = [4, 5, 2, 3] * 5


def test_right_guesses_cost_no_pass_of_their_own():
    assert passes(2, 3, 4, 5, 2, 3) == (CYCLE, 20, True)
    assert passes(2, 3, 4, 5, 2, 3, prompt_lookup=4) == (CYCLE, 4, True)
    # Where nothing was said before, 3 4 5 are drawn singly, until there is another 2.
    assert passes(2, prompt_lookup=4, max_tokens=18) == ([3, *CYCLE[:17]], 3 + 3, True)


def test_an_eos_among_right_guesses_ends_the_row():
    assert passes(6, 1, 2, 6, 1, 4, 6, prompt_lookup=3, max_tokens=6) == ([1] + [PAD] * 5, 1, False)
    ends = passes(2, 3, 4, 5, 2, 3, prompt_lookup=3, eos_ids=(2,), max_tokens=6)
    assert ends == ([4, 5, 2, PAD, PAD, PAD], 1, False)


def test_the_budget_may_end_among_right_guesses():
    assert passes(2, 3, 4, 5, 2, 3, prompt_lookup=3, max_tokens=6) == (CYCLE[:6], 2, True)


def guessed(*tokens, count):
    room = [PAD] * (16 - len(tokens))
    text = Text(jnp.array([[*tokens, *room]]), jnp.array([len(tokens)]))
    return guess(text, count)[0].tolist()


def test_guesses_by_hand():
    assert guessed(5, 6, 7, 8, 9, 5, 6, count=3) == [7, 8, 9]  # what followed 5 6
    assert guessed(5, 6, 7, 5, 6, 8, 5, 6, count=2) == [8, 5]  # the latest
    assert guessed(5, 6, 7, 6, 8, 5, 6, count=2) == [7, 6]  # two tokens before one
    assert guessed(5, 6, 7, 9, 6, count=2) == [7, 9]  # one is enough
    assert guessed(3, 5, 6, 5, 6, count=5) == [5, 6, 5, 6, 5]  # on and on
    assert guessed(3, 4, count=2) == [4, 4]  # nothing is alike


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.integers(1, 3), min_size=2, max_size=12), st.integers(1, 5))
def test_a_guess_reads_on_from_the_latest_place_that_reads_most_alike(tokens, count):
    def alike(end):
        """How many of the last two tokens stand before ``end``, and where that is."""
        length = next((n for n in (2, 1) if tokens[-n:] == tokens[max(end - n, 0) : end]), 0)
        return length, end

    _, place = max(alike(end) for end in range(1, len(tokens)))
    said = list(tokens)
    for _ in range(count):
        said.append(said[place])
        place += 1
    assert guessed(*tokens, count=count) == said[len(tokens) :]


def test_columns_of_the_caches():
    """As without guesses, and those that the last token of a chunk may guess."""
    assert cached_columns(8, 8, 10, 72, guesses=3, stacked=False) == 10 + 72 + 3
    assert cached_columns(4, 8, 10, 512, guesses=3, stacked=True) == 2 * (10 + 512 + 64 + 3)


@pytest.mark.parametrize("guesses", [-1, 4])
def test_guesses_that_could_not_be_right_are_refused(guesses):
    with pytest.raises(UserError, match=f"and less than max_tokens; got {guesses}, 4"):
        make_sampler(MODEL, max_tokens=4, eos_ids=(1,), pad_id=0, prompt_lookup=guesses)
