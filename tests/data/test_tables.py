"""From rows to arrays: what is padded, weighed, cut, left out and counted."""

import numpy as np
import pytest
from builders import few
from folders import TURNS
from hypothesis import given
from hypothesis import strategies as st

from rljax.data import (
    FILLER,
    NO_TOKEN,
    Limits,
    PromptTable,
    Rows,
    Sequence,
    SequenceTable,
    demonstration_table,
    labelled_table,
    pad,
    pair_table,
)
from rljax.errors import UserError
from rljax.tasks import character_tokenizer
from rljax.types import ROW

TOKENIZER = character_tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id

sequences = st.lists(st.lists(st.integers(4, 99), max_size=4), min_size=3, max_size=3)


@few
@given(sequences, st.booleans())
def test_pad(sequences, left):
    for row, sequence in zip(pad(sequences, 5, PAD, left=left), sequences, strict=True):
        rest = [PAD] * (5 - len(sequence))
        assert row.tolist() == (rest + sequence if left else sequence + rest)


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def source(*rows, name="rows.jsonl"):
    return Rows(list(rows), name, list(range(1, len(rows) + 1)))


# Prompts.

ROWS = [
    {"prompt": "1+2=", "answer": "3", "level": 1, "score": 0.5, "hard": False, "tags": ["x"]},
    {"prompt": "10+2=", "answer": "12", "level": 2, "score": 1, "hard": True, "tags": []},
]


def table(*sources, width=6, **limits):
    sources = [source(*rows, name=f"{i}.jsonl") for i, rows in enumerate(sources)]
    return PromptTable(sources, TOKENIZER, Limits(width, **limits))


def test_rows_beyond_the_memory_are_refused():
    with pytest.raises(UserError, match=r"2 rows of 1,000,000,000,000,000 tokens each do not fit"):
        pad([[1], [2]], 10**15, 0, left=True)


def test_prompts_end_at_the_same_column():
    prompts = table(ROWS).take([1, 0])
    assert prompts.tokens.tolist() == [[PAD, *ids("10+2=")], [PAD, PAD, *ids("1+2=")]]
    assert prompts.mask.tolist() == [[False] + [True] * 5, [False] * 2 + [True] * 4]
    assert (prompts.tokens.dtype, prompts.mask.dtype) == (np.int32, np.bool_)


def test_without_a_limit_the_longest_prompt_is_the_width():
    prompts = table(ROWS, width=None)
    assert prompts.tokens.shape == (2, 5)
    assert prompts.note == "2 prompts"


def test_the_other_columns_travel_along():
    extras = table(ROWS).take([1, 0]).extras
    assert extras.pop(ROW).tolist() == [1, 0]
    assert extras.keys() == {"answer", "level", "score", "hard"}  # lists are no arrays
    assert extras["answer"].tolist() == [ids("12"), [*ids("3"), NO_TOKEN]]
    assert extras["level"].tolist() == [2, 1]
    assert extras["score"].tolist() == [1.0, 0.5]
    assert extras["hard"].tolist() == [True, False]
    kinds = {name: str(column.dtype) for name, column in extras.items()}
    assert table(ROWS).extras[ROW].dtype == np.int32
    assert kinds == {"answer": "int32", "level": "int32", "score": "float32", "hard": "bool"}


def test_several_sources_keep_the_columns_that_all_have_in_one_type():
    other = {"prompt": "1+1=", "answer": "1234", "level": 2.5, "score": "high", "hard": 2, "n": 3}
    prompts = table(ROWS, [other], [other | {"tags": "x"}])
    assert prompts.extras.keys() == {"answer", "level", "hard", ROW}
    assert prompts.extras["answer"].tolist()[1:3] == [[*ids("12"), NO_TOKEN, NO_TOKEN], ids("1234")]
    assert prompts.extras["level"].tolist() == [1.0, 2.0, 2.5, 2.5]
    assert prompts.extras["level"].dtype == np.float32
    assert prompts.extras["hard"].tolist() == [0, 1, 2, 2]
    assert prompts.extras[ROW].tolist() == [0, 1, 2, 3]
    assert [part.tolist() for part in prompts.parts] == [[0, 1], [2], [3]]
    assert prompts.rows == [*ROWS, other, other | {"tags": "x"}]


