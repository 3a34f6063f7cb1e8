"""``update.microbatches: auto``, the default: the fewest with which a step fits into memory.

What the step holds is counted from its shapes; only where that is not clearly little is the step
compiled, and the compiler's own figure decides. On a CPU they are small enough for its caches, too.
The run's config then has the number.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import yaml
from jax.sharding import Mesh

from rljax import resolve
from rljax.build import Build, build
from rljax.config import Config
from rljax.errors import UserError
from rljax.host.agree import largest
from rljax.models import DecoderConfig
from rljax.planning import Load, footprint, lacks_memory, load_of, lower_training
from rljax.planning.roofline import activation_bytes
from rljax.sharding import row_shards
from rljax.train import make_update

AUTO = "auto"
CLEARLY = 0.5  # of a device's memory: what a step may take by count alone
ROOM = 0.9  # and what it may take as it is compiled
CACHED = 640  # tokens at once, at the most, on a CPU: measured, see docs/speed.md
# Copies that exist at once: of a layer's attention scores, of the logits, and of what the matrix
# products of a layer read and write.
SCORES, LOGITS, PRODUCTS = 2, 3, 2


class Fit(NamedTuple):
    """A number of micro-batches, and what decided."""

    microbatches: int
    words: str
    fits: bool  # or it is the largest there is


def built_to_fit(
    config: Config,
    folder: Path,
    devices: list | None = None,
    *,
    told: Callable[[str], None],
    report: Callable[[str], None] = print,
) -> tuple[Config, Build]:
    """The config with a number of micro-batches in place of ``auto``, and what ``build`` makes of
    it with the other arguments.

    A run that goes on has the number that it was begun with. What decided is ``told``.

    Raises ``UserError`` if one row of each device at a time takes more than its memory.
    """
    if is_auto(config):
        begun = Path(config.run_dir or "", "config.yaml")
        if not (config.run_dir and begun.is_file()):
            return _fitted(config, folder, devices, told, report)
        saved = yaml.safe_load(begun.read_text(encoding="utf-8"))
        config = with_microbatches(config, saved["update"]["microbatches"])
    return config, build(config, folder, devices, report)


def _fitted(config: Config, folder: Path, devices, told, report) -> tuple[Config, Build]:
    one = with_microbatches(config, 1)
    built = build(one, folder, devices, report)
    found = fewest(config, folder, built, device_memory(built.mesh), on_cpu=_on_cpu(built.mesh))
    if not found.fits:
        raise UserError(
            f"update.microbatches=auto: with the most, {found.microbatches}, a device needs "
            f"{found.words}; see docs/planning.md for what takes less"
        )
    number = largest(found.microbatches)
    told(f"update.microbatches={number}: {found.words}")
    if number == 1:
        return one, built
    config = with_microbatches(config, number)
    return config, build(config, folder, devices, report, built.tables)


def is_auto(config: Config) -> bool:
    return config.update.get("microbatches", AUTO) == AUTO


def with_microbatches(config: Config, number: int) -> Config:
    return config.model_copy(update={"update": config.update | {"microbatches": number}})


def device_memory(mesh: Mesh) -> int:
    """Bytes that a program may use on one device; simulated ones share the machine's."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def fewest(config: Config, folder: Path, built: Build, memory: int, *, on_cpu: bool) -> Fit:
    """The fewest micro-batches that fit into the ``memory`` of a device, in bytes; no fewer than
    ``update.buckets``, if the rows divide so.

    Args:
      built: with any number of them.
      on_cpu: that is what trains.
    """
    load, state = load_of(built, config), footprint(built, built.mesh).least
    devices, words = list(built.mesh.devices.flat), ""
    for number in choices(config, built, on_cpu=on_cpu):
        counted = state + activations(load, built.mesh, number, on_cpu=on_cpu)
        words = f"by count {_of(counted, memory)}"
        if counted <= CLEARLY * memory:
            return Fit(number, words, fits=True)
        if counted <= ROOM * memory:
            other = build(with_microbatches(config, number), folder, devices, tables=built.tables)
            taken = compiled_bytes(other)
            words = f"as compiled {_of(taken, memory)}"
            if taken <= ROOM * memory:
                return Fit(number, words, fits=True)
    return Fit(number, words, fits=False)


def choices(config: Config, built: Build, *, on_cpu: bool) -> list[int]:
    """The numbers of micro-batches that the rows of a minibatch divide into, from as many as there
    are buckets on; on a CPU, from where each has at most ``CACHED`` tokens on."""
    update = resolve.defaults(make_update) | config.update
    if built.algorithm.learns_from == "prompts":
        rows = config.data.prompts_per_step * built.sample.keywords["group_size"]
    else:
        rows = config.data.batch_size
    each = rows // update["minibatches"] // row_shards(built.mesh)
    divisors = [number for number in range(1, each + 1) if each % number == 0]
    found = [number for number in divisors if number >= min(update["buckets"], each)]
    if not on_cpu:
        return found
    load = load_of(built, config)
    tokens = load.rows * load.columns / update["minibatches"] / row_shards(built.mesh)
    return [number for number in found if tokens / number <= CACHED] or found[-1:]


def activations(load: Load, mesh: Mesh, microbatches: int, *, on_cpu: bool) -> float:
    """Bytes of a device that a micro-batch's forward and backward pass takes, roughly."""
    parts = load.minibatches // load.passes * microbatches * row_shards(mesh)
    rows, columns = load.rows / parts, load.columns / mesh.shape["sequence"]
    return max(
        _of_network(decoder, rows, columns, load.columns, mesh, on_cpu)
        for decoder in load.trained.values()
    )


def _of_network(
    c: DecoderConfig, rows: float, columns: float, keys: int, mesh: Mesh, on_cpu: bool
) -> float:
    tokens, item = rows * columns, 2 if c.dtype == "bfloat16" else 4
    layer = PRODUCTS * activation_bytes(c, tokens) / c.layers
    if c.attention == "plain" or on_cpu:  # no kernel of its own
        layer += SCORES * rows * c.heads * columns * keys * 4
    logits = LOGITS * tokens * min(c.vocab_size, c.vocab_at_once) * 4
    kept = {"none": layer, "dots": layer / PRODUCTS, "full": tokens * c.width * item, "offload": 0}
    within = (layer + logits) / mesh.shape["tensor"]
    return within + c.layers * kept[c.remat]


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def compiled_bytes(built: Build) -> float:
    """What a device holds while the compiled step runs, at the most; infinite, if the compiler
    refuses it."""

    def taken(lowered: jax.stages.Lowered) -> float:
        try:
            found = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if not lacks_memory(error):
                raise
            return math.inf
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        return found.argument_size_in_bytes + found.temp_size_in_bytes + new

    programs = lower_training(built)
    return max(taken(program) for program in programs if program is not None)


def _of(taken: float, memory: int) -> str:
    there = f"{memory / 2**30:.2f}"
    if taken == math.inf:
        return f"more than the {there} GiB there are"
    return f"{taken / 2**30:.2f} GiB of {there}"
