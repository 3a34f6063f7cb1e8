"""Times and bytes worked out by hand."""

import dataclasses

import pytest
from loads import LAYER, LOAD, MODEL, PARAMETERS

from rljax.chips import GB, TERA, Chip
from rljax.planning.collectives import Collective
from rljax.planning.footprint import Footprint
from rljax.planning.roofline import (
    Phase,
    activation_bytes,
    forward_flops,
    least_sent,
    phases,
    seconds_on_links,
)
from rljax.planning.search import abstract_mesh, candidates

HELD = Footprint({}, {"weights to sample with": 5000, "KV cache": 700}, {})
CHIP = Chip("mine", 1 * TERA, 1 * GB, 2 * GB, 4 * GB, 1, 8, 1 * GB)


def test_a_forward_pass():
    """2 a multiply-add: the matrices, two products with all 30 columns in each head, the head."""
    expected = 2 * 16 * 30 * (2 * (LAYER + 2 * 64 * 30) + 64 * 1000)
    assert forward_flops(MODEL, 16, 30, head_width=1000) == expected


def test_the_phases_of_a_step():
    mesh = abstract_mesh({"fsdp": 4, "tensor": 2})
    found = phases(LOAD, HELD, PARAMETERS, mesh, CHIP, {"decode": 0.5})
    assert list(found) == ["prefill", "decode", "score", "update"]
    decode = found["decode"]
    assert decode.flops == 2 * 16 * 20 * (2 * (LAYER + 2 * 64 * 30) + 64 * 1000) / 8
    assert decode.read == 20 * (5000 + 700)  # of each token: all weights, the whole cache
    assert decode.memory == pytest.approx(decode.read / 2e9)
    assert (decode.seconds, decode.bound) == (0.5, "links")
    forward = forward_flops(MODEL, 16, 30, head_width=1000)
    assert found["score"].flops == forward / 8
    assert found["update"].flops == 4 * forward / 8  # forward, again, and twice backward
    assert found["update"].arithmetic == pytest.approx(4 * forward / 8 / 1e12)
    weights = 2 * 100_000 * 2 / 2  # in two parts
    assert found["score"].read == weights + activation_bytes(MODEL, 480) / 8
    moved = 4 * (2 * 100_000 * 2 / 2 + activation_bytes(MODEL, 480) / 8)
    assert found["update"].read == pytest.approx(moved + 28 * 100_000 / 8)


def test_the_longest_term_counts():
    assert Phase(0, 0, 3.0, 2.0, 1.0).bound == "arithmetic"
    assert Phase(0, 0, 3.0, 4.0, 1.0).seconds == 4.0


def test_what_has_to_be_sent():
    """On fsdp = 4 and tensor = 2: half of the parameters, in two bytes, but for the own quarter."""
    least = least_sent(LOAD, PARAMETERS, abstract_mesh({"fsdp": 4, "tensor": 2}))
    weights = 100_000 * 2 / 2 * 3 / 4
    assert least.sampling_weights == weights
    assert least.gathered == 2 * 2 * weights + 2 * weights  # twice a micro-batch, once to score it
    assert least.reduced == 2 * weights
    stream = 2 * 480 / 4 * 64 * 2  # layers, a device's tokens, width, bytes; sent 2 x 1/2 times
    assert least.activations == 5 * stream + 2 * stream
    assert least.decoded == 2 * (2 * (16 * 20 + 4 * 10) / 4 * 64 * 2)
    alone = least_sent(LOAD, PARAMETERS, abstract_mesh({"data": 8}))
    assert sum(alone) == 0


def test_adapters_over_a_base_that_is_not_learned():
    """The gradient flows through the base, and is made and sent for one parameter in 100."""
    mesh = abstract_mesh({"fsdp": 4, "tensor": 2})
    load = LOAD._replace(learned={"policy": 1000})
    found = phases(load, HELD, PARAMETERS, mesh, CHIP, {})["update"]
    assert found.flops == 3 * forward_flops(MODEL, 16, 30, head_width=1000) / 8
    moved = 3 * (2 * 100_000 * 2 / 2 + activation_bytes(MODEL, 480) / 8)
    assert found.read == pytest.approx(moved + 28 * 1000 / 8)
    whole, adapters = (least_sent(one, PARAMETERS, mesh) for one in (LOAD, load))
    assert adapters.reduced == pytest.approx(whole.reduced / 100)
    assert adapters.gathered == whole.gathered


@pytest.mark.parametrize(("remat", "times"), [("none", 3), ("full", 4), ("offload", 4)])
def test_what_remat_computes_again(remat, times):
    model = dataclasses.replace(MODEL, remat=remat)
    load = LOAD._replace(trained={"policy": model})
    found = phases(load, HELD, PARAMETERS, abstract_mesh({"data": 8}), CHIP, {})
    assert found["update"].flops == times * forward_flops(MODEL, 16, 30, head_width=1000) / 8


def test_links():
    """8 bytes in each of 5 turns, at the 4 GB/s of a switch, or 1 GB/s out of its domain."""
    one = Collective("all-gather", "n", "", "", "f32[4]", (0, 1), 8, (5,))
    far = one._replace(group=(0, 8))
    found = seconds_on_links({"update": [one], "score": [far]}, CHIP, 16)
    assert found == {"update": pytest.approx(40 / 4e9), "score": pytest.approx(40 / 1e9)}


def test_meshes_that_rows_and_heads_divide_by():
    found = list(candidates(LOAD, 8, CHIP))
    assert {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 2} in found
    assert all(one["data"] * one["fsdp"] * one["tensor"] == 8 for one in found)
    assert all(one["tensor"] <= 4 for one in found)  # there are four heads
    assert all(one["data"] * one["fsdp"] <= 4 for one in found)  # and four prompts