def test_a_prompt_as_long_as_allowed_fits_and_one_longer_is_refused():
    assert len(table(ROWS, width=5)) == 2
    said = (
        r"^1\.jsonl:2: the prompt has 5 tokens, more than data\.max_prompt_tokens=4; so have 1 of "
        r"2 rows, and the longest has 5 \(data\.overlong may be drop or truncate\)$"
    )
    with pytest.raises(UserError, match=said):
        table(ROWS[:1], ROWS, width=4)


LONG = [{"prompt": "1234567890", "n": 0}, {"prompt": "abcd", "n": 1}, {"prompt": "efghi", "n": 2}]


def test_overlong_prompts_are_dropped_and_counted():
    prompts = table(LONG, LONG, width=4, overlong="drop")
    assert prompts.note == "2 prompts (4 longer than 4 tokens dropped)"
    assert prompts.extras["n"].tolist() == [1, 1]
    assert prompts.extras[ROW].tolist() == [0, 1]
    assert [row["n"] for row in prompts.rows] == [1, 1]
    assert [part.tolist() for part in prompts.parts] == [[0], [1]]


def test_of_overlong_prompts_the_end_stays():
    prompts = table(LONG, width=4, overlong="truncate")
    assert prompts.note == "3 prompts (2 longer than 4 tokens truncated)"
    assert [TOKENIZER.decode(row) for row in prompts.tokens] == ["7890", "abcd", "fghi"]
    assert prompts.mask.all()


def test_a_source_of_which_nothing_is_left_is_named():
    with pytest.raises(UserError, match=r"^1\.jsonl: no row is left"):
        table(ROWS, LONG[:1], width=5, overlong="drop")


def test_what_is_wrong_in_a_row_that_is_left_is_named_by_its_line_in_the_file():
    bad = [*LONG, {"prompt": "a", "n": "x"}]
    with pytest.raises(UserError, match=r'^0\.jsonl:4: "n" is \'x\', another type'):
        table(bad, width=4, overlong="drop")


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (["3", None], 2),
        (["3", 3], 2),
        ([1, 2.5, "x"], 3),  # numbers of either kind make a column
        ([True, 1, "x"], 3),
        ([None, None, 3], 3),
    ],
)
def test_a_column_of_mixed_types_is_refused_by_row(values, row):
    rows = [{"prompt": "1+1=", "answer": value} for value in values]
    with pytest.raises(UserError, match=rf'0\.jsonl:{row}: "answer" is .*another type than in row'):
        table(rows)


@pytest.mark.parametrize("number", [3_000_000_000, -3_000_000_000, 2**31, 2**63])
def test_a_whole_number_beyond_int32_is_refused_and_not_wrapped(number):
    rows = [{"prompt": "1+1=", "id": 7}, {"prompt": "1+1=", "id": number}]
    with pytest.raises(UserError, match=rf'jsonl:2: "id" is {number}, beyond 32 bits'):
        table(rows)


def test_a_number_beyond_float32_is_refused_and_no_infinity():
    rows = [{"prompt": "1+1=", "x": 3.4e38}, {"prompt": "1+1=", "x": -3.5e38}]
    with pytest.raises(UserError, match=r'jsonl:2: "x" is -3.5e\+38, beyond 32 bits'):
        table(rows)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(number):
    rows = [{"prompt": "1+1=", "x": 7.5}, {"prompt": "1+1=", "x": number}]
    with pytest.raises(UserError, match=rf'jsonl:2: "x" is {number}, no finite number'):
        table(rows)


@pytest.mark.parametrize("number", [2**31 - 1, 1 - 2**31])
def test_the_largest_whole_numbers_stay_what_they_are(number):
    assert table([{"prompt": "1+1=", "id": number}]).extras["id"].tolist() == [number]


