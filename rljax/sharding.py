"""Where arrays live: the mesh, the tables of rules, and the shardings that follow from them.

Parameters and activations name *logical* axes (``embed``, ``heads``, ``rows``, …). A table of rules
alone maps these to the mesh's axes; XLA derives all communication from there. An axis whose size
the mesh does not divide stays whole on every device.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rljax.errors import UserError

MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")

Axes = tuple[str | None, ...]  # logical, of one array
Rules = Mapping[str | None, tuple[str, ...]]  # logical axis -> the mesh axes it is spread over

TRAINING: Rules = MappingProxyType(
    {
        None: (),
        "layers": (),
        "head_dim": (),
        "embed": ("sequence", "fsdp", "expert"),
        "vocab": ("tensor",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "mlp": ("tensor",),
        "experts": ("expert", "tensor"),  # whole ones on a device, so that no product is split
        "expert_mlp": (),
        "rows": ("data", "fsdp", "expert"),
        "columns": ("sequence",),
    }
)
"""Of a forward and backward pass over whole rows. Matrices are gathered layer by layer."""

_SPLIT = dict.fromkeys(("vocab", "heads", "kv_heads", "mlp"), ("tensor", "sequence"))
SAMPLING: Rules = MappingProxyType(
    {**TRAINING, **_SPLIT, "experts": ("expert", "tensor", "sequence"), "embed": (), "columns": ()}
)
"""Of decoding, a column at a time: no matrix is gathered then, as each would be for every token.
What the rows are spread over holds copies; the sequence axis splits heads as the tensor axis does.
"""

GATHERED: Rules = MappingProxyType({**TRAINING, "embed": ("sequence",)})
"""Between the two: XLA moves parameters from one to the other by way of this one alone without
having them whole on every device."""

MOMENTS: Rules = MappingProxyType({**TRAINING, "embed": (*TRAINING["embed"], "data")})
"""Of the optimizer's state, which only the update reads, once: no device needs a copy (ZeRO-1)."""

HOST_MEMORY = "pinned_host"


class OnHost(NamedTuple):
    """The logical axes of parameters that wait in the hosts' memory until they are used."""

    axes: PyTree


STREAM: Axes = ("rows", "columns", None)  # of what flows from layer to layer


def make_mesh(
    devices: list | None = None,
    /,
    *,
    data: int = -1,
    fsdp: int = 1,
    expert: int = 1,
    sequence: int = 1,
    tensor: int = 1,
) -> Mesh:
    """A mesh over ``devices`` (default: all of them).

    One size may be −1: it takes what the others leave. Devices of several slices, whose network is
    slower than that within a slice, are laid out so that only ``data``, and then ``fsdp``, reaches
    from one to another.

    Args:
      data: copies of the parameters, each with rows of its own.
      fsdp: parameters, and rows, are spread over it.
      expert: experts are spread over it, and rows and other parameters as over ``fsdp``.
      sequence: the columns of long rows are spread over it.
      tensor: heads, MLPs and the vocabulary are split over it.

    Raises ``UserError`` if the sizes do not multiply to the number of devices, or do not divide
    over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(MESH_AXES, (data, fsdp, expert, sequence, tensor), strict=True))
    given = name_sizes(sizes)
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh sizes must be positive, and at most one may be -1; got {sizes}")
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"a mesh of {given} does not fit {len(devices)} device(s): the sizes "
            f"must multiply to {len(devices)} (-1 takes what is left)"
        )
    slices = len({getattr(device, "slice_index", None) for device in devices})
    split = {"allow_split_physical_axes": True}  # an axis need not be one of the network's
    if slices == 1:
        laid_out = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, **split)
    else:
        across = _across_slices(sizes, slices)
        within = tuple(size // across[axis] for axis, size in sizes.items())
        laid_out = mesh_utils.create_hybrid_device_mesh(
            within, tuple(across.values()), devices, **split
        )
    return Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def name_sizes(sizes: Mapping[str, int]) -> str:
    """The sizes of a mesh in words.

    >>> name_sizes({"data": 1, "fsdp": 4, "tensor": 2}), name_sizes({"data": 1})
    ('fsdp=4 x tensor=2', 'one device')
    """
    named = [f"{axis}={size}" for axis, size in sizes.items() if size != 1]
    return " x ".join(named) or "one device"


def _across_slices(sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """How much of each axis reaches from slice to slice."""
    data = math.gcd(sizes["data"], slices)
    fsdp = math.gcd(sizes["fsdp"], slices // data)
    if data * fsdp != slices:
        raise UserError(
            f"mesh: the devices are in {slices} slices, and only data and fsdp reach from one to "
            f"another: data={sizes['data']} x fsdp={sizes['fsdp']} does not divide over them"
        )
    return {axis: {"data": data, "fsdp": fsdp}.get(axis, 1) for axis in sizes}


def partition_spec(
    axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules = TRAINING
) -> PartitionSpec:
    """The ``PartitionSpec`` of one array from its logical axes and its shape.

    Each axis is spread over the first of its rule's mesh axes, as many as divide its size and as
    no axis before it has taken.
    """
    taken: set[str] = set()
    spec = []
    for name, size in zip(axes, shape, strict=True):
        over: list[str] = []
        for axis in rules[name]:
            if axis in taken or mesh.shape[axis] == 1:
                continue
            if size % (mesh.shape[axis] * math.prod(mesh.shape[other] for other in over)):
                break
            over.append(axis)
        taken.update(over)
        spec.append(tuple(over) if len(over) > 1 else over[0] if over else None)
    return PartitionSpec(*spec)


def spread_over(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that an entry of a ``PartitionSpec`` names."""
    return (entry,) if isinstance(entry, str) else entry or ()


