"""``benchmarks.slots`` with a tiny model: three ways to the same responses."""

from benchmarks import slots


def test_every_way_draws_the_same_and_is_compared_with_static_batches():
    found = slots.measure(1, 16, rows=8, slots=2, mean=8, limit=20)
    assert [row["way"] for row in found] == [
        "static batches of 2",
        "2 slots, refilled",
        "all 8 at once",
    ]
    assert found[0]["against static"] == 1
    assert len({row["mean length"] for row in found}) == 1
    for row in found:
        tokens = row["useful tokens/s"] * row["seconds"]
        assert abs(tokens - 8 * row["mean length"]) < 1e-6 * tokens
