"""The embedded task: seeded, its held-out problems apart, its teacher as sloppy as it says."""

import re
import string

import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.tasks import addition_demonstrations, addition_problems, character_tokenizer

TOKENIZER = character_tokenizer()
DEMONSTRATIONS = addition_demonstrations(2000, seed=0)


def test_a_hundred_tokens_and_four_of_them_special():
    assert len(TOKENIZER) == 100
    special = [getattr(TOKENIZER, f"{name}_token_id") for name in ("pad", "bos", "eos", "unk")]
    assert special == [0, 1, 2, 3]


@few
@given(st.text(string.printable[:95] + "\n", max_size=30))
def test_one_token_per_character_and_back(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text
    assert not {0, 1, 2, 3} & set(ids)


def test_any_other_character_is_unknown():
    assert TOKENIZER.encode("1é2", add_special_tokens=False)[1] == TOKENIZER.unk_token_id


@pytest.mark.parametrize("heldout", [False, True])
def test_problems_are_right_and_seeded(heldout):
    rows = addition_problems(200, seed=3, heldout=heldout)
    for row in rows:
        a, b = re.fullmatch(r"([1-9]\d\d)\+([1-9]\d\d)=", row["prompt"]).groups()
        assert row["answer"] == str(int(a) + int(b))
    assert rows == addition_problems(200, seed=3, heldout=heldout)
    assert rows != addition_problems(200, seed=4, heldout=heldout)


def test_heldout_problems_are_never_trained_on():
    heldout = {row["prompt"] for row in addition_problems(300, seed=1, heldout=True)}
    assert len(heldout) > 250
    for seed in (0, 1):
        assert not heldout & {
            row["prompt"] for row in addition_problems(3000, seed=seed, heldout=False)
        }
    assert not heldout & {row["prompt"] for row in DEMONSTRATIONS}


def answer(row):
    return re.search(r"#(\d+)$", row["completion"])[1]


def truth(row):
    a, b = map(int, row["prompt"].rstrip("=").split("+"))
    return str(a + b)


def test_the_teacher_is_right_as_often_as_it_says():
    right = sum(answer(row) == truth(row) for row in DEMONSTRATIONS) / len(DEMONSTRATIONS)
    # 83 %; the standard error of 2000 draws is 0.8 %
    assert 0.80 < right < 0.86


def test_adding_twice_is_what_helps():
    kinds = {1: [], 2: []}
    for row in DEMONSTRATIONS:
        chains = len(re.findall(r"=", row["completion"])) // 3
        if chains:
            kinds[chains].append(answer(row) == truth(row))
    once, twice = (sum(kinds[n]) / len(kinds[n]) for n in (1, 2))
    assert once < 0.6 < 0.85 < twice


def test_an_answer_is_what_its_columns_say():
    for row in DEMONSTRATIONS[:300]:
        columns = [int(total) for total in re.findall(r"=(\d+)", row["completion"])[-3:]]
        if columns:
            ones, tens, hundreds = columns
            assert answer(row) == f"{hundreds}{tens % 10}{ones % 10}"


def test_demonstrations_are_seeded():
    assert DEMONSTRATIONS[:9] == addition_demonstrations(9, seed=0)
    assert addition_demonstrations(9, seed=1) != addition_demonstrations(9, seed=0)


@pytest.mark.parametrize("count", [-1, 0, 10**12])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(UserError, match=r"addition: count must lie in 1..10,000,000, got"):
        addition_problems(count, seed=0, heldout=False)
    with pytest.raises(UserError, match=r"addition: count must lie in 1..10,000,000, got"):
        addition_demonstrations(count, seed=0)
