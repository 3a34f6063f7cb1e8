"""The sizes that programs are compiled for."""

from rljax.endpoint.warm_up import fitting, sizes


def test_sizes():
    assert sizes(64, 1000) == (64, 256, 1000)
    assert sizes(64, 64) == (64,)
    assert sizes(64, 8) == (8,)
    assert sizes(24, 48) == (24, 48)
    assert [fitting((8, 24), n) for n in (1, 8, 9, 24)] == [8, 8, 24, 24]
