"""Which meshes of some devices are worth compiling for: those that hold the state by count, the
quickest first by what they have to compute, read and send at the least."""

import itertools
import math
from collections.abc import Iterator, Mapping

from jax.sharding import AbstractMesh, AxisType

from rljax.chips import Chip, bandwidth
from rljax.planning.footprint import Footprint
from rljax.planning.roofline import Load, Phase, least_sent, phases
from rljax.sharding import MESH_AXES, row_shards

LONG = 8192  # columns, from which on spreading them over devices is considered
MOST_TENSOR = 16  # devices that a matrix is split over


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices; axes that are not named have a size of 1."""
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    return AbstractMesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def candidates(load: Load, count: int, chip: Chip) -> Iterator[dict[str, int]]:
    """Meshes of ``count`` devices whose sizes the rows, heads and experts divide by.

    The tensor axis stays within the chips that fast links join.
    """
    powers = [2**power for power in range(count.bit_length())]
    (model, *_) = load.trained.values()
    sequences = [size for size in powers if size <= 8] if load.columns >= LONG else [1]
    experts = model.experts.count if model.experts else 1
    axes = (
        powers,
        [size for size in powers if experts % size == 0],
        sequences,
        [size for size in powers if model.heads % size == 0 and size <= MOST_TENSOR],
    )
    for fsdp, expert, sequence, tensor in itertools.product(*axes):
        if count % (fsdp * expert * sequence * tensor) or tensor * sequence > chip.domain:
            continue
        sizes = {"fsdp": fsdp, "expert": expert, "sequence": sequence, "tensor": tensor}
        sizes = {"data": count // math.prod(sizes.values()), **sizes}
        shards = row_shards(abstract_mesh(sizes))
        parts = load.minibatches // load.passes * load.microbatches
        if load.rows % (shards * parts) == 0 and load.prompts % shards == 0:
            yield sizes


def estimate(
    load: Load, held: Footprint, parameters: Mapping[str, int], sizes: Mapping[str, int], chip: Chip
) -> dict[str, Phase]:
    """The phases of a step on a mesh, if it sends no more than it has to."""
    mesh, count = abstract_mesh(sizes), math.prod(sizes.values())
    least = least_sent(load, parameters, mesh)
    stride = mesh.shape["tensor"]
    across = bandwidth(chip, tuple(range(0, count, stride)), count)
    beside = bandwidth(chip, tuple(range(stride)), count)
    links = {
        "prefill": least.sampling_weights / across,
        "decode": least.decoded / beside,
        "update": (least.gathered + least.reduced) / across + least.activations / beside,
    }
    return phases(load, held, parameters, mesh, chip, links)