@pytest.mark.parametrize("name", ["row_index", "reward_tokens", "python_reward/x"])
def test_the_names_of_the_hosts_own_columns_are_refused(name):
    with pytest.raises(UserError, match=f'^1.jsonl: a column cannot be called "{name}"'):
        table(ROWS, [{"prompt": "1+1=", name: "2"}])


# Demonstrations.


def demonstrations(*rows, limits=Limits(), **keywords):  # noqa: B008
    return demonstration_table([source(*rows)], TOKENIZER, limits, **keywords)


def test_the_loss_is_over_the_completion_and_its_eos_only():
    given = demonstrations(
        {"prompt": "a=", "completion": "1"}, {"prompt": "bc=", "completion": "12"}
    )
    batch = given.take([1, 0])
    assert batch.tokens.tolist() == [
        [*ids("bc=12"), EOS],
        [*ids("a=1"), EOS, PAD, PAD],
    ]
    assert batch.mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert batch.action_mask.tolist() == [
        [False] * 3 + [True] * 3,
        [False, False, True, True, False, False],
    ]
    assert [x for x in batch.__dict__.values() if x is not None] == [
        batch.tokens,
        batch.mask,
        batch.action_mask,
    ]
    assert (given.width, given.mean_tokens, given.note) == (6, 2.5, "2 demonstrations")
    assert given.take([0], width=4).tokens.tolist() == [[*ids("a=1"), EOS]]


def test_weights_of_rows_and_messages_multiply():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TURNS
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    rows = source({"messages": turns, "weight": 0.5}, {"messages": turns, "weight": 2.0})
    batch = demonstration_table([rows], tokenizer, Limits()).take([0, 1])
    text = "user: a\nassistant: b\nuser: c\nassistant:"
    start = len(text)
    assert batch.data_weights.tolist() == [[0.0] * start + [w] * 4 for w in (0.5, 2.0)]
    assert batch.action_mask.tolist() == [[False] * start + [True] * 4] * 2
    assert batch.data_weights.dtype == np.float32


def test_weights_of_0_and_1_are_no_weights():
    good = {"prompt": "a=", "completion": "1", "weight": 1.0}
    given = demonstrations(good, good | {"weight": 0.0})
    assert given.note == "1 demonstration (1 with nothing to learn dropped)"
    assert given.take([0]).data_weights is None
    batch = demonstrations(good, good | {"weight": 0.25}).take([0])
    assert batch.data_weights.tolist() == [[0.0, 0.0, 1.0, 1.0]]  # one of the others has one


def test_a_filler_has_one_token_and_nothing_to_learn():
    given = demonstrations({"prompt": "a=", "completion": "1", "weight": 0.5})
    batch = given.take([FILLER, 0])
    assert batch.tokens.tolist() == [[PAD] * 4, [*ids("a=1"), EOS]]
    assert batch.mask.tolist() == [[True, False, False, False], [True] * 4]
    assert batch.action_mask.tolist() == [[False] * 4, [False, False, True, True]]
    assert batch.data_weights.tolist() == [[0.0] * 4, [0.0, 0.0, 0.5, 0.5]]


def test_the_first_token_is_never_learned():
    """Nothing stands before it, so that it has no probability."""
    given = SequenceTable([Sequence([5, 6, 7], [1.0, 1.0, 0.0])], pad_id=9)
    assert given.take([0]).action_mask.tolist() == [[False, True, False]]
    assert given.take([FILLER], width=4).tokens.tolist() == [[9] * 4]
    assert given.mean_tokens == 1.0


A, B = {"prompt": "abcdef=", "completion": "12"}, {"prompt": "x=", "completion": "1234567"}
C = {"prompt": "y=", "completion": "1"}


def decoded(given):
    batch = given.take(range(len(given)))
    texts = [
        TOKENIZER.decode(row[mask]) for row, mask in zip(batch.tokens, batch.mask, strict=True)
    ]
    chosen = zip(batch.tokens, batch.action_mask, strict=True)
    return texts, [TOKENIZER.decode(row[mask]) for row, mask in chosen]


