"""Attention in an accelerator's own kernel: the scores of a row exist a block at a time.

On TPUs it is JAX's splash attention, on NVIDIA GPUs cuDNN's; elsewhere there is none.
"""

import functools
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rljax.sharding import axis_shards, column_shards, partition_spec

Kernel = Literal["splash", "cudnn"]
QUERIES, KEYS = ("rows", "heads", "columns", None), ("rows", "kv_heads", None, None)
LANES = 128  # columns that a TPU works on together
BLOCK = 512  # columns of a block at most


@runtime_checkable
class Device(Protocol):
    """As much of a device as says which kernel it has."""

    platform: str
    device_kind: str


def platform_kernel(
    dtype: str,
    head_dim: int,
    softcap: float | None,
    *,
    spread_alike: bool = True,
    device: Device | None = None,
) -> Kernel | None:
    """The kernel that takes such an attention on a device, by default one of the mesh in context,
    or JAX's first.

    ``spread_alike``: queries and keys lie over the mesh in the same way, as cuDNN needs them.
    """
    if device is None:
        device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.platform == "tpu":
        return "splash"
    takes = dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128 and softcap is None
    is_nvidia = device.platform in ("gpu", "cuda") and "nvidia" in device.device_kind.lower()
    return "cudnn" if is_nvidia and takes and spread_alike else None


def cudnn_attention(
    q: Float[Array, "B T H h"],
    keys: Float[Array, "B K h T"],
    values: Float[Array, "B K T h"],
    visible: Bool[Array, "B T T"],
    *,
    divisor: float,
    implementation: str = "cudnn",
) -> Float[Array, "B T H h"]:
    """softmax(q·k / ``divisor``)·v over the columns that are ``visible``."""
    columns = q.shape[1]
    room = (0, columns % 2)  # it has no gradient for an odd number of columns
    q, keys, values = (
        jnp.pad(x, [(0, 0), room, (0, 0), (0, 0)])
        for x in (q, keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2))
    )
    mixed = jax.nn.dot_product_attention(
        q,
        keys,
        values,
        mask=jnp.pad(visible, [(0, 0), room, room])[:, None],
        scale=1 / divisor,
        implementation=implementation,
    )
    return mixed[:, :columns]


def splash_attention(
    q: Float[Array, "B T H h"],
    keys: Float[Array, "B K h T"],
    values: Float[Array, "B K T h"],
    segments: Int[Array, "B T"],
    *,
    window: int | None,
    divisor: float,
    softcap: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H h"]:
    """softmax(q·k / ``divisor``)·v over the columns of each query's own segment, up to its own,
    and of these the last ``window``.

    Args:
      segments: a number for each sequence of a row; padding has one of its own.
      interpret: as a plain program, for tests without a TPU.
    """
    columns, heads = q.shape[1:3]
    shards = column_shards()
    padded = -(-columns // (LANES * shards)) * LANES * shards
    room = [(0, 0), (0, 0), (0, padded - columns), (0, 0)]
    q = jnp.pad((q.astype(jnp.float32) / divisor).astype(q.dtype).swapaxes(1, 2), room)
    keys, values = jnp.pad(keys.swapaxes(2, 3), room), jnp.pad(values, room)
    segments = jnp.pad(segments, room[1:3])  # behind every real column: seen by none
    shape = (padded, padded)
    one = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    head_shards = axis_shards("heads", heads) if axis_shards("kv_heads", keys.shape[1]) > 1 else 1
    block = next(size for size in (BLOCK, 256, LANES) if padded // shards % size == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([one] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(names, block)),
        attn_logits_soft_cap=softcap,
        head_shards=head_shards,
        q_seq_shards=shards,
        interpret=interpret,
    )

    def local(kernel, q, keys, values, queries_of, keys_of):
        ids = splash.SegmentIds(queries_of, keys_of)
        return jax.vmap(kernel)(q, keys, values, ids)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mixed = local(kernel, q, keys, values, segments, segments)
    else:
        spec = functools.partial(partition_spec, mesh=mesh)
        of_q, of_keys = spec(QUERIES, q.shape), spec(KEYS, keys.shape)
        if head_shards == 1:  # each needs all of the keys' heads
            of_q = PartitionSpec(of_q[0], None, *of_q[2:])
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(*of_q[1:3])))
        of_ids = [PartitionSpec(of_q[0], of_q[2]), PartitionSpec(of_keys[0])]
        mixed = jax.shard_map(
            local,
            in_specs=(of_kernel, of_q, of_keys, of_keys, *of_ids),
            out_specs=of_q,
            check_vma=False,
        )(kernel, q, keys, values, segments, segments)
    return mixed[:, :, :columns].swapaxes(1, 2)
