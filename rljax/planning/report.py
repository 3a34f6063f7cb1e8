"""A plan as lines of text, and as JSON."""

import collections
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from rljax.chips import Chip
from rljax.planning.collectives import axes_of
from rljax.planning.footprint import Footprint
from rljax.planning.roofline import Least, Load, Phase
from rljax.planning.topology import Compiled
from rljax.sharding import name_sizes

GIB, GB, TERA = 2**30, 10**9, 10**12
SHOWN = 14  # kinds of collectives
LATENCY_SECONDS = 0.1  # a step that is shorter has not the time that its many small parts take
REMEDY = (
    "what may make it fit: more micro-batches, remat, a larger tensor axis; see docs/planning.md"
)
HELPS = {  # what a phase is bound by, and what would help
    ("prefill", "arithmetic"): "more devices, or shorter prompts",
    ("prefill", "memory"): "more prompts per step cost little",
    ("prefill", "links"): "fewer steps with more prompts in each: the weights move once a step",
    ("decode", "arithmetic"): "more devices: decoding could not be better used",
    ("decode", "links"): "a smaller tensor axis: layers sum over it for every token",
    ("score", "arithmetic"): "more devices",
    ("score", "memory"): "more rows per step cost little",
    ("score", "links"): "a smaller tensor axis, or more rows per step",
    ("update", "arithmetic"): "more devices, or remat that computes less again",
    ("update", "memory"): "fewer micro-batches: each reads all weights anew",
    (
        "update",
        "links",
    ): "fewer micro-batches, each of which gathers all weights anew, or more rows for each device",
}


class Plan(NamedTuple):
    """What there is to say of one mesh."""

    mesh: dict[str, int]
    chip: Chip
    compiler: str
    load: Load
    held: Footprint
    compiled: Compiled
    phases: dict[str, Phase]
    least: Least

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def total(self) -> int:
        """Bytes of a device at the fullest moment: as compiled, or counted if it was refused."""
        if self.compiled.refused:
            return self.held.least
        return self.compiled.held + self.compiled.temporary

    @property
    def fits(self) -> bool:
        return not self.compiled.refused and self.total <= self.chip.memory

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def tokens(self) -> int:
        """Drawn in a step at the most, or learned from."""
        return self.load.rows * (self.load.max_tokens or self.load.columns)


def plan_lines(plan: Plan) -> list[str]:
    """All about one mesh."""
    chip, compiled = plan.chip, plan.compiled
    how = "refused" if compiled.refused else f"compiled in {compiled.seconds:.0f} s"
    head = (
        f"{name_sizes(plan.mesh)} on {plan.devices} x {chip.name}: {how} by XLA's {plan.compiler}"
    )
    lines = [head, ""]
    if plan.compiler == "CPU compiler":
        lines += [
            "The CPU compiler computes bfloat16 as float32 and fuses less: what it needs beside",
            "what is counted, and the bytes it sends, are upper figures: up to twice too high",
            "in bfloat16, and more where the chip has an attention kernel.",
            "",
        ]
    lines += _memory(plan)
    if not compiled.refused:
        lines += ["", *_collectives(plan), "", *_least(plan)]
    return [*lines, "", *_time(plan)]


def ranking_lines(plans: Iterable[Plan], tried: int, held: int) -> list[str]:
    """The plans of a search, in order, and the best as lines for a config."""
    plans = list(plans)
    lines = [
        f"Of {tried} meshes {held} hold the state by count; the {len(plans)} quickest by estimate",
        "were compiled:",
        "",
        f"{'mesh':<42} {'GiB':>7} {'fits':>5} {'seconds':>8} {'tokens/s':>10}",
    ]
    lines += [
        f"{name_sizes(plan.mesh):<42} {_gib(plan.total):>7} {'yes' if plan.fits else 'no':>5} "
        f"{_short(plan.seconds):>8} {plan.tokens / plan.seconds:>10,.0f}"
        for plan in plans
    ]
    best = plans[0]
    sizes = ", ".join(f"{axis}: {size}" for axis, size in best.mesh.items() if size > 1)
    what = "The best:" if best.fits else "None fits; the nearest:"
    return [*lines, "", what, "", f"mesh: {{{sizes or 'data: 1'}}}"]


