"""Batches as functions of their index: every row once in an epoch, sources by their weights."""

import hashlib

import jax
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.data import (
    Limits,
    PackedTable,
    PromptTable,
    Rows,
    Sequence,
    SequenceTable,
    bucketed_batches,
    demonstration_table,
    make_batches,
)
from rljax.errors import UserError
from rljax.tasks import addition_demonstrations, addition_problems, character_tokenizer

TOKENIZER = character_tokenizer()


def prompts(*counts):
    """Sources of prompts; ``index`` numbers all of them."""
    numbers = iter(range(sum(counts)))
    sources = [[next(numbers) for _ in range(count)] for count in counts]
    rows = [Rows([{"prompt": f"{i}=", "index": i} for i in part], "rows") for part in sources]
    return PromptTable(rows, TOKENIZER, Limits())


def sequences(*counts, length=lambda i: 3):
    tokens = [Sequence([4] * length(i), [1.0] * length(i)) for i in range(sum(counts))]
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    return SequenceTable(tokens, pad_id=0, name="rows", parts=parts)


def drawn(batches, steps):
    return [batches.items(step).tolist() for step in steps]


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


TABLES = {
    "prompts": lambda: make_batches(prompts(7), batch_size=3, seed=0),
    "sources": lambda: make_batches(prompts(5, 3), batch_size=3, seed=0),
    "sequences": lambda: make_batches(sequences(7), batch_size=3, seed=0),
    "packs": lambda: make_batches(PackedTable(sequences(14), 6), batch_size=3, seed=0),
    "buckets": lambda: bucketed_batches(
        sequences(9, length=lambda i: 2 + i), batch_size=3, buckets=2, seed=0
    ),
}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_tunix_maxtext_openrlhf_a_resume_forgot_the_data_position(make):
    forwards = make()
    forwards = [forwards[step] for step in range(8)]
    again = make()
    for step in (7, 3, 4, 0):
        equal(again[step], forwards[step])
    assert len({tuple(make().items(step)) for step in range(8)}) > 3


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_the_parts_of_a_batch_are_the_batch(make):
    batches = make()
    for step in range(4):
        parts = [batches.part(step, np.arange(*span)) for span in ((0, 1), (1, 1), (1, 3))]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        equal(joined, batches[step])


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_another_seed_is_another_order(make):
    batches = make()
    kind = bucketed_batches if batches.widths is not None else make_batches
    extra = {"buckets": 2} if batches.widths is not None else {}
    other = kind(batches.table, batch_size=3, seed=1, **extra)
    assert drawn(batches, range(6)) != drawn(other, range(6))


@pytest.mark.parametrize("name", ["prompts", "sequences", "packs"])
def test_each_epoch_covers_every_item_once_in_another_order(name):
    batches = TABLES[name]()
    epochs = np.concatenate(drawn(batches, range(7))).reshape(3, 7)  # in 7 batches of 3
    assert np.sort(epochs).tolist() == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_a_prompt_stays_with_its_answer():
    batch = make_batches(prompts(7), batch_size=5, seed=0)[0]
    for tokens, mask, index in zip(batch.tokens, batch.mask, batch.extras["index"], strict=True):
        assert TOKENIZER.decode(tokens[mask]) == f"{index}="


def test_a_batch_of_more_prompts_than_there_are_has_some_again():
    batches = make_batches(prompts(3), batch_size=7, seed=0)
    assert np.bincount(batches.items(0)).tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


def test_batches_of_more_sequences_than_there_are_are_refused():
    with pytest.raises(UserError, match=r"^rows: 3 rows are too few for batches of 4$"):
        make_batches(sequences(3), batch_size=4, seed=0)
    make_batches(sequences(3), batch_size=3, seed=0)


# Several sources.


def shares(batches, table, steps):
    items = np.concatenate([batches.items(step) for step in range(steps)])
    return [float(np.isin(items, part).mean()) for part in table.parts]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, [0.5, 0.3, 0.2]), ([1, 1, 1], [1 / 3] * 3), ([0.7, 0.05, 0.25], [0.7, 0.05, 0.25])],
)
def test_sources_are_drawn_by_their_weights_and_evenly(weights, expected):
    table = sequences(500, 300, 200)
    batches = make_batches(table, batch_size=20, seed=0, weights=weights)
    assert shares(batches, table, 50) == pytest.approx(expected, rel=0.01)
    for step in range(20):  # in every batch, not only on average
        items = batches.items(step)
        counts = [np.isin(items, part).sum() for part in table.parts]
        assert np.abs(np.array(counts) - 20 * np.array(expected)).max() <= 2


few_weights = st.lists(st.floats(0.05, 10), min_size=3, max_size=3)


@few
@given(few_weights)
def test_any_weights_are_met_within_a_hundredth(weights):
    table = sequences(500, 300, 200)
    batches = make_batches(table, batch_size=300, seed=0, weights=weights)
    expected = np.array(weights) / sum(weights)
    np.testing.assert_allclose(shares(batches, table, 1), expected, atol=0.01)