def test_overlong_rows_are_refused():
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:1: the prompt has 7 tokens, more than data\."
    ):
        demonstrations(A, B, C, limits=Limits(6, 8))
    said = r"^rows\.jsonl:1: the row has 10 tokens, more than data\.max_tokens=8; so have 2 of 3 "
    with pytest.raises(UserError, match=said):
        demonstrations(A, B, C, limits=Limits(7, 8))
    assert len(demonstrations(A, B, C, limits=Limits(7, 10))) == 3


def test_overlong_rows_are_dropped_and_counted():
    given = demonstrations(A, B, C, limits=Limits(6, 8, "drop"))
    assert decoded(given)[0] == ["y=1<eos>"]
    assert given.note == (
        "1 demonstration (1 with prompts longer than 6 tokens dropped, 1 longer than 8 tokens "
        "dropped)"
    )
    with pytest.raises(UserError, match=r"^rows\.jsonl: no row is left"):
        demonstrations(A, B, limits=Limits(6, 8, "drop"))


def test_prompts_are_cut_on_the_left_and_rows_at_the_end():
    given = demonstrations(A, B, C, limits=Limits(4, 6, "truncate"))
    texts, learned = decoded(given)
    assert texts == ["def=12", "x=1234", "y=1<eos>"]
    assert learned == ["12", "1234", "1<eos>"]
    assert given.note == (
        "3 demonstrations (1 with prompts longer than 4 tokens truncated, 1 longer than 6 tokens "
        "truncated)"
    )
    assert (given.width, given.mean_tokens) == (6, pytest.approx(8 / 3))


def test_a_row_that_has_nothing_left_to_learn_is_dropped_and_counted():
    given = demonstrations(A, C, limits=Limits(None, 4, "truncate"))
    assert decoded(given)[0] == ["y=1<eos>"]
    assert given.note == (
        "1 demonstration (1 longer than 4 tokens truncated, 1 with nothing to learn dropped)"
    )


def test_a_row_of_which_only_the_first_token_is_left_has_nothing_to_learn():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for turn in messages[1:] %}{{ turn.content }}{% endfor %}"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]
    alone = {"messages": turns}  # of which the template writes the answer only
    given = demonstration_table([source(alone)], tokenizer, Limits())
    assert given.take([0]).action_mask.tolist() == [[False, True]]
    with pytest.raises(UserError, match="no row is left"):
        demonstration_table([source(alone)], tokenizer, Limits(None, 1, "truncate"))


lengths = st.tuples(st.integers(1, 6), st.integers(1, 6))


@few
@given(st.lists(lengths, min_size=1, max_size=5), st.integers(1, 7), st.integers(2, 13))
def test_what_truncation_leaves(rows, max_prompt, max_tokens):
    rows = [
        {
            "prompt": "abcdef"[:p],
            "completion": "123456"[:c],
            "kept": min(p, max_prompt) < max_tokens,
        }
        for p, c in rows
    ]
    kept = [row for row in rows if row["kept"]]
    limits = Limits(max_prompt, max_tokens, "truncate")
    if not kept:
        with pytest.raises(UserError):
            demonstrations(*rows, limits=limits)
        return
    given = demonstrations(*rows, limits=limits)
    for row, text, learned in zip(kept, *decoded(given), strict=True):
        prompt = row["prompt"][-max_prompt:]
        rest = [*row["completion"], "<eos>"][: max_tokens - len(prompt)]
        assert text == prompt + "".join(rest)
        assert learned == "".join(rest)


def test_sources_are_told_apart():
    sources = [source(A, C, C, name="a"), source(B, C, name="b")]
    given = demonstration_table(sources, TOKENIZER, Limits(None, 9, "drop"))
    assert [part.tolist() for part in given.parts] == [[0, 1], [2]]
    assert given.name == "a and b"
    assert given.note == "3 demonstrations (2 longer than 9 tokens dropped)"


# Pairs.

