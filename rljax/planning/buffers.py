"""What lies in a device's memory while a compiled program runs, from the compiler's own reports.

They give each temporary its place, and the stretch of the schedule that it is alive in; loops stand
in the schedule once.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_ALLOCATION = re.compile(r"^allocation \d+: size \d+(?P<color>, color \d+)?.*preallocated-temp")
_VALUE = re.compile(r" value: <\d+ ([^ >]+).*?> \(size=(\d+),offset=(\d+)\): (\S+)")
_RANGE = re.compile(r"^    (\S+):(\d+)-(\d+)$", re.MULTILINE)
_LINE = re.compile(r"^    (\d+):(\S+)$", re.MULTILINE)
_SMALL = 1e-5  # of the largest temporary: what does not matter


class Buffer(NamedTuple):
    """A temporary."""

    name: str  # of the instruction that makes it
    shape: str
    size: int  # bytes
    offset: int
    first: int  # positions in the schedule
    last: int


def schedule(ranges: str) -> list[str]:
    """The names of the instructions, in the order in which they run; ``ranges`` is the report."""
    head = ranges.partition("BufferLiveRange:")[0]
    return [name for _, name in sorted((int(at), name) for at, name in _LINE.findall(head))]


def temporaries(assignment: str, ranges: str) -> list[Buffer]:
    """The temporaries in the device's main memory, from the reports of assignment and ranges."""
    alive = {
        name.removesuffix("{}"): (int(first), int(last))
        for name, first, last in _RANGE.findall(ranges.partition("BufferLiveRange:")[2])
    }
    found, inside = [], False
    for line in assignment.splitlines():
        if line.startswith("allocation "):
            allocation = _ALLOCATION.match(line)
            inside = allocation is not None and allocation["color"] is None
        elif inside and (value := _VALUE.match(line)):
            name, size, offset, shape = value.groups()
            name = name.removesuffix("{}")
            if name in alive:
                found.append(Buffer(name, shape, int(size), int(offset), *alive[name]))
    return found


def peaks(buffers: list[Buffer], phases: list[str]) -> dict[str, tuple[int, list[Buffer]]]:
    """The most bytes that are occupied in each phase, and what occupies them, the largest first.

    ``phases`` has the phase at each position of the schedule.
    """
    largest = max((buffer.size for buffer in buffers), default=0)
    buffers = [buffer for buffer in buffers if buffer.size > _SMALL * largest]
    starts: dict[int, list[Buffer]] = {}
    for buffer in buffers:
        starts.setdefault(buffer.first, []).append(buffer)
    found: dict[str, tuple[int, list[Buffer]]] = {phase: (0, []) for phase in phases}
    alive: list[Buffer] = []
    for position, phase in enumerate(phases):
        new = position == 0 or phase != phases[position - 1] or position in starts
        alive = [buffer for buffer in alive if buffer.last >= position]
        alive += starts.get(position, [])
        if new and (occupied := _union(alive)) > found[phase][0]:
            found[phase] = (occupied, sorted(alive, key=lambda buffer: -buffer.size))
    return found


def _union(buffers: Iterable[Buffer]) -> int:
    """Bytes that buffers occupy, some of which may share theirs."""
    total = end = 0
    for buffer in sorted(buffers, key=lambda buffer: buffer.offset):
        total += max(buffer.offset + buffer.size - max(end, buffer.offset), 0)
        end = max(end, buffer.offset + buffer.size)
    return total
