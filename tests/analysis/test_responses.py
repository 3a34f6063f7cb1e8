"""Responses are judged as in training."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import BAND, sample, write_run

from rljax.analysis import responses
from rljax.analysis.reading import Band, read_run
from rljax.host.samples import write_samples
from rljax.lengths import VERDICTS, length_figures, verdict

ROWS = st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=8, max_size=8)


@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(0, 60), st.integers(0, 60))
def test_verdicts_and_shares_are_those_of_training(rows, one, other):
    band = Band(min(one, other), max(one, other))
    samples = [sample(0, "", tokens, truncated=cut) for tokens, cut in rows]
    lengths, cut = jnp.array([r[0] for r in rows]), jnp.array([r[1] for r in rows])
    in_training = [VERDICTS[v] for v in verdict(lengths, *band).tolist()]
    assert responses.verdicts(samples, band) == in_training
    figures = length_figures(lengths, cut, jnp.ones(len(rows), bool), *band)
    shares = responses.shares(samples, band)
    np.testing.assert_allclose(shares["in band"], figures["in_band_ratio"], rtol=1e-6)
    np.testing.assert_allclose(shares["truncated"], figures["truncated_ratio"], rtol=1e-6)
    np.testing.assert_allclose(sum(shares[name] for name in VERDICTS), 1, rtol=1e-6)


def test_tables_are_few_and_what_cannot_be_read_is_told(tmp_path):
    write_run(tmp_path, "")
    for step in range(30):
        write_samples(tmp_path, step, [sample(0, "one", 25)])
    (tmp_path / "samples" / "00000000.parquet").write_bytes(b"damaged")
    notes: list[str] = []
    found = responses.tables(read_run(tmp_path, "a"), notes)
    assert len(found) == responses.MOST_TABLES - 1
    assert found[-1].step == 29
    assert "12 of 30" in notes[0]
    assert "00000000.parquet" in notes[1]


def test_rows_that_lack_something_are_left_out(tmp_path):
    write_run(tmp_path, "")
    write_samples(tmp_path, 1, [sample(0, "one", 25), {"prompt": "p", "response": None}])
    (table,) = responses.tables(read_run(tmp_path, "a"), [])
    assert [row["response"] for row in table.rows] == ["one"]


def test_histograms_count_every_response():
    rows = [sample(0, "", tokens) for tokens in (0, 5, 5, 71, 120)]
    edges = responses.bin_edges([[responses.Table(0, rows)]])
    assert len(edges) <= responses.BINS + 2
    assert sum(responses.histogram(rows, edges)) == 5
    assert responses.bin_edges([[]]) == [0.0, 1.0]
    assert responses.verdicts([], Band(*BAND)) == []
    assert responses.sampled([{"greedy": True}, {"greedy": False}]) == [{"greedy": False}]