PAIRS = [
    {"prompt": "a=", "chosen": "1", "rejected": "234", "margin": 0.5},
    {"prompt": "bcd=", "chosen": "12", "rejected": "3", "margin": 2.0},
]


def test_the_rows_of_a_pair_are_adjacent_the_chosen_one_first():
    given = pair_table([source(*PAIRS)], TOKENIZER, Limits())
    assert (len(given), given.together, given.note) == (2, 2, "2 pairs")
    batch = given.take([1, FILLER, 0])
    texts = [
        TOKENIZER.decode(row[m]) for row, m in zip(batch.tokens, batch.action_mask, strict=True)
    ]
    assert texts == ["12<eos>", "3<eos>", "", "", "1<eos>", "234<eos>"]
    assert batch.desirable.tolist() == [True, False] * 3
    assert batch.margin.tolist() == [2.0, 2.0, 0.0, 0.0, 0.5, 0.5]
    assert batch.margin.dtype == np.float32
    assert given.rows_of([1, FILLER, 0]).tolist() == [2, 3, FILLER, FILLER, 0, 1]
    assert given.item_lengths.tolist() == [6, 7]
    assert given.mean_tokens == 2.75
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in PAIRS]
    assert pair_table([source(*plain)], TOKENIZER, Limits()).take([0]).margin is None


def test_a_pair_is_as_long_as_its_longer_row_and_goes_as_a_whole():
    given = pair_table([source(*PAIRS)], TOKENIZER, Limits(None, 6, "drop"))
    assert (len(given), given.note) == (1, "1 pair (1 longer than 6 tokens dropped)")
    assert given.take([0]).margin.tolist() == [0.5, 0.5]
    given = pair_table([source(*PAIRS)], TOKENIZER, Limits(2, 4, "truncate"))
    batch = given.take([0, 1])
    texts = [TOKENIZER.decode(row[m]) for row, m in zip(batch.tokens, batch.mask, strict=True)]
    assert texts == ["a=1<eos>", "a=23", "d=12", "d=3<eos>"]
    one_empty = {"prompt": "abcd", "chosen": "1", "rejected": "2"}
    with pytest.raises(UserError, match="no row is left"):
        pair_table([source(one_empty)], TOKENIZER, Limits(None, 4, "truncate"))


def test_a_pair_of_which_one_answer_is_not_learned_is_dropped():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TURNS
    yes, no = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    pair = {"prompt": [{"role": "user", "content": "a"}], "chosen": yes, "rejected": no}
    unlearned = pair | {"rejected": [no[0] | {"weight": 0}]}
    given = pair_table([source(unlearned, pair)], tokenizer, Limits())
    assert given.note == "1 pair (1 with nothing to learn dropped)"


def test_margins_in_some_sources_only_are_refused():
    bare = {"prompt": "a=", "chosen": "1", "rejected": "2"}
    with pytest.raises(UserError, match=r"^x and y: some sources of pairs have a margin"):
        pair_table([source(PAIRS[0], name="x"), source(bare, name="y")], TOKENIZER, Limits())


# Labelled responses.

LABELLED = [
    {"prompt": "a=", "completion": "1", "label": True},
    {"prompt": "a=", "completion": "2", "label": False},
    {"prompt": "bc=", "completion": "345", "label": True},
]


def test_labels_stand_by_their_rows():
    given = labelled_table([source(*LABELLED)], TOKENIZER, Limits(), mismatched=False)
    batch = given.take([2, 1, FILLER])
    assert batch.desirable.tolist() == [True, False, False]
    assert batch.mismatched is None
    assert given.note == "3 labelled responses, 2 of them desirable"


def test_each_prompt_with_the_response_to_the_next_other_one():
    given = labelled_table([source(*LABELLED)], TOKENIZER, Limits(), mismatched=True)
    batch = given.take([0, 1, 2, FILLER]).mismatched
    texts = [TOKENIZER.decode(row[m]) for row, m in zip(batch.tokens, batch.mask, strict=True)]
    assert texts == ["a=345<eos>", "a=345<eos>", "bc=1<eos>", "<pad>"]
    chosen = zip(batch.tokens, batch.action_mask, strict=True)
    learned = [TOKENIZER.decode(row[mask]) for row, mask in chosen]
    assert learned == ["345<eos>", "345<eos>", "1<eos>", ""]
    assert batch.mismatched is batch.desirable is batch.data_weights is None


