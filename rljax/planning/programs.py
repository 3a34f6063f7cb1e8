"""Reading a compiled program's text: its instructions, and how often each of them runs.

The text is XLA's own, of the program of one device after all optimization. Loops are multiplied
out: what stands in the body of a scan over 32 layers runs 32 times.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_SEES_THROUGH = ("copy", "bitcast", "convert", "reshape")


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str  # of its result
    opcode: str
    operands: tuple[str, ...]
    rest: str  # from its operands to the end of the line
    root: bool

    @property
    def scope(self) -> str:
        """Where in the traced functions it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Running(NamedTuple):
    """An instruction where it runs."""

    instruction: Instruction
    loops: tuple[int, ...]  # how often each loop around it turns, the outermost first
    scope: str  # its own, or else that of what it is called by
    outermost: str  # the name of the first of these loops, if there is one
    fused: str = ""  # the shape of what the fusion around it gives, if there is one


class Program:
    """A compiled program, from its text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self.devices = int(first(r"num_partitions=(\d+)", text.partition("\n")[0], "1"))
        lines: dict[str, Instruction] = {}
        for line in text.splitlines():
            if start := _COMPUTATION.match(line):
                lines = self.computations[start[2]] = {}
                self.entry = start[2] if start[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                instruction = _instruction(found)
                lines[instruction.name] = instruction
        assert self.entry, "a program without an entry"

    def walk(self) -> Iterator[Running]:
        """Every instruction that runs; inside of fusions only what devices do together."""
        yield from self._walk(self.entry, (), "", "")

    def _walk(self, computation: str, loops: tuple[int, ...], scope: str, outermost: str):
        for instruction in self.computations[computation].values():
            own = instruction.scope or scope
            yield Running(instruction, loops, own, outermost)
            if instruction.opcode == "while":
                turns = (*loops, self.turns(computation, instruction))
                for called in _condition_and_body(instruction):
                    yield from self._walk(called, turns, own, outermost or instruction.name)
            elif instruction.opcode == "fusion":
                for called in _called(instruction):
                    for one in self.computations[called].values():
                        if kind_of(one) in KINDS:
                            fused = instruction.shape
                            yield Running(one, loops, one.scope or own, outermost, fused)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in _called(instruction):
                    yield from self._walk(called, loops, own, outermost)

    def stages(self, names: tuple[str, ...]) -> dict[str, str]:
        """Which of the named scopes each outermost loop that communicates, or has loops in it,
        belongs to: that of most of its instructions."""
        votes: dict[str, collections.Counter] = {}
        large = set()
        for instruction, _, scope, outermost, _ in self.walk():
            if outermost:
                votes.setdefault(outermost, collections.Counter())[scope_in(scope, names)] += 1
                if instruction.opcode == "while" or kind_of(instruction) in KINDS:
                    large.add(outermost)
        for counts in votes.values():
            del counts[""]
        return {
            loop: counts.most_common(1)[0][0]
            for loop, counts in votes.items()
            if loop in large and counts
        }

    def turns(self, computation: str, loop: Instruction) -> int:
        """How often a loop turns: as the compiler notes it, or at most, from the number that its
        counter is compared with; 1 if there is no such number."""
        known = first(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if known:
            return int(known)
        condition, body = _condition_and_body(loop)
        bounds = []
        for counter, limit in self._bounds(condition, {}):
            steps = max(self._step(body, counter), 1)
            start = self._start(computation, loop, counter)
            bounds.append(max(-(-(limit - start) // steps), 0))
        return min(bounds, default=1)

    def _bounds(self, computation: str, given: dict[int, object]) -> list[tuple[int, int]]:
        """(counter, limit) of the comparisons counter < limit that a condition makes, in a fusion
        or not; a counter is an index of the loop's tuple."""
        found = []
        for instruction in self.computations[computation].values():
            values = [self._value(computation, name, given) for name in instruction.operands]
            if instruction.opcode == "compare" and "direction=LT" in instruction.rest:
                left, right = values
                if isinstance(left, tuple) and isinstance(right, int):
                    found.append((left[0], right))
            elif instruction.opcode == "fusion":
                for called in _called(instruction):
                    found += self._bounds(called, dict(enumerate(values)))
        return found

    def _value(self, computation: str, name: str, given: dict[int, object]) -> object:
        """An int for a constant, (index,) for an entry of the loop's tuple, else None."""
        instruction = self.computations[computation].get(name)
        if instruction is None:
            return None
        if instruction.opcode in _SEES_THROUGH:
            return self._value(computation, instruction.operands[0], given)
        if instruction.opcode == "constant":
            number = first(r"constant\((-?\d+)\)", instruction.rest)
            return int(number) if number else None
        if instruction.opcode == "parameter":
            return given.get(int(first(r"parameter\((\d+)\)", instruction.rest)))
        if instruction.opcode == "get-tuple-element" and not given:
            return (int(first(r"index=(\d+)", instruction.rest)),)
        return None

    def _step(self, body: str, counter: int) -> int:
        """What a turn adds to the counter; 1 if it cannot be told."""
        lines = self.computations[body]
        root = next(one for one in lines.values() if one.root)
        if root.opcode != "tuple":
            return 1
        return self._added(body, root.operands[counter], {})

    def _added(self, computation: str, name: str, given: dict[int, object]) -> int:
        instruction = self.computations[computation].get(name)
        if instruction is None:
            return 1
        if instruction.opcode in _SEES_THROUGH:
            return self._added(computation, instruction.operands[0], given)
        values = [self._value(computation, one, given) for one in instruction.operands]
        if instruction.opcode == "add":
            return next((value for value in values if isinstance(value, int)), 1)
        if instruction.opcode == "fusion":
            for called in _called(instruction):
                lines = self.computations[called].values()
                root = next(one for one in lines if one.root)
                return self._added(called, root.name, dict(enumerate(values)))
        return 1

    def _start(self, computation: str, loop: Instruction, counter: int) -> int:
        """What the counter begins with; 0 if it cannot be told."""
        before = self.computations[computation].get(loop.operands[0])
        if before is None or before.opcode != "tuple":
            return 0
        value = self._value(computation, before.operands[counter], {})
        return value if isinstance(value, int) else 0


