"""A mixture of experts: each token goes to a few of many MLPs, and no token is dropped."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rljax.models.quantized import operands
from rljax.sharding import STREAM, TRAINING, Rules, partition_spec, spread_over
from rljax.types import Quantized


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


def apply_experts(
    x: Float[Array, "B T D"], chosen, weights, mlp, matrices, rules: Rules = TRAINING
):
    """Σ weight · expert(x) over each token's experts.

    On a mesh every device takes the experts that it holds. Devices that hold other experts, and
    other rows, exchange their rows before and the sums over experts after.

    Args:
      chosen, weights: [B, T, k].
      mlp: (rows [N, D], multiply) -> [N, D], where ``multiply(rows, name)`` is the product of each
        row with its own expert's matrix.
      matrices: by name, [E, in, out].
      rules: where they all lie.
    """
    count = len(jax.tree.leaves(matrices)[0])

    def local(x, chosen, weights, matrices, first):
        held = len(jax.tree.leaves(matrices)[0])
        rows, per_token = x.reshape(-1, x.shape[-1]), chosen.shape[-1]
        expert = chosen.reshape(-1) - first
        here = (expert >= 0) & (expert < held)
        order = jnp.argsort(jnp.where(here, expert, held))  # those of other devices come last
        sizes = jnp.bincount(jnp.where(here, expert, held), length=held + 1)[:held]
        gathered = rows[order // per_token]

        def multiply(rows, name):
            matrix = matrices[name]
            if not isinstance(matrix, Quantized):
                return jax.lax.ragged_dot(rows, matrix.astype(rows.dtype), sizes)
            out = jax.lax.ragged_dot(*operands(rows, matrix), sizes)
            scale = jnp.take(matrix.scale[:, 0], expert[order], axis=0, mode="clip")
            return (out * scale).astype(rows.dtype)

        out = jnp.where(here[order, None], mlp(gathered, multiply), 0)
        out = out * weights.reshape(-1)[order, None].astype(out.dtype)
        return jnp.zeros_like(rows).at[order // per_token].add(out).reshape(x.shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(x, chosen, weights, matrices, 0)
    rows = partition_spec(STREAM, x.shape, mesh, rules)
    matrix = partition_spec(("experts", None, None), (count, 1, 1), mesh, rules)
    over = spread_over(matrix[0])
    of_rows = [axis for axis in over if axis in spread_over(rows[0])]  # other rows there as well
    copies = tuple(axis for axis in over if axis not in of_rows)

    def sharded(x, chosen, weights, matrices):
        held = len(jax.tree.leaves(matrices)[0])
        first = jax.lax.axis_index(over) * held if over else 0
        for axis in of_rows:
            x, chosen, weights = (
                jax.lax.all_gather(y, axis, tiled=True) for y in (x, chosen, weights)
            )
        out = local(x, chosen, weights, matrices, first)
        if copies:
            out = jax.lax.psum(out, copies)
        for axis in of_rows:
            out = jax.lax.psum_scatter(out, axis, tiled=True)
        return out

    return jax.shard_map(
        sharded, in_specs=(rows, rows, rows, matrix), out_specs=rows, check_vma=False
    )(x, chosen, weights, matrices)