def test_mismatched_rows_are_cut_where_all_are():
    limits = Limits(None, 7)
    given = labelled_table([source(*LABELLED)], TOKENIZER, limits, mismatched=True)
    assert given.mismatched.width == 6
    long = {"prompt": "abcd=", "completion": "1", "label": True}
    given = labelled_table([source(*LABELLED, long)], TOKENIZER, limits, mismatched=True)
    batch = given.take([2, 3]).mismatched
    assert TOKENIZER.decode(batch.tokens[0][batch.mask[0]]) == "bc=1<eos>"
    assert given.mismatched.lengths.max() <= 7
    given = labelled_table([source(long, LABELLED[2])], TOKENIZER, limits, mismatched=True)
    batch = given.take([0]).mismatched
    assert TOKENIZER.decode(batch.tokens[0]) == "abcd=34"


def test_a_row_that_was_dropped_answers_no_other_prompt():
    long = {"prompt": "defghi=", "completion": "9", "label": True}
    sources = [source(long, *LABELLED)]
    given = labelled_table(sources, TOKENIZER, Limits(3, None, "drop"), mismatched=True)
    batch = given.take([0, 2]).mismatched
    texts = [TOKENIZER.decode(row[m]) for row, m in zip(batch.tokens, batch.mask, strict=True)]
    assert texts == ["a=345<eos>", "bc=1<eos>"]
    assert (
        given.note
        == "3 labelled responses (1 with prompts longer than 3 tokens dropped), 2 of them desirable"
    )


@few
@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=9))
def test_the_next_other_prompt_by_brute_force(prompts):
    rows = [
        {"prompt": prompt, "completion": str(i), "label": True} for i, prompt in enumerate(prompts)
    ]
    if len(set(prompts)) == 1:
        with pytest.raises(UserError, match="all prompts are the same"):
            labelled_table([source(*rows)], TOKENIZER, Limits(), mismatched=True)
        return
    given = labelled_table([source(*rows)], TOKENIZER, Limits(), mismatched=True)
    tokens = given.take(range(len(rows))).mismatched.tokens
    for i, prompt in enumerate(prompts):
        following = [(i + step) % len(rows) for step in range(1, len(rows))]
        other = next(j for j in following if prompts[j] != prompt)
        assert TOKENIZER.decode(tokens[i]) == f"{prompt}{other}<eos>"


# Log-probs of the reference policy.


def test_reference_log_probs_travel_with_their_rows():
    given = pair_table([source(*PAIRS)], TOKENIZER, Limits())
    reference = np.arange(4 * 7, dtype=np.float32).reshape(4, 7)
    with_reference = given.with_reference(reference)
    assert given.take([0]).ref_logprobs is None
    batch = with_reference.take([1, FILLER])
    assert batch.ref_logprobs.tolist() == [*reference[2:].tolist(), [0.0] * 7, [0.0] * 7]
    assert with_reference.take([0], width=6).ref_logprobs.tolist() == reference[:2, :6].tolist()
    np.testing.assert_array_equal(batch.tokens, given.take([1, FILLER]).tokens)


def test_mismatched_rows_have_reference_log_probs_of_their_own():
    given = labelled_table([source(*LABELLED)], TOKENIZER, Limits(), mismatched=True)
    own = np.ones((3, given.width), np.float32)
    others = np.arange(3.0, dtype=np.float32)[:, None] * np.ones(
        (3, given.mismatched.width), np.float32
    )
    batch = given.with_reference(own, others).take([2, 0])
    assert batch.ref_logprobs.tolist() == own[:2].tolist()
    assert batch.mismatched.ref_logprobs[:, 0].tolist() == [2.0, 0.0]
    assert given.take([0]).mismatched.ref_logprobs is None
