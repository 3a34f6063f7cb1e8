"""The form of responses: markers in their order, and how much repeats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rollout, pad_columns
from folders import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from rljax.data import pad
from rljax.errors import UserError
from rljax.rewards import format_match, repetition_penalty

PROMPT, BUDGET = 3, 15
TOKENIZER = tokenizer_of("<unk>", "<eos>", "<t>", "</t>", unk_token="<unk>", eos_token="<eos>")
MARKERS = ["<t>", "</t>", "ab", "ba"]  # the last two of two tokens


def respond(*responses, **keys):
    """Rows of responses, text or token ids, with an EOS behind each; ``aba`` is the prompt."""
    encode = lambda x: TOKENIZER.encode(x) if isinstance(x, str) else x  # noqa: E731
    rows = [[*encode("aba"), *encode(response), TOKENIZER.eos_token_id] for response in responses]
    tokens = pad(rows, PROMPT + BUDGET, TOKENIZER.eos_token_id, left=False)
    lengths = [len(row) - PROMPT for row in rows]
    return make_rollout(lengths, prompt=PROMPT, budget=BUDGET, tokens=tokens, **keys)


@functools.partial(jax.jit, static_argnames="markers")
def formed(rollout, markers=tuple(MARKERS)):
    return format_match(rollout, tokenizer=TOKENIZER, markers=list(markers))


@functools.partial(jax.jit, static_argnames="ngram")
def penalty(rollout, ngram):
    return repetition_penalty(rollout, ngram=ngram)


CASES = [
    ("<t></t>abba", 1),
    ("d<t>d</t>c abd bad", 1),
    ("</t><t>abba", 0),  # another order
    ("<t></t>baab", 0),
    ("<t></t>ab", 0),  # one is missing
    ("", 0),
    ("<t><t></t>abba", 0),  # one is there twice
    ("<t></t>abbaab", 0),
    ("<t></t>abba<t>", 0),
    ("<t></t>aba", 0),  # no token is part of two markers
    ("<t></t>a bba", 0),
]


def test_markers_by_hand():
    rollout = respond(*(response for response, _ in CASES))
    expected = [reward for _, reward in CASES]
    assert formed(rollout).tolist() == expected
    eager = format_match(rollout, tokenizer=TOKENIZER, markers=MARKERS)
    assert eager.tolist() == expected
    assert eager.dtype == jnp.float32


@few
@given(st.lists(st.text("abc", max_size=8), min_size=6, max_size=6))
def test_markers_against_the_text(texts):
    def reference(text):
        once = all(sum(text.startswith(m, i) for i in range(8)) == 1 for m in ("ab", "ca"))
        return float(once and text.index("ab") + 2 <= text.index("ca"))

    rewards = formed(respond(*texts), ("ab", "ca")).tolist()
    assert rewards == [reference(text) for text in texts]


def test_a_marker_of_the_prompt_or_across_what_the_policy_did_not_choose_is_none():
    rollout = respond("cc", "ac", "cab")
    assert formed(rollout, ("ab",)).tolist() == [0, 0, 1]
    parted = rollout.replace(action_mask=rollout.action_mask.at[2, PROMPT + 2].set(False))
    assert formed(parted, ("ab",)).tolist() == [0, 0, 0]
    begun = respond("b")  # behind the a of the prompt
    assert formed(begun, ("ab",)).tolist() == [0]


def test_a_response_that_was_cut_off_may_be_whole_in_its_form():
    assert formed(respond("ab", truncated=[True]), ("ab",)).tolist() == [1]


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ([], "markers must name at least one text"),
        (["a", ""], 'the marker "" is empty'),
        (["xy"], 'does not know the marker "xy"'),
        (["a", "b", "a"], "name each once"),
    ],
)
def test_markers_that_cannot_be(markers, message):
    with pytest.raises(UserError, match=f"format_match: .*{message}"):
        format_match(respond("a"), tokenizer=TOKENIZER, markers=markers)


def reference(ids, ngram):
    grams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
    return -(len(grams) - len(set(grams))) / max(len(grams), 1)


def test_repetition_by_hand():
    # With the EOS: aaaa$ has the pairs aa aa aa a$; abcab$ has ab bc ca ab b$; then ab b$; a$; $.
    rollout = respond("aaaa", "abcab", "ab", "a", "")
    expected = [-2 / 4, -1 / 5, 0, 0, 0]
    np.testing.assert_allclose(penalty(rollout, 2), expected, rtol=1e-6)
    np.testing.assert_allclose(repetition_penalty(rollout, ngram=2), expected, rtol=1e-6)
    np.testing.assert_allclose(penalty(rollout, 1), [-3 / 5, -2 / 6, 0, 0, 0], rtol=1e-6)
    assert repetition_penalty(respond("abcdabcdabcd")).tolist() == [
        -0.5
    ]  # 5 of 10: four by default


@pytest.mark.parametrize("ngram", [1, 2, 4, 30])
@few
@given(data=st.data())
def test_repetition_against_sets(ngram, data):
    some = data.draw(st.lists(st.integers(0, 2**17), min_size=1, max_size=3))
    response = st.lists(st.sampled_from(some), max_size=BUDGET - 1)
    ids = data.draw(st.lists(response, min_size=6, max_size=6))
    expected = [reference([*row, TOKENIZER.eos_token_id], ngram) for row in ids]
    np.testing.assert_allclose(penalty(respond(*ids), ngram), expected, rtol=1e-6)


def test_many_ngrams_that_all_differ_are_told_apart():
    """Of 2¹⁸, some 8 pairs have 32 bits of hash in common."""
    tokens, columns = np.random.default_rng(0).permutation(2**18), 2**18
    rollout = make_rollout([columns], prompt=0, budget=columns, tokens=tokens[None])
    assert penalty(rollout, 4).tolist() == [0]


def test_ngrams_do_not_span_what_the_policy_did_not_choose():
    rollout = respond("abcab")
    parted = rollout.replace(action_mask=rollout.action_mask.at[0, PROMPT + 2].set(False))
    np.testing.assert_allclose(penalty(parted, 2), [-1 / 3], rtol=1e-6)  # ab, ab b$


def test_an_ngram_of_nothing_is_refused():
    with pytest.raises(UserError, match="ngram must be at least 1, got 0"):
        repetition_penalty(respond("a"), ngram=0)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (lambda rollout: formed(rollout, ("ab", "ca")), [1, 0, 0, 0]),
        (lambda rollout: penalty(rollout, 2), [0, -4 / 6, -1 / 6, 0]),
    ],
)
def test_padding_prompt_and_order_of_rows_change_nothing(reward, expected):
    rollout = respond("abca", "aaaaaa", "abcaca", "cab")
    np.testing.assert_allclose(reward(rollout), expected, rtol=1e-6)
    for token in TOKENIZER.encode("abc"):
        outside = jnp.where(rollout.action_mask, rollout.tokens, token)
        np.testing.assert_allclose(reward(rollout.replace(tokens=outside)), expected, rtol=1e-6)
        for left, right in ((0, 3), (3, 0), (2, 1)):
            padded = rollout.replace(
                mask=pad_columns(rollout.mask, left, right, False),
                action_mask=pad_columns(rollout.action_mask, left, right, False),
                tokens=pad_columns(rollout.tokens, left, right, token),
            )
            np.testing.assert_allclose(reward(padded), expected, rtol=1e-6)
    order = jnp.array([3, 1, 0, 2])
    permuted = reward(jax.tree.map(lambda x: x[order], rollout))
    np.testing.assert_allclose(permuted, np.array(expected)[order], rtol=1e-6)
    nothing = rollout.replace(action_mask=jnp.zeros_like(rollout.action_mask))
    assert reward(nothing).tolist() == [0] * 4
