"""Programs whose communication is known by hand, compiled for eight simulated devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rljax.planning.collectives import axes_of, bytes_of, collectives
from rljax.planning.programs import Program

SIZES = {"a": 4, "b": 2}
MESH = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def program(function, *arguments, in_specs, out_specs) -> Program:
    """Of a function over the shards of its arguments, which are (shape, spec)."""
    sharded = jax.shard_map(
        function, mesh=MESH, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    structs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec))
        for shape, spec in zip(arguments, in_specs, strict=True)
    ]
    return Program(jax.jit(sharded).lower(*structs).compile().as_text())


P = PartitionSpec


def test_a_gather_is_counted_by_what_each_device_sends_around_the_ring():
    """f32[64, 16] in four parts: a device sends three of them, 3/4 of 4096 bytes."""
    found = collectives(
        program(
            lambda x: jax.lax.all_gather(x, "a", tiled=True),
            (64, 16),
            in_specs=(P("a"),),
            out_specs=P(),
        )
    )
    (one,) = found
    assert (one.kind, one.shape) == ("all-gather", "f32[64,16]")
    assert one.sent == one.total == 3072
    assert axes_of(one.group, SIZES) == ("a",)


def test_a_sum_in_a_scan_counts_as_often_as_the_scan_turns():
    def function(x):
        def body(carry, _):
            return jax.lax.psum(carry, "b") * 0.5, None

        return jax.lax.scan(body, x, None, length=5)[0]

    (one,) = collectives(program(function, (8, 32), in_specs=(P("a", "b"),), out_specs=P("a", "b")))
    # f32[2, 16] on each device; a sum between two is a reduce-scatter and a gather of half each
    assert (one.kind, one.times, one.loops) == ("all-reduce", 5, (5,))
    assert one.sent == 2 * 128 // 2
    assert one.total == 5 * 128
    assert axes_of(one.group, SIZES) == ("b",)


def test_loops_in_loops_multiply():
    def function(x):
        def inner(carry, _):
            return jax.lax.ppermute(carry, "a", [(i, (i + 1) % 4) for i in range(4)]), None

        def outer(carry, _):
            return jax.lax.scan(inner, jnp.sin(carry), None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=7)[0]

    (one,) = collectives(program(function, (8, 4), in_specs=(P("a"),), out_specs=P("a")))
    assert (one.kind, one.times) == ("collective-permute", 21)
    assert one.sent == 2 * 4 * 4  # what it holds, whole
    assert axes_of(one.group, SIZES) == ("a",)


def test_a_loop_that_may_end_early_counts_to_its_limit():
    """As the loop that draws tokens does."""

    def function(x):
        def proceed(carry):
            return (carry[0] < 11) & (jax.lax.pmax(carry[1].max(), ("a", "b")) < 1e6)

        def body(carry):
            return carry[0] + 1, carry[1] + jax.lax.psum(carry[1], "a")

        return jax.lax.while_loop(proceed, body, (jnp.int32(0), x))[1]

    found = collectives(program(function, (8, 4), in_specs=(P("a"),), out_specs=P("a")))
    assert {one.times for one in found} == {11}
    both = [one for one in found if axes_of(one.group, SIZES) == ("a", "b")]
    assert len(both) == 1  # of the condition


def test_a_scattered_sum_sends_each_part_to_its_owner():
    found = collectives(
        program(
            lambda x: jax.lax.psum_scatter(x, "a", tiled=True),
            (16, 8),
            in_specs=(P(),),
            out_specs=P("a"),
        )
    )
    assert {one.kind for one in found} <= {"reduce-scatter", "all-reduce"}
    if found[0].kind == "reduce-scatter":
        assert found[0].sent == 3 * 128  # three parts of f32[4, 8]


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", (0, 2, 4, 6)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=mesh['x'=4,'y'=2] {'x'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['x'=4,'y'=2] {'x','y'}", tuple(range(8))),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_every_way_that_groups_are_written(groups, members):
    text = f"""HloModule m, num_partitions=8

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %sum = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add
}}
"""
    (one,) = collectives(Program(text))
    assert one.group == members


LOOP = """HloModule m, num_partitions=8

%cond (c: (bf16[8], u32[])) -> pred[] {
  %c = (bf16[8]{0}, u32[]) parameter(0)
  %limit = u32[] constant(16)
  %at = u32[] get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

%body (b: (bf16[8], u32[])) -> (bf16[8], u32[]) {
  %b = (bf16[8]{0}, u32[]) parameter(0)
  %two = u32[] constant(2)
  %x = bf16[8]{0} get-tuple-element(%b), index=0
  %i = u32[] get-tuple-element(%b), index=1
  %start = (bf16[8]{0:T(8,128)(2,1)}, bf16[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=3, source_target_pairs={{0,6},{2,0},{4,2},{6,4}}
  %done = bf16[8]{0} collective-permute-done(%start)
  %next = u32[] add(%i, %two)
  ROOT %out = (bf16[8]{0}, u32[]) tuple(%done, %next)
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  %zero = u32[] constant(START)
  %tuple = (bf16[8]{0}, u32[]) tuple(%p, %zero)
  %loop = (bf16[8]{0}, u32[]) while(%tuple), condition=%cond, body=%body
  ROOT %y = bf16[8]{0} get-tuple-element(%loop), index=0
}
"""


@pytest.mark.parametrize(("start", "turns"), [(0, 8), (1, 8), (4, 6)])
def test_a_loop_without_a_note_is_counted_from_its_counter(start, turns):
    """As the TPU compiler writes a gather that goes around a ring beside a matrix product."""
    (one,) = collectives(Program(LOOP.replace("START", str(start))))
    assert (one.kind, one.times, one.sent) == ("collective-permute", turns, 16)
    assert one.group == (0, 6, 4, 2)
    assert axes_of(one.group, SIZES) == ("a",)


def test_bytes_of_shapes():
    assert bytes_of("pred[]") == 1
    assert bytes_of("(bf16[2,3]{1,0:T(8,128)(2,1)}, s32[4], f8e4m3fn[8])") == 12 + 16 + 8


FUSED = """HloModule m, num_partitions=8

%scatter (x: bf16[64]) -> bf16[16] {
  %x = bf16[64]{0} parameter(0)
  %sum = bf16[64]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %at = s32[] constant(0)
  ROOT %part = bf16[16]{0} dynamic-slice(%sum, %at), dynamic_slice_sizes={16}
}

ENTRY %main (p: bf16[64]) -> bf16[16] {
  %p = bf16[64]{0} parameter(0)
  ROOT %y = bf16[16]{0} fusion(%p), kind=kCustom, calls=%scatter
}
"""


def test_a_sum_that_a_slice_is_taken_of_is_scattered():
    """As the TPU compiler writes it, in a fusion."""
    (one,) = collectives(Program(FUSED))
    assert (one.kind, one.shape, one.sent) == ("reduce-scatter", "bf16[16]{0}", 3 * 32)
