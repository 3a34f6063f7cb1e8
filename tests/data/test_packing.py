"""Several sequences in a row: each exactly once, none cut, and none that sees another."""

import time

import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.data import (
    FILLER,
    Limits,
    PackedTable,
    Rows,
    Sequence,
    SequenceTable,
    labelled_table,
    pack,
    pair_table,
)
from rljax.errors import UserError
from rljax.tasks import character_tokenizer

WIDTH = 12
lengths = st.lists(st.integers(1, WIDTH), min_size=1, max_size=40)


@few
@given(lengths)
def test_every_sequence_is_in_one_pack_and_no_pack_is_too_full(lengths):
    packs = pack(lengths, WIDTH)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in pack) for pack in packs]
    assert max(filled) <= WIDTH
    if len(packs) > 1:  # else the two emptiest would have been one
        assert sum(sorted(filled)[:2]) > WIDTH


@few
@given(lengths)
def test_packs_are_those_of_the_plain_algorithm(lengths):
    """Best fit by looking at every pack; of those with as much room, the one filled last."""
    rooms, filled = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [room for room, _ in rooms if room >= lengths[index]]
        if fitting:
            room, number = [x for x in rooms if x[0] == min(fitting)][-1]
            rooms.remove((room, number))
        else:
            room, number = WIDTH, len(filled)
            filled.append([])
        filled[number].append(index)
        rooms.append((room - lengths[index], number))
    assert pack(lengths, WIDTH) == filled


def test_packs_by_hand():
    assert pack([3, 5, 2, 4], 7) == [[1, 2], [3, 0]]
    assert pack([4, 4, 2, 2], 6) == [[0, 3], [1, 2]]
    assert pack([], 6) == []


def test_a_sequence_that_fits_no_pack_is_refused():
    with pytest.raises(UserError, match="a sequence of 8 tokens does not fit a pack of 7"):
        pack([3, 8], 7)


def test_a_hundred_thousand_rows_take_a_moment():
    lengths = np.random.default_rng(0).integers(1, 2000, 100_000)
    began = time.perf_counter()
    packs = pack(lengths, 4096)
    assert time.perf_counter() - began < 5
    assert lengths.sum() / (len(packs) * 4096) > 0.99


def table(lengths, weight=1.0, parts=None):
    """Sequence i has tokens 10 i, 10 i + 1, …, of which the last half are learned."""
    sequences = [
        Sequence([10 * i + j for j in range(n)], [0.0] * (n - n // 2) + [weight] * (n // 2))
        for i, n in enumerate(lengths, start=1)
    ]
    return SequenceTable(sequences, pad_id=0, name="rows", parts=parts)


def test_a_pack_by_hand():
    packed = PackedTable(table([3, 5, 2], weight=0.5), 8)
    batch = packed.take([0, 1, FILLER])
    assert batch.tokens.tolist() == [
        [20, 21, 22, 23, 24, 10, 11, 12],
        [30, 31, 0, 0, 0, 0, 0, 0],
        [0] * 8,
    ]
    assert batch.segments.tolist() == [[1] * 5 + [2] * 3, [1] * 2 + [0] * 6, [0] * 8]
    assert batch.mask.tolist() == [[True] * 8, [True] * 2 + [False] * 6, [True] + [False] * 7]
    assert batch.data_weights.tolist() == [
        [0, 0, 0, 0.5, 0.5, 0, 0, 0.5],
        [0, 0.5, 0, 0, 0, 0, 0, 0],
        [0] * 8,
    ]
    assert batch.action_mask.tolist() == (batch.data_weights > 0).tolist()
    kinds = [str(x.dtype) for x in (batch.tokens, batch.segments, batch.mask, batch.data_weights)]
    assert kinds == ["int32", "int32", "bool", "float32"]
    assert PackedTable(table([3, 5, 2]), 8).take([0]).data_weights is None
    assert packed.note == ", in 2 packs of 8 tokens, 62 % full"
    assert (len(packed), packed.width, packed.mean_tokens, packed.together) == (2, 8, 4 / 3, 1)


@few
@given(lengths, st.integers(WIDTH, 2 * WIDTH))
def test_every_sequence_comes_out_as_it_went_in(lengths, width):
    given = table(lengths)
    packed = PackedTable(given, width)
    batch = packed.take(range(len(packed)))
    seen = {}
    for tokens, mask, learned, segments in zip(
        batch.tokens, batch.mask, batch.action_mask, batch.segments, strict=True
    ):
        assert mask.tolist() == (segments > 0).tolist()
        used = segments[mask]
        assert mask.tolist() == [True] * len(used) + [False] * (width - len(used))
        assert sorted(set(used)) == list(range(1, used.max() + 1))
        assert (np.diff(used) >= 0).all()
        assert not learned[~mask].any()
        for number in range(1, used.max() + 1):
            at = segments == number
            assert not learned[np.argmax(at)]  # nothing precedes it
            seen[int(tokens[at][0]) // 10] = (tokens[at].tolist(), learned[at].tolist())
    for index, length in enumerate(lengths, start=1):
        tokens, weights = given.sequence(index - 1)
        assert len(tokens) == length
        assert seen[index] == (tokens.tolist(), (weights > 0).tolist())


def test_the_first_token_of_a_segment_is_not_learned_even_if_its_row_says_so():
    whole = SequenceTable([Sequence([5, 6], [1.0, 1.0]), Sequence([7], [1.0])], pad_id=9)
    batch = PackedTable(whole, 4).take([0])
    assert batch.action_mask.tolist() == [[False, True, False, False]]
    assert batch.tokens.tolist() == [[5, 6, 7, 9]]


def test_packs_never_mix_sources():
    parts = [np.array([0, 2]), np.array([1, 3])]
    packed = PackedTable(table([2, 2, 2, 2], parts=parts), 6)
    assert packed.packs == [[0, 2], [1, 3]]
    assert [part.tolist() for part in packed.parts] == [[0], [1]]


def test_what_is_no_demonstration_is_not_packed():
    tokenizer = character_tokenizer()
    pair = Rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], "rows")
    label = Rows([{"prompt": "a", "completion": "b", "label": True}], "rows")
    for refused in (
        pair_table([pair], tokenizer, Limits()),
        labelled_table([label], tokenizer, Limits(), mismatched=False),
    ):
        with pytest.raises(UserError, match=r"^rows: only demonstrations can be packed$"):
            PackedTable(refused, 9)
    with pytest.raises(UserError, match="rows: the longest sequence has 5 tokens, and a pack 4"):
        PackedTable(table([3, 5]), 4)