def param_shardings(
    axes: PyTree | OnHost,
    abstract: PyTree,
    mesh: Mesh | AbstractMesh,
    rules: Rules = TRAINING,
) -> PyTree:
    """A tree of ``NamedSharding`` for parameters of logical ``axes`` and ``abstract`` shapes."""
    memory = {}
    if isinstance(axes, OnHost):
        axes, memory = axes.axes, {"memory_kind": HOST_MEMORY}

    def of(leaf, names):
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules), **memory)

    return jax.tree.map(of, abstract, axes)


def check_host_memory(mesh: Mesh) -> None:
    """Raises ``UserError`` if parameters cannot wait in the hosts' memory."""
    try:
        NamedSharding(mesh, PartitionSpec(), memory_kind=HOST_MEMORY)
    except ValueError as error:
        kind = mesh.devices.flat[0].device_kind
        raise UserError(f"offload: {kind} devices cannot use their host's memory") from error


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Rows of a batch, spread as the rules say."""
    return NamedSharding(mesh, PartitionSpec(TRAINING["rows"]))


def rollout_shardings(abstract: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """A tree of shardings like a rollout's: rows spread as the rules say, and its metrics whole."""
    rows, whole = row_sharding(mesh), replicated(mesh)
    return jax.tree.map(lambda leaf: rows if leaf.ndim else whole, abstract)


def lay(x: jax.Array, axes: Axes, rules: Rules = TRAINING) -> jax.Array:
    """Inside a compiled function: constrains an array of logical ``axes`` to lie by the rules.

    Without a mesh in context (``jax.set_mesh``) nothing is constrained.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh, rules))


def lay_tree(tree: PyTree, axes: PyTree, rules: Rules) -> PyTree:
    """``lay``, for parameters with a tree of their axes."""
    return jax.tree.map(lambda leaf, names: lay(leaf, names, rules), tree, axes)


def spread_rows(tree: PyTree, axis: int = 0) -> PyTree:
    """Inside a compiled function: constrain ``axis`` of every array to lie as rows do."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = PartitionSpec(*(None,) * axis, TRAINING["rows"])
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def split_rows(tree: PyTree, parts: int) -> PyTree:
    """Every array [B, ...] as [parts, B / parts, ...], the rows of each part spread as rows are."""
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), spread_rows(tree))
    return spread_rows(split, axis=1)


def column_shards() -> int:
    """Over how many shards the mesh in context spreads the columns of rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in TRAINING["columns"])


def axis_shards(name: str, size: int, rules: Rules = TRAINING) -> int:
    """Over how many shards the mesh in context spreads a logical axis of this size."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    (entry,) = partition_spec((name,), (size,), mesh, rules)
    return math.prod(mesh.shape[axis] for axis in spread_over(entry))


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Over how many shards the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in TRAINING["rows"])


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """Bytes of a tree that the fullest device holds."""
    sizes = jax.tree.map(
        lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
