"""Where arrays live: the mesh, the one table of rules, and the shardings that follow from them.

Parameters name *logical* axes (``embed``, ``heads``, ``mlp``, …). ``RULES`` alone maps these to the
mesh's axes; XLA derives all communication from there. An axis whose size the mesh does not divide
stays whole on every device.
"""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rljax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

BATCH = ("data", "fsdp")  # rows of a batch are spread over both

RULES: dict[str | None, str | None] = {
    None: None,
    "layers": None,
    "head_dim": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "tensor",  # whole experts on a device each, so that no product is split
    "expert_mlp": None,
}


def make_mesh(
    devices: list | None = None, /, *, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> Mesh:
    """A mesh over ``devices`` (default: all of them) with axes data × fsdp × tensor.

    One size may be −1: it takes what the others leave. Raises ``UserError`` if the sizes do not
    multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if bad or list(sizes.values()).count(-1) > 1:
        raise UserError(f"mesh sizes must be positive, and at most one may be -1; got {sizes}")
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {axis: len(devices) // known if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"a mesh of data={data} x fsdp={fsdp} x tensor={tensor} does not fit {len(devices)} "
            f"device(s): the sizes must multiply to {len(devices)} (-1 takes what is left)"
        )
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh):
    """The ``PartitionSpec`` of one parameter from its logical axes and its shape."""
    names = (RULES[axis] for axis in axes)
    return PartitionSpec(
        *(
            n if n and size % mesh.shape[n] == 0 else None
            for n, size in zip(names, shape, strict=True)
        )
    )


def param_shardings(axes: PyTree, abstract: PyTree, mesh: Mesh) -> PyTree:
    """A tree of ``NamedSharding`` for parameters of logical ``axes`` and ``abstract`` shapes."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)),
        abstract,
        axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, spread over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def spread_rows(tree: PyTree, axis: int = 0) -> PyTree:
    """Inside a compiled function: constrain ``axis`` of every array to lie as rows do.

    Without a mesh in context (``jax.set_mesh``) nothing is constrained.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = PartitionSpec(*(None,) * axis, BATCH)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def split_rows(tree: PyTree, parts: int) -> PyTree:
    """Every array [B, ...] as [parts, B / parts, ...], the rows of each part spread as rows are."""
    split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)
    return spread_rows(split, axis=1)


def gather_table(table: jax.Array) -> jax.Array:
    """An embedding table, whole on every device, as a gather over its rows needs it."""
    if jax.sharding.get_abstract_mesh().empty:
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec())


def row_axes(mesh: Mesh | AbstractMesh, rows: int) -> tuple[str, ...] | None:
    """The mesh axes that ``rows`` rows can be spread over; None if they do not divide."""
    return BATCH if rows % row_shards(mesh) == 0 else None


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Over how many shards the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def bytes_per_device(abstract: PyTree, shardings: PyTree) -> int:
    """Bytes of a tree that the fullest device holds."""
    sizes = jax.tree.map(
        lambda leaf, s: math.prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