def as_json(plan: Plan) -> dict[str, Any]:
    """The figures of a plan, in bytes and seconds."""
    compiled = plan.compiled
    return {
        "mesh": plan.mesh,
        "microbatches": plan.load.microbatches,
        "chip": plan.chip.name,
        "compiler": plan.compiler,
        "compile_seconds": compiled.seconds,
        "fits": plan.fits,
        "refused": compiled.refused,
        "memory": {
            "chip": plan.chip.memory,
            "counted": plan.held._asdict(),
            "held": compiled.held,
            "temporary": compiled.temporary,
            "peaks": {scope: size for scope, (size, _) in compiled.peaks.items()},
        },
        "collectives": [
            {"phase": phase, "kind": kind, "axes": axes, "count": count, "bytes": sent}
            for (phase, kind, axes), (count, sent, _) in _by_kind(plan).items()
        ],
        "least_bytes": plan.least._asdict(),
        "phases": {
            name: phase._asdict() | {"seconds": phase.seconds, "bound": phase.bound}
            for name, phase in plan.phases.items()
        },
        "flops": sum(phase.flops for phase in plan.phases.values()) * plan.devices,
        "seconds": plan.seconds,
        "tokens": plan.tokens,
        "tokens_per_second": plan.tokens / plan.seconds,
        "limit": limit(plan),
    }


def limit(plan: Plan) -> str:
    """What takes the most time, and what would help."""
    name, phase = max(plan.phases.items(), key=lambda item: item[1].seconds)
    share = phase.seconds / plan.seconds
    if (name, phase.bound) == ("decode", "memory"):
        weights, cache = plan.held.sampling.values()
        why = f"reading {_gib(weights)} GiB of weights and {_gib(cache)} GiB of KV cache a token"
        helps = (
            "more rows per device cost little"
            if weights > cache
            else "the cache weighs more than the weights: rows spread over more devices"
        )
    else:
        why = {"arithmetic": "arithmetic", "memory": "memory bandwidth", "links": "links"}[
            phase.bound
        ]
        helps = HELPS[name, phase.bound]
    return f"{name} takes {share:.0%} of the step and is bound by {why}; what would help: {helps}."


def _memory(plan: Plan) -> list[str]:
    compiled, held, room = plan.compiled, plan.held, plan.chip.memory
    number = plan.load.microbatches
    lines = [f"memory of a device, GiB of {room / GIB:.1f}, with update.microbatches={number}"]
    sums = [("always", held.state, "score"), ("sample", held.sampling, "sample")]
    for scope, counts, peak in [*sums, ("update", held.update, "update")]:
        parts = [f"{name} {_gib(size)}" for name, size in counts.items()]
        if scope != "always" and peak in compiled.peaks:
            size, buffers = compiled.peaks[peak]
            parts.append(f"at the peak {_gib(compiled.held + size)} with all else")
            parts.append(f"largest: {', '.join(_buffer(one) for one in buffers[:3])}")
        if parts:
            lines.append(f"  {scope:<8} {'; '.join(parts)}")
    if "score" in compiled.peaks:
        size, buffers = compiled.peaks["score"]
        largest = ", ".join(_buffer(one) for one in buffers[:3])
        lines.append(
            f"  {'score':<8} at the peak {_gib(compiled.held + size)} with all else; "
            f"largest: {largest}"
        )
    lines.append(f"  {'in all':<8} {_verdict(plan)}")
    return lines if plan.fits else [*lines, f"  {REMEDY}"]


def _buffer(buffer) -> str:
    return f"{buffer.shape.partition('{')[0]} {_gib(buffer.size)}"


def _verdict(plan: Plan) -> str:
    total, room, least = plan.total, plan.chip.memory, plan.held.least
    if plan.compiled.refused:
        return f"does not fit; the compiler: {plan.compiled.refused}; counted {_gib(least)}"
    if least > room:
        return f"does not fit, by {_gib(least - room)}: {_gib(least)} are counted alone"
    if total <= room:
        return f"{_gib(total)}: fits, with {_gib(room - total)} to spare"
    if plan.compiler == "CPU compiler":
        return f"may not fit: {_gib(least)} are counted, {_gib(total)} is the upper figure"
    return f"{_gib(total)}: does not fit, by {_gib(total - room)}"