def test_by_their_sizes_every_item_of_several_sources_comes_once_in_an_epoch():
    table = prompts(6, 4)
    batches = make_batches(table, batch_size=5, seed=0)
    epochs = np.concatenate(drawn(batches, range(6))).reshape(3, 10)
    assert np.sort(epochs).tolist() == [list(range(10))] * 3


def test_each_source_has_an_order_of_its_own():
    table = prompts(8, 8)
    items = np.concatenate(drawn(make_batches(table, batch_size=16, seed=0), range(3)))
    first, second = items[items < 8], items[items >= 8] - 8
    assert first.tolist() != second.tolist()
    assert np.sort(first.reshape(3, 8)).tolist() == [list(range(8))] * 3


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(UserError, match="expected a positive number for each of 2 sources"):
        make_batches(prompts(3, 3), batch_size=2, seed=0, weights=weights)


# Buckets.


def test_a_batch_comes_from_one_bucket_and_is_padded_to_its_longest():
    table = sequences(4, length=lambda i: (4, 5, 7, 8)[i])
    batches = bucketed_batches(table, batch_size=2, buckets=2, seed=0)
    assert {batches[step].tokens.shape for step in range(4)} == {(2, 5), (2, 8)}
    for step in range(4):
        lengths = set(batches[step].mask.sum(axis=-1).tolist())
        assert lengths in ({4, 5}, {7, 8})
    epochs = np.concatenate(drawn(batches, range(4))).reshape(2, 4)
    assert np.sort(epochs).tolist() == [[0, 1, 2, 3]] * 2


def test_every_row_is_drawn_as_often_whichever_bucket_it_is_in():
    table = sequences(10, length=lambda i: 2 + i)
    batches = bucketed_batches(table, batch_size=1, buckets=3, seed=0)  # of 4, 3 and 3 rows
    widths = [batches[step].tokens.shape[1] for step in range(40)]
    assert np.unique(widths, return_counts=True)[1].tolist() == [16, 12, 12]


def test_too_few_rows_for_the_buckets_are_refused_with_the_number_that_would_do():
    said = r"^rows: 4 rows are too few for 2 buckets of batches of 3; at least 6 are needed$"
    with pytest.raises(UserError, match=said):
        bucketed_batches(sequences(4), batch_size=3, buckets=2, seed=0)


def test_batches_of_one():
    assert bucketed_batches(sequences(2), batch_size=1, buckets=1, seed=0)[5].tokens.shape[0] == 1


# Other tables in the same order.


def test_the_same_order_over_a_table_with_reference_log_probs():
    table = sequences(9, length=lambda i: 2 + i)
    batches = bucketed_batches(table, batch_size=3, buckets=2, seed=0)
    reference = np.arange(9 * table.width, dtype=np.float32).reshape(9, -1)
    both = batches.over(table.with_reference(reference))
    for step in range(4):
        width = batches[step].tokens.shape[1]
        expected = reference[batches.items(step)][:, :width]
        np.testing.assert_array_equal(both[step].ref_logprobs, expected)
        equal(both[step].replace(ref_logprobs=None), batches[step])
    with pytest.raises(ValueError, match="8 items in the place of 9"):
        batches.over(sequences(8))


# Orders that were recorded: a change of them would change every run.


def digest(arrays):
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()[:16]


def test_the_order_of_the_embedded_tasks_prompts():
    rows = Rows(addition_problems(300, seed=0, heldout=False), "rows")
    batches = make_batches(PromptTable([rows], TOKENIZER, Limits(8)), batch_size=32, seed=3)
    assert batches.items(0)[:8].tolist() == [104, 257, 217, 213, 231, 66, 174, 251]
    arrays = [leaf for step in range(12) for leaf in jax.tree.leaves(batches[step])]
    assert digest(arrays) == "3349648031c01e13"


def test_the_order_of_the_embedded_tasks_demonstrations():
    """On every processor: rows as long as each other stay as they are."""
    rows = Rows(addition_demonstrations(300, seed=0), "rows")
    table = demonstration_table([rows], TOKENIZER, Limits())
    batches = bucketed_batches(table, batch_size=16, buckets=3, seed=5)
    assert [batches[step].tokens.shape[1] for step in range(6)] == [31, 66, 86] * 2
    assert batches.items(1)[:6].tolist() == [229, 282, 14, 167, 111, 103]
    arrays = [leaf for step in range(60) for leaf in jax.tree.leaves(batches[step])]
    assert digest(arrays) == "3bff9936e2c3d661"
    assert table.mean_tokens == 37.35333333333333


def test_the_order_of_demonstrations_in_buckets():
    table = sequences(12, length=lambda i: 3 + 7 * i % 12)
    batches = bucketed_batches(table, batch_size=3, buckets=2, seed=5)
    assert drawn(batches, range(4)) == [[9, 2, 4], [3, 8, 10], [11, 7, 0], [5, 1, 6]]
