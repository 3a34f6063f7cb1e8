"""What the devices of a compiled program send to each other, and how often."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rljax.planning.programs import KINDS, Instruction, Program, first, kind_of

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """Something that a group of devices does together."""

    kind: str  # of KINDS
    name: str
    scope: str
    outermost: str
    shape: str  # of what one device has of it afterwards
    group: tuple[int, ...]  # positions in the mesh, flattened, of the first group or ring
    sent: int  # bytes out of a device, once
    loops: tuple[int, ...]  # as of Running

    @property
    def times(self) -> int:
        """How often it happens in one run of the program."""
        return math.prod(self.loops)

    @property
    def total(self) -> int:
        """Bytes out of a device in one run of the program."""
        return self.sent * self.times


def collectives(program: Program) -> list[Collective]:
    """All that devices send to each other."""
    found = []
    for instruction, loops, scope, outermost, fused in program.walk():
        kind = kind_of(instruction)
        if kind in KINDS:
            group, shape = _group(instruction, program.devices), _result(instruction)
            if kind == "all-reduce" and fused and 2 * bytes_of(fused) <= bytes_of(shape):
                kind, shape = "reduce-scatter", fused  # a sum that only a slice is taken of
            sent = _sent(kind, shape, group)
            name = instruction.name
            found.append(Collective(kind, name, scope, outermost, shape, group, sent, loops))
    return [one for one in found if len(one.group) > 1]


def axes_of(group: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh, by name with its size, along which the members of a group differ.

    >>> axes_of((0, 2, 4), {"fsdp": 4, "tensor": 2})
    ('fsdp',)
    """
    different = []
    stride = math.prod(sizes.values())
    for axis, size in sizes.items():
        stride //= size
        if len({member // stride % size for member in group}) > 1:
            different.append(axis)
    return tuple(different)


def bytes_of(shape: str) -> int:
    """Bytes of a shape such as ``bf16[8,128]{1,0}``, or of all in a tuple.

    >>> bytes_of("(bf16[8,128]{1,0}, u32[])")
    2052
    """
    return sum(_leaf_bytes(dtype, sizes) for dtype, sizes in _SHAPE.findall(shape))


def _leaf_bytes(dtype: str, sizes: str) -> int:
    bits = _BITS.get(dtype) if dtype in _BITS else int(first(r"(\d+)", dtype, "0"))
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _result(instruction: Instruction) -> str:
    """The shape of what a collective gives, without the buffers of one that is started."""
    leaves = re.findall(r"[a-z]\w*\[[\d,]*\]", instruction.shape)
    if instruction.opcode == "all-gather-start":
        leaves = leaves[len(leaves) // 2 :]
    elif instruction.opcode == "collective-permute-start":
        leaves = leaves[1:2]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})"


def _sent(kind: str, shape: str, group: tuple[int, ...]) -> int:
    """Bytes that a device sends at least, from what it has afterwards: around a ring, each."""
    size, members = bytes_of(shape), len(group)
    return {
        "all-gather": size * (members - 1) // members,
        "all-reduce": 2 * size * (members - 1) // members,
        "reduce-scatter": size * (members - 1),
        "all-to-all": size * (members - 1) // members,
        "collective-permute": size,
    }[kind]


def _group(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """The first group of a collective, or the devices of its first ring."""
    text = instruction.rest
    if pairs := first(r"source_target_pairs=\{(.*?)\}\}", text):
        following = dict(
            tuple(int(one) for one in pair) for pair in re.findall(r"(\d+),(\d+)", pairs)
        )
        start = next(iter(following))
        ring = [start]
        while (after := following.get(ring[-1], start)) not in ring:
            ring.append(after)
        return tuple(ring)
    if listed := first(r"replica_groups=\{\{([\d,]*)\}", text):
        return tuple(int(one) for one in listed.split(","))
    if counted := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ):
        sizes = [int(one) for one in counted[3].split(",")]
        order = [int(one) for one in counted[4].split(",")] if counted[4] else range(len(sizes))
        return tuple(itertools.islice(_transposed(sizes, list(order)), int(counted[2])))
    if named := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'(?!:)", named[2])
        if len(along) == named[2].count("'") // 2:
            strides = _strides(list(sizes.values()))
            of = dict(zip(sizes, strides, strict=True))
            spans = [range(0, sizes[axis] * of[axis], of[axis]) for axis in along]
            return tuple(sum(offsets) for offsets in itertools.product(*spans))
    return tuple(range(devices))


def _transposed(sizes: list[int], order: list[int]) -> Iterator[int]:
    """0, 1, … of an array of ``sizes``, as they stand after its axes are transposed."""
    strides = _strides(sizes)
    spans = [range(0, sizes[axis] * strides[axis], strides[axis]) for axis in order]
    return (sum(offsets) for offsets in itertools.product(*spans))


def _strides(sizes: list[int]) -> list[int]:
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