def _by_kind(plan: Plan) -> dict[tuple[str, str, str], tuple[int, int, str]]:
    """(times, bytes out of a device, largest shape) a step, by phase, kind and axes."""
    times, sent = collections.Counter(), collections.Counter()
    largest: dict[tuple[str, str, str], tuple[int, str]] = {}
    for phase, found in plan.compiled.collectives.items():
        for one in found:
            axes = " x ".join(axes_of(one.group, plan.mesh)) or "?"
            key = (phase, one.kind, axes)
            times[key] += one.times
            sent[key] += one.total
            largest[key] = max(largest.get(key, (0, "")), (one.sent, one.shape))
    return {key: (times[key], size, largest[key][1]) for key, size in sent.most_common()}


def _collectives(plan: Plan) -> list[str]:
    found = _by_kind(plan)
    lines = [
        "sent by a device in a step",
        f"  {'phase':<8} {'collective':<19} {'over':<16} {'times':>9} {'GB':>9}  largest",
    ]
    for (phase, kind, axes), (times, sent, shape) in list(found.items())[:SHOWN]:
        shape = shape if len(shape) < 40 else shape[:37] + "..."
        size = _short(sent / GB)
        lines.append(f"  {phase:<8} {kind:<19} {axes:<16} {times:>9,} {size:>9}  {shape}")
    if rest := list(found.values())[SHOWN:]:
        times, sent = sum(one[0] for one in rest), sum(one[1] for one in rest)
        lines.append(f"  {'others':<8} {'':<19} {'':<16} {times:>9,} {_short(sent / GB):>9}")
    total = sum(sent for _, sent, _ in found.values())
    return [*lines, f"  {'in all':<45} {'':>9} {_short(total / GB):>9}"]


def _least(plan: Plan) -> list[str]:
    """What was sent against what has to be."""
    sent: collections.Counter = collections.Counter()
    for (phase, _, axes), (_, size, _) in _by_kind(plan).items():
        beside = set(axes.split(" x ")) <= {"tensor", "sequence"}
        beside = beside and (phase, axes) != ("prefill", "sequence")  # weights, on their way
        phase = "decode" if phase == "prefill" and beside else phase
        sent[phase, "tensor" if beside else "shards"] += size
    least, update = plan.least, sent["update", "shards"] + sent["score", "shards"]
    rows = [
        ("weights for sampling, once", sent["prefill", "shards"], least.sampling_weights),
        ("weights during decoding", sent["decode", "shards"], 0.0),
        ("weights and gradients in training", update, least.gathered + least.reduced),
        (
            "activations in training",
            sent["update", "tensor"] + sent["score", "tensor"],
            least.activations,
        ),
        ("activations in sampling", sent["decode", "tensor"], least.decoded),
    ]
    lines = [f"  {'':<36} {'GB sent':>9} {'at least':>9}"]
    lines += [
        f"  {name:<36} {_short(a / GB):>9} {_short(b / GB):>9}" for name, a, b in rows if a or b
    ]
    return lines


def _time(plan: Plan) -> list[str]:
    if plan.compiled.refused:
        return [
            "It was not compiled: what devices would send, and how long it takes, is not known."
        ]
    lines = [
        "time of a device at the published peaks, seconds: each phase takes its longest term",
        f"  {'phase':<8} {'TFLOP':>9} {'compute':>9} {'memory':>9} {'links':>9} {'takes':>9}",
    ]
    for name, phase in plan.phases.items():
        seconds = (phase.arithmetic, phase.memory, phase.links, phase.seconds)
        cells = [_short(phase.flops / TERA), *map(_short, seconds)]
        lines.append(f"  {name:<8} {' '.join(f'{cell:>9}' for cell in cells)}")
    flops = sum(phase.flops for phase in plan.phases.values())
    what = "responses of the whole budget" if plan.load.max_tokens else "rows"
    lines += [
        f"  {'step':<8} {_short(flops / TERA):>9} {'':>29} {_short(plan.seconds):>9}",
        f"  {plan.tokens / plan.seconds:,.0f} tokens a second "
        f"({plan.tokens / plan.seconds / plan.devices:,.1f} a device), of {plan.load.rows} {what}",
    ]
    if plan.seconds < LATENCY_SECONDS:
        lines.append("  So short a step is bound by latencies, which are not counted.")
    return [*lines, f"  {limit(plan)}"]


def _gib(size: float) -> str:
    return _short(size / GIB)


def _short(number: float) -> str:
    """Two decimals, or less of a large number, and two digits of a small one."""
    if 0 < abs(number) < 0.01:
        return f"{number:.1e}"
    if abs(number) < 10:
        return f"{number:.2f}"
    return f"{number:,.1f}" if abs(number) < 1000 else f"{number:,.0f}"
