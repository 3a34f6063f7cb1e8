"""The published figures of accelerator chips, and the slices that they are rented in.

TPUs: https://cloud.google.com/tpu/docs/v4, …/v5e, …/v5p, …/v6e (system architecture, per chip).
Their bandwidth between chips is given there for both directions together; here it is for one.
GPUs: NVIDIA's data sheets of the A100, H100, H200 and of the DGX systems. Tensor-core rates that
are given "with sparsity" are halved, and NVLink's for both directions as well.
"""

import math
from typing import NamedTuple

from rljax.errors import UserError, nearest

GB, TB, TERA = 10**9, 10**12, 10**12
GIB = 2**30


class Chip(NamedTuple):
    """What one chip can do at most."""

    name: str
    flops: float  # a second, bfloat16 matrix products, dense
    memory: int  # bytes
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second out of a chip over ICI or NVLink, all links together
    torus: int  # dimensions that the links lie in; 1: a switch joins all
    domain: int  # chips that such links join, at most
    network: float  # bytes a second out of a chip, beyond that
    shapes: tuple[str, ...] = ()  # of a TPU's slices

    @property
    def is_tpu(self) -> bool:
        return bool(self.shapes)


_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_3D += ("8x16x16", "16x16x16")
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

CHIPS = {
    chip.name: chip
    for chip in (
        # Six links of 50 GB/s (arXiv 2304.01433, table 4); a host of four chips has 200 Gbit/s.
        Chip("v4", 275 * TERA, 32 * GIB, 1200 * GB, 300 * GB, 3, 4096, 6.25 * GB, _3D),
        # ICI 400 GB/s both ways; 6.4 Tbit/s of network for a pod of 256.
        Chip("v5e", 197 * TERA, 16 * GB, 819 * GB, 200 * GB, 2, 256, 3.125 * GB, _2D),
        # ICI 1200 GB/s both ways; 50 Gbit/s of network a chip; slices of up to 6144.
        Chip("v5p", 459 * TERA, 95 * GIB, 2765 * GB, 600 * GB, 3, 6144, 6.25 * GB, _3D),
        # ICI 800 GB/s both ways; 25.6 Tbit/s of network for a pod of 256.
        Chip("v6e", 918 * TERA, 32 * GB, 1638 * GB, 400 * GB, 2, 256, 12.5 * GB, _2D),
        # A100 data sheet, SXM; DGX A100: eight 200 Gbit/s cards for eight GPUs.
        Chip("A100-40G", 312 * TERA, 40 * GB, 1555 * GB, 300 * GB, 1, 8, 25 * GB),
        Chip("A100-80G", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 1, 8, 25 * GB),
        # H100 and H200 data sheets, SXM; DGX H100: eight 400 Gbit/s cards for eight GPUs.
        Chip("H100", 989.5 * TERA, 80 * GB, 3350 * GB, 450 * GB, 1, 8, 50 * GB),
        Chip("H200", 989.5 * TERA, 141 * GB, 4800 * GB, 450 * GB, 1, 8, 50 * GB),
        # DGX B200 data sheet, an eighth of it: 1440 GB, 64 TB/s, 72 PFLOP/s in 8 bits and sparse.
        Chip("B200", 2250 * TERA, 180 * GB, 8 * TB, 900 * GB, 1, 8, 50 * GB),
    )
}

KINDS = {  # the names that JAX has for them
    **{"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"},
    **{"TPU v6 lite": "v6e", "TPU v6e": "v6e", "NVIDIA A100-SXM4-40GB": "A100-40G"},
    **{"NVIDIA A100-SXM4-80GB": "A100-80G", "NVIDIA H100 80GB HBM3": "H100"},
    **{"NVIDIA H200": "H200", "NVIDIA B200": "B200"},
}


def find_chip(name: str) -> Chip:
    """The chip of that name, in any case. Raises ``UserError`` with the nearest names."""
    names = {known.lower(): known for known in CHIPS}
    if name.lower() not in names:
        raise UserError(f'no figures of a chip "{name}"; {nearest(name, CHIPS)}')
    return CHIPS[names[name.lower()]]


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device, if its figures are known."""
    name = KINDS.get(device_kind)
    return None if name is None else CHIPS[name]


def slice_sizes(chip: Chip) -> list[int]:
    """Numbers of chips that can be rented together, ascending."""
    if not chip.is_tpu:
        return [2**power for power in range(13)]
    return [_chips(shape) for shape in chip.shapes]


def slices_of(chip: Chip, count: int) -> tuple[str, int]:
    """The shape, such as 4x4x4, of the slices that ``count`` chips are rented as, and their number.

    Raises ``UserError`` if there are none such.
    """
    shapes = {_chips(shape): shape for shape in chip.shapes}
    largest = max(shapes)
    if count in shapes:
        return shapes[count], 1
    if count > largest and count % largest == 0:
        return shapes[largest], count // largest
    sizes = ", ".join(str(size) for size in shapes)
    raise UserError(
        f"{chip.name} has no slice of {count} chip(s); it has them of {sizes}, and several of the "
        "largest together"
    )


def bandwidth(chip: Chip, group: tuple[int, ...], count: int) -> float:
    """Bytes a second that a chip sends to the others of its ``group``, of ``count`` chips in all.

    On a torus the group has the links of the dimensions that it spans: their share is that of the
    group's size in the slice's, on a logarithmic scale, and one dimension's at least. A group that
    leaves the domain sends over the network; the chips of a domain, which each have a way out,
    share that.
    """
    inside = sum(member // chip.domain == group[0] // chip.domain for member in group)
    share = 1.0
    if chip.torus > 1 and count > len(group):
        share = max(1 / chip.torus, math.log(max(len(group), 2)) / math.log(count))
    links = chip.link_bandwidth * share
    return links if inside == len(group) else min(links, inside * chip.network)


def _chips(shape: str) -> int:
    return math.prod(int(side) for side in shape.split("x"))
