"""``benchmarks.sampling`` with a tiny model: what guesses are worth."""

import pytest

from benchmarks import sampling


def test_guesses_are_compared_with_none_where_they_are_right_and_where_not():
    workload = sampling.Workload(sampling.shape(1, 16, vocab=64), prompt_tokens=4, lengths=(24,))
    right, wrong = sampling.measure_lookup(workload, 2, 3)
    assert (right["tokens"], wrong["tokens"]) == ("most probable", "at random")
    assert 1 <= wrong["tokens a pass"] < 2 < right["tokens a pass"] <= 4
    assert right["same tokens"] == wrong["same tokens"] == 1
    ratio = right["tokens/s with"] / right["tokens/s without"]
    assert right["times as fast"] == pytest.approx(ratio)
