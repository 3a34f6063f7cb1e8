"""The counts: their histogram has the band's edges, whatever the band."""

import pytest

from rljax.length_policy import policy_of
from rljax.monitor.tally import Tally


@pytest.mark.parametrize(("low", "high"), [(21, 41), (20.0, 40.0), (1, 5), (0, 0)])
def test_the_band_lies_between_two_edges_of_the_histogram(low, high):
    tally = Tally(policy_of({"length": {"min_tokens": low, "max_tokens": high}}), window=9)
    lengths = [0, 1, 5, 6, 19, 20, 21, 40, 41, 42, 10**6]
    for length in lengths:
        tally.add("m", length, False)
    (histogram,) = (
        found for found in tally.collect() if found.name == "rljax_response_length_tokens"
    )
    up_to = {
        float(sample.labels["le"]): sample.value
        for sample in histogram.samples
        if "le" in sample.labels
    }
    below = up_to[low - 1] if low > 1 else sum(length < low for length in lengths)
    assert up_to[high] - below == sum(low <= length <= high for length in lengths)
    assert up_to[float("inf")] == len(lengths)
    assert list(up_to) == sorted(up_to)