def scope_in(scope: str, names: tuple[str, ...]) -> str:
    """The first part of a scope that is one of the names, or "".

    >>> scope_in("jit(step)/update/while/body/dot", ("sample", "update"))
    'update'
    """
    return next((part for part in scope.split("/") if part in names), "")


def _instruction(found: re.Match) -> Instruction:
    root, name, text = found.groups()
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opens = text.index("(")
    closes = _closing(text, opens)
    inside = re.sub(r"/\*.*?\*/", "", text[opens + 1 : closes])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(
        part.split()[-1] for part in inside.split(",") if re.search(r"[A-Za-z]", part)
    )
    return Instruction(name, shape, text[:opens], operands, text, bool(root))


def _closing(text: str, opens: int) -> int:
    """Where the parenthesis that opens at ``opens`` is closed."""
    depth = 0
    for at in range(opens, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError(f"an open parenthesis in {text!r}")


def _called(instruction: Instruction) -> list[str]:
    found = []
    for single, several in _CALLED.findall(instruction.rest):
        found += [single] if single else re.findall(r"[\w.\-]+", several.replace("%", ""))
    return found


def _condition_and_body(loop: Instruction) -> tuple[str, str]:
    return (
        first(r"condition=%?([\w.\-]+)", loop.rest),
        first(r"body=%?([\w.\-]+)", loop.rest),
    )


def kind_of(instruction: Instruction) -> str:
    """Its opcode, also of one that is only started here."""
    return instruction.opcode.removesuffix("-start")


def first(pattern: str, text: str, default: str = "") -> str:
    """What the group of a pattern first matches, or the default."""
    found = re.search(pattern, text)
    return found[1] if found else default
