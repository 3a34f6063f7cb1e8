"""A mixture of experts: each token goes to a few of many MLPs, and no token is dropped."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rljax.sharding import RULES, row_axes


@dataclasses.dataclass(frozen=True)
class Experts:
    """``count`` MLPs, of which each token takes ``per_token``, weighed by the router's softmax;
    ``normalize`` makes those weights sum to one."""

    count: int
    per_token: int
    normalize: bool


def route(
    logits: Float[Array, "*rows E"], experts: Experts
) -> tuple[Int[Array, "*rows k"], Float[Array, "*rows k"]]:
    """The experts of each token, and their weights."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts.per_token)
    if experts.normalize:
        weights /= weights.sum(axis=-1, keepdims=True)
    return chosen, weights


def apply_experts(x: Float[Array, "B T D"], chosen, weights, mlp, matrices):
    """Σ weight · expert(x) over each token's experts.

    On a mesh every device takes the rows and the experts that it holds, and the sum over experts
    is all that is communicated.

    Args:
      chosen, weights: [B, T, k].
      mlp: (rows [N, D], multiply) -> [N, D], where ``multiply(rows, name)`` is the product of each
        row with its own expert's matrix.
      matrices: by name, [E, in, out].
    """
    count = next(iter(matrices.values())).shape[0]

    def local(x, chosen, weights, matrices, first):
        held = next(iter(matrices.values())).shape[0]
        rows, per_token = x.reshape(-1, x.shape[-1]), chosen.shape[-1]
        expert = chosen.reshape(-1) - first
        here = (expert >= 0) & (expert < held)
        order = jnp.argsort(jnp.where(here, expert, held))  # those of other devices come last
        sizes = jnp.bincount(jnp.where(here, expert, held), length=held + 1)[:held]
        gathered = rows[order // per_token]

        def multiply(rows, name):
            return jax.lax.ragged_dot(rows, matrices[name].astype(rows.dtype), sizes)

        out = jnp.where(here[order, None], mlp(gathered, multiply), 0)
        out = out * weights.reshape(-1)[order, None].astype(out.dtype)
        return jnp.zeros_like(rows).at[order // per_token].add(out).reshape(x.shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(x, chosen, weights, matrices, 0)
    axis = RULES["experts"]
    split = count % mesh.shape[axis] == 0
    rows = PartitionSpec(row_axes(mesh, x.shape[0]))

    def sharded(x, chosen, weights, matrices):
        if not split:
            return local(x, chosen, weights, matrices, 0)
        held = next(iter(matrices.values())).shape[0]
        out = local(x, chosen, weights, matrices, jax.lax.axis_index(axis) * held)
        return jax.lax.psum(out, axis)

    return jax.shard_map(
        sharded,
        in_specs=(rows, rows, rows, PartitionSpec(axis if split else None)),
        out_specs=rows,
        check_vma=False,
    )(x, chosen, weights, matrices)
