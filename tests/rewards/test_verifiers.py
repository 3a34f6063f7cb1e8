"""Verifiable rewards over responses written out as text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.data import NO_TOKEN, pad
from rljax.errors import UserError
from rljax.rewards import answer_match, exact_match
from rljax.tasks import character_tokenizer
from rljax.types import Rollout

BUDGET, ANSWER_WIDTH = 8, 4
TOKENIZER = character_tokenizer()


def respond(*cases, prompt="1+2=", left=0):
    """A rollout of (response, answer) pairs; ``$`` in a response is the EOS."""
    encode = lambda text: TOKENIZER.encode(text, add_special_tokens=False)  # noqa: E731
    ids = [
        [TOKENIZER.eos_token_id if c == "$" else encode(c)[0] for c in response]
        for response, _ in cases
    ]
    prompts = [encode(prompt)] * len(cases)
    tokens = np.concatenate(
        [
            pad(prompts, len(prompt) + left, TOKENIZER.pad_token_id, left=True),
            pad(ids, BUDGET, TOKENIZER.pad_token_id, left=False),
        ],
        axis=1,
    )
    lengths = np.array([[len(response)] for response in ids])
    columns = np.arange(tokens.shape[1]) - len(prompt) - left
    action_mask = jnp.asarray((columns >= 0) & (columns < lengths))
    answers = pad([encode(answer) for _, answer in cases], ANSWER_WIDTH, NO_TOKEN, left=False)
    return Rollout(
        tokens=jnp.asarray(tokens),
        mask=action_mask | jnp.asarray(tokens != TOKENIZER.pad_token_id),
        action_mask=action_mask,
        logprobs=jnp.zeros(tokens.shape),
        truncated=jnp.array(["$" not in response for response, _ in cases]),
        greedy=jnp.zeros(len(cases), bool),
        group=jnp.arange(len(cases)),
        extras={"answer": jnp.asarray(answers)},
    )


CASES = [
    ("#123$", "123", 1),
    ("hm#123$", "123", 1),
    ("#9#123$", "123", 1),  # the last marker counts
    ("#123#9$", "123", 0),
    ("#124$", "123", 0),
    ("#12$", "123", 0),
    ("#1234$", "123", 0),
    ("#123 $", "123", 0),  # the answer is the end of the response
    ("123$", "123", 0),
    ("#$", "123", 0),
    ("$", "123", 0),
    ("#123", "123", 0),  # cut off by the budget
    ("hmm #123", "123", 0),
    ("hmm#1234", "123", 0),  # cut off by the budget: the 4 stands where the EOS would
    ("#7$", "7", 1),
    ("ab#1234$", "1234", 1),  # up to the last column
]


def match(rollout, marker="#"):
    return answer_match(rollout, marker=marker, tokenizer=TOKENIZER)


def test_by_hand():
    rollout = respond(*((response, answer) for response, answer, _ in CASES))
    assert match(rollout).tolist() == [reward for _, _, reward in CASES]
    compiled = jax.jit(match)(rollout)
    assert compiled.tolist() == [reward for _, _, reward in CASES]
    assert compiled.dtype == jnp.float32


digits = st.text("12", min_size=1, max_size=4)


@few
@given(st.lists(st.tuples(digits, digits), min_size=8, max_size=8))
def test_one_only_for_the_very_answer(pairs):
    rollout = respond(*((f"#{said}$", answer) for said, answer in pairs))
    assert match(rollout).tolist() == [float(said == answer) for said, answer in pairs]


def test_a_marker_in_the_prompt_is_none_of_the_response():
    assert match(respond(("3$", "3"), prompt="1+2=#")).tolist() == [0.0]


def test_padding_changes_nothing_and_a_column_off_finds_nothing():
    rollout = respond(("#3$", "3"), left=3)
    assert match(rollout).tolist() == [1.0]
    for shift in (-1, 1):
        shifted = rollout.replace(action_mask=jnp.roll(rollout.action_mask, shift, axis=-1))
        assert match(shifted).tolist() == [0.0]


def test_an_empty_response_earns_nothing():
    rollout = respond(("#3$", "3"))
    nothing = rollout.replace(action_mask=jnp.zeros_like(rollout.action_mask))
    assert match(nothing).tolist() == [0.0]


def test_refusals():
    rollout = respond(("#3$", "3"))
    with pytest.raises(UserError, match='marker "##" must be one token'):
        match(rollout, marker="##")
    with pytest.raises(UserError, match='no column "target"'):
        answer_match(rollout, marker="#", tokenizer=TOKENIZER, column="target")


WHOLE = [
    ("123$", "123", 1),
    ("1234$", "1234", 1),
    ("12$", "123", 0),
    ("1234$", "123", 0),
    ("124$", "123", 0),
    ("223$", "123", 0),
    (" 123$", "123", 0),
    ("123", "123", 0),  # cut off by the budget
    ("1234", "123", 0),  # cut off by the budget: the 4 stands where the EOS would
    ("$", "1", 0),
    ("$", "", 1),
]


def test_the_whole_response_by_hand():
    rollout = respond(*((response, answer) for response, answer, _ in WHOLE))
    expected = [reward for _, _, reward in WHOLE]
    assert exact_match(rollout).tolist() == expected
    compiled = jax.jit(exact_match)(rollout)
    assert compiled.tolist() == expected
    assert compiled.dtype == jnp.float32
    order = jnp.arange(len(WHOLE))[::-1]
    assert exact_match(jax.tree.map(lambda x: x[order], rollout)).tolist() == expected[::-1]


@few
@given(st.lists(st.tuples(digits, digits), min_size=8, max_size=8))
def test_the_whole_response_is_the_very_answer(pairs):
    rollout = respond(*((f"{said}$", answer) for said, answer in pairs))
    assert exact_match(rollout).tolist() == [float(said == answer) for said, answer in pairs]


def test_the_whole_response_is_what_the_policy_chose():
    rollout = respond(("123$", "123"), ("9$", "3"))
    three = TOKENIZER.encode("3", add_special_tokens=False)[0]
    for left, right in ((0, 0), (0, 3), (3, 0), (2, 1)):
        padded = rollout.replace(
            tokens=pad_columns(rollout.tokens, left, right, three),
            mask=pad_columns(rollout.mask, left, right, False),
            action_mask=pad_columns(rollout.action_mask, left, right, False),
        )
        outside = jnp.where(padded.action_mask, padded.tokens, three)
        assert exact_match(padded.replace(tokens=outside)).tolist() == [1, 0]
    between = respond(("1823$", "123"))
    parted = between.replace(action_mask=between.action_mask.at[0, 5].set(False))
    assert exact_match(between).tolist() == [0]
    assert exact_match(parted).tolist() == [1]
    nothing = rollout.replace(action_mask=jnp.zeros_like(rollout.action_mask))
    assert exact_match(nothing).tolist() == [0, 0]


def test_refusals_of_the_whole_response():
    rollout = respond(("3$", "3"))
    with pytest.raises(UserError, match='exact_match: the data has no column "target"'):
        exact_match(rollout, column="target")
    with pytest.raises(UserError, match='exact_match: the data column "answer" must be text'):
        exact_match(rollout.replace(extras={"answer": jnp.array([3])}))


def test_a_numeric_answer_column_is_refused():
    """A data set with ``{"answer": 3}`` must not be scored against its raw number."""
    rollout = respond(("#3$", "3"), ("#4$", "3")).replace(extras={"answer": jnp.array([3, 3])})
    with pytest.raises(UserError, match='the data column "answer" must be text'):
        match(rollout)
