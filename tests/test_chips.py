"""The table of chips."""

import pytest

from rljax.chips import CHIPS, KINDS, bandwidth, chip_of, find_chip, slice_sizes, slices_of
from rljax.errors import UserError


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_figures_are_in_the_right_units(chip):
    assert 1e14 < chip.flops < 1e16
    assert 15e9 < chip.memory < 300e9
    assert 5e11 < chip.memory_bandwidth < 1e13
    assert 100 < chip.flops / chip.memory_bandwidth < 700  # FLOPs a byte, to be bound by neither
    assert chip.network < chip.link_bandwidth < chip.memory_bandwidth
    assert all(len(shape.split("x")) == chip.torus for shape in chip.shapes)
    assert slice_sizes(chip) == sorted(slice_sizes(chip))


def test_chips_by_name():
    assert find_chip("V5P") is CHIPS["v5p"]
    with pytest.raises(UserError, match=r'no figures of a chip "v5"; did you mean "v\d'):
        find_chip("v5")


def test_chips_by_the_name_that_jax_has():
    assert set(KINDS.values()) == CHIPS.keys()
    assert chip_of("NVIDIA H200") is CHIPS["H200"]
    assert chip_of("cpu") is None


def test_slices():
    assert slices_of(CHIPS["v5p"], 64) == ("4x4x4", 1)
    assert slices_of(CHIPS["v5e"], 1024) == ("16x16", 4)
    with pytest.raises(UserError, match="v5e has no slice of 12 chip"):
        slices_of(CHIPS["v5e"], 12)


def test_a_group_has_the_links_of_the_dimensions_that_it_spans():
    """On a torus of 4 x 4 x 4; in nodes of eight, whose eight cards are shared."""
    torus, switch = CHIPS["v5p"], CHIPS["H100"]
    assert bandwidth(torus, tuple(range(64)), 64) == 600e9
    assert bandwidth(torus, tuple(range(16)), 64) == pytest.approx(400e9)
    assert bandwidth(torus, (0, 1), 64) == pytest.approx(200e9)
    assert bandwidth(switch, (0, 1), 64) == 450e9
    assert bandwidth(switch, tuple(range(0, 64, 8)), 64) == 50e9
    assert bandwidth(switch, tuple(range(0, 64, 2)), 64) == 200e9
    assert bandwidth(switch, tuple(range(64)), 64) == 400e9
