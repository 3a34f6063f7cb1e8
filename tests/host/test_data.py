"""Files and rows to batches: faults named by their place, batches a function of their index."""

import json

import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.host.data import (
    NO_TOKEN,
    PromptTable,
    demonstration_batches,
    pad,
    prompt_batches,
    read_jsonl,
)
from rljax.tasks import character_tokenizer
from rljax.types import ROW

TOKENIZER = character_tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id


def written(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_jsonl(tmp_path):
    path = written(tmp_path, '{"prompt": "1+1="}\n\n  \n{"prompt": "é"}\n')
    assert read_jsonl(path) == [{"prompt": "1+1="}, {"prompt": "é"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n\n{"prompt": \n', r"rows\.jsonl:3: not valid JSON"),
        ('{"prompt": "a"}\n["b"]\n', r'rows\.jsonl:2: expected a JSON object, got \["b"\]'),
        ("\n\n", r"rows\.jsonl: no rows"),
        (b'{"prompt": "\xff"}', r"rows\.jsonl: not UTF-8 text \(byte 12\)"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read_jsonl(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the data file .*none\.jsonl: No such file"):
        read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_a_newline_ends_a_line(tmp_path, separator):
    """JSON allows a raw U+2028 inside a string, and ``ensure_ascii=False`` writes it so."""
    row = {"prompt": f"a{separator}b"}
    line = json.dumps(row, ensure_ascii=False)
    assert read_jsonl(written(tmp_path, line + "\r\n")) == [row]


sequences = st.lists(st.lists(st.integers(4, 99), max_size=4), min_size=3, max_size=3)


@few
@given(sequences, st.booleans())
def test_pad(sequences, left):
    for row, sequence in zip(pad(sequences, 5, PAD, left=left), sequences, strict=True):
        rest = [PAD] * (5 - len(sequence))
        assert row.tolist() == (rest + sequence if left else sequence + rest)


ROWS = [
    {"prompt": "1+2=", "answer": "3", "level": 1, "score": 0.5, "hard": False, "tags": ["x"]},
    {"prompt": "10+2=", "answer": "12", "level": 2, "score": 1, "hard": True, "tags": []},
]


def table(rows, width=6):
    return PromptTable(rows, TOKENIZER, source="rows.jsonl", max_prompt_tokens=width)


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_prompts_end_at_the_same_column():
    prompts = table(ROWS).take([1, 0])
    assert prompts.tokens.tolist() == [[PAD, *ids("10+2=")], [PAD, PAD, *ids("1+2=")]]
    assert prompts.mask.tolist() == [[False] + [True] * 5, [False] * 2 + [True] * 4]


def test_the_other_columns_travel_along():
    extras = table(ROWS).take([1, 0]).extras
    assert extras.pop(ROW).tolist() == [1, 0]
    assert extras.keys() == {"answer", "level", "score", "hard"}  # lists are no arrays
    assert extras["answer"].tolist() == [ids("12"), [*ids("3"), NO_TOKEN]]
    assert extras["level"].tolist() == [2, 1]
    assert extras["score"].tolist() == [1.0, 0.5]
    assert extras["hard"].tolist() == [True, False]
    kinds = {name: str(column.dtype) for name, column in extras.items()}
    assert kinds == {"answer": "int32", "level": "int32", "score": "float32", "hard": "bool"}


def test_a_prompt_as_long_as_allowed_fits_and_one_longer_is_refused():
    assert len(table(ROWS, width=5)) == 2
    with pytest.raises(
        UserError,
        match=r"rows\.jsonl: row 2: the prompt has 5 tokens, more than data\.max_prompt_tokens=4",
    ):
        table(ROWS, width=4)


@pytest.mark.parametrize("bad", [{}, {"prompt": ""}, {"prompt": 7}, {"prompt": None}])
def test_a_row_without_a_prompt_is_named(bad):
    with pytest.raises(UserError, match=r'rows\.jsonl: row 3: expected text in "prompt"'):
        table([*ROWS, bad])


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
    with pytest.raises(UserError, match=rf'row {row}: "answer" is .*another type than in row 1'):
        table(rows)


@pytest.mark.parametrize("number", [3_000_000_000, -3_000_000_000, 2**31, 2**63])
def test_a_whole_number_beyond_int32_is_refused_and_not_wrapped(number):
    rows = [{"prompt": "1+1=", "id": 7}, {"prompt": "1+1=", "id": number}]
    with pytest.raises(UserError, match=rf'rows\.jsonl: row 2: "id" is {number}, beyond 32 bits'):
        table(rows)


@pytest.mark.parametrize("number", [2**31 - 1, 1 - 2**31])
def test_the_largest_whole_numbers_stay_what_they_are(number):
    assert table([{"prompt": "1+1=", "id": number}]).extras["id"].tolist() == [number]


def test_tunix_maxtext_openrlhf_a_resume_forgot_the_data_position():
    rows = [{"prompt": f"{i}+1=", "index": i} for i in range(7)]

    def batches(seed=0):
        return prompt_batches(table(rows), prompts_per_step=3, seed=seed)

    forwards = [batches()[step].extras["index"].tolist() for step in range(6)]
    again = batches()
    backwards = [again[step].extras["index"].tolist() for step in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert forwards != [batches(seed=1)[step].extras["index"].tolist() for step in range(6)]


def test_each_epoch_covers_every_row_once_in_another_order():
    rows = [{"prompt": f"{i}+1=", "index": i} for i in range(7)]
    batches = prompt_batches(table(rows), prompts_per_step=3, seed=0)
    drawn = np.concatenate([batches[step].extras["index"] for step in range(7)]).reshape(3, 7)
    assert np.sort(drawn).tolist() == [list(range(7))] * 3  # 3 epochs of 7 in 7 batches of 3
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 3


def test_a_prompt_stays_with_its_answer():
    rows = [{"prompt": f"{i}+1=", "index": i} for i in range(7)]
    batch = prompt_batches(table(rows), prompts_per_step=5, seed=0)[0]
    for tokens, mask, index in zip(batch.tokens, batch.mask, batch.extras["index"], strict=True):
        assert TOKENIZER.decode(tokens[mask]) == f"{index}+1="


# Lengths with EOS: 2 + 2, 2 + 3, 3 + 4, 3 + 5.
DEMONSTRATIONS = [
    {"prompt": "a=", "completion": "1"},
    {"prompt": "b=", "completion": "12"},
    {"prompt": "cc=", "completion": "123"},
    {"prompt": "dd=", "completion": "1234"},
]


def demonstrations(**keywords):
    keywords = {"batch_size": 2, "buckets": 2, "seed": 0} | keywords
    return demonstration_batches(DEMONSTRATIONS, TOKENIZER, source="rows.jsonl", **keywords)


def test_the_loss_is_over_the_completion_and_its_eos_only():
    batches, _ = demonstrations(batch_size=4, buckets=1)
    batch = batches[0]
    seen = set()
    for tokens, mask, action_mask in zip(batch.tokens, batch.mask, batch.action_mask, strict=True):
        text = TOKENIZER.decode(tokens[mask])
        prompt, completion = TOKENIZER.decode(tokens[mask & ~action_mask]), tokens[action_mask]
        assert completion[-1] == EOS
        assert {"prompt": prompt, "completion": TOKENIZER.decode(completion[:-1])} in DEMONSTRATIONS
        assert (tokens[~mask] == PAD).all()
        # one stretch: prompt, completion, padding
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert action_mask[mask].tolist() == sorted(action_mask[mask].tolist())
        seen.add(text)
    assert len(seen) == 4


def test_mean_tokens_counts_completions_with_their_eos():
    assert demonstrations()[1] == 3.5


def test_a_batch_comes_from_one_bucket_and_is_padded_to_its_longest():
    batches, _ = demonstrations()
    shapes = [batches[step].tokens.shape for step in range(4)]
    assert set(shapes) == {(2, 5), (2, 8)}
    for step in range(4):
        lengths = set(batches[step].mask.sum(axis=-1).tolist())
        assert lengths in ({4, 5}, {7, 8})


def test_each_epoch_of_demonstrations_covers_every_row_once():
    batches, _ = demonstrations()
    drawn = np.concatenate([batches[step].mask.sum(axis=-1) for step in range(4)]).reshape(2, 4)
    assert np.sort(drawn).tolist() == [[4, 5, 7, 8]] * 2


def test_batches_of_demonstrations_are_a_function_of_their_index():
    first, second = demonstrations()[0], demonstrations()[0]
    for step in (5, 0, 3):
        np.testing.assert_array_equal(first[step].tokens, second[step].tokens)


def test_too_few_demonstrations_are_refused_with_the_number_that_would_do():
    with pytest.raises(UserError, match=r"4 rows are too few for 2 buckets .* at least 6 are"):
        demonstrations(batch_size=3)


def test_batches_of_one_demonstration():
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "2+2=", "completion": "4"}]
    batches, _ = demonstration_batches(
        rows, TOKENIZER, source="rows", batch_size=1, buckets=1, seed=0
    )
    assert batches[5].tokens.shape[0] == 1


@pytest.mark.parametrize("name", ["row_index", "reward_tokens"])
def test_the_names_of_the_hosts_own_columns_are_refused(name):
    with pytest.raises(UserError, match=f'rows: a column cannot be called "{name}"'):
        PromptTable([{"prompt": "1+1=", name: "2"}], TOKENIZER, source="rows", max_prompt_tokens=8)
