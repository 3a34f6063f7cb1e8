"""Learning from experience: epochs × minibatches × micro-batches, scanned.

An update that would bring numbers into the parameters that are not finite, or that is beyond a
limit, is left out.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rljax.errors import UserError, multiples
from rljax.losses.aggregate import token_weights
from rljax.sharding import split_rows
from rljax.train.buckets import at_width, joined, make_lots
from rljax.train.forward import Forward
from rljax.train.guard import (
    NO_LIMITS,
    Limits,
    Updates,
    distance,
    faults_of,
    mean_of_applied,
    output_column,
)
from rljax.types import (
    Experience,
    Loss,
    Mark,
    Metrics,
    Optimizers,
    TrainState,
    Weigh,
)

# (state, experience, key, whether the experience is sound) -> state, metrics, what was seen
Update = Callable[..., tuple[TrainState, Metrics, Updates]]


class Sums(NamedTuple):
    """What adds up over the micro-batches of an update."""

    loss: Float[Array, ""]
    kl: Float[Array, ""]  # 0 where no limit asks for it
    metrics: Metrics


def make_update(
    forward: Forward,
    loss: Loss,
    weigh: Weigh,
    optimizers: Optimizers,
    mark: Mark | None = None,
    together: int = 1,
    limits: Limits = NO_LIMITS,
    /,
    *,
    epochs: int = 1,
    minibatches: int = 1,
    microbatches: int = 1,
    buckets: int = 1,
) -> Update:
    """One optimizer update per minibatch; its gradient is the sum over micro-batches.

    The rows are shuffled anew in every epoch; ``together`` adjacent ones stay so, such as pairs.
    Token weights are made over the whole minibatch, so that the number of micro-batches bounds
    memory and changes nothing else.

    With ``buckets`` the rows of a minibatch are sorted by length, so that a micro-batch has rows of
    like length, and is computed at the narrowest of as many widths as holds them
    (``rljax.train.buckets``). Only the order of summation changes.

    Where a loss, a gradient or what it is made of is not finite, or beyond the ``limits``, the
    parameters and the optimizer's state stay as they are, and metrics are means over the updates
    that were applied. If the experience is not sound, none is.

    Args:
      forward: (all parameters by name, trained or frozen, rows) -> Outputs.
      weigh: which tokens are learned from, or how much each weighs by the data, and segments if
        rows are packed -> the weight of each token in the loss (``losses.token_weights``).
      mark: (minibatch, key) -> the tokens that the loss treats apart, if there are any.
    """
    if min(epochs, minibatches, microbatches, buckets) < 1:
        raise UserError("update: epochs, minibatches, microbatches and buckets must be at least 1")

    def apply(params, opt_state, gradients):
        new_params, new_opt_state = {}, {}
        for role, gradient in gradients.items():
            updates, new_opt_state[role] = optimizers[role].update(
                gradient, opt_state[role], params[role]
            )
            new_params[role] = optax.apply_updates(params[role], updates)
        return new_params, new_opt_state

    def keep(params, opt_state, gradients):
        return params, opt_state

    def minibatch_update(frozen, sound, carry, minibatch):
        params, opt_state = carry
        batch, rows, key = minibatch
        batch = weighted(batch, weigh)
        batch = batch.replace(marked=mark(batch, key) if mark else None)

        def objective(params, batch: Experience):
            outputs = forward(frozen | params, batch)
            total, metrics = loss(outputs, batch)
            kl = jnp.float32(0) if limits.max_kl is None else distance(outputs, batch)
            return total, (Sums(total, kl, metrics), output_column(outputs, batch))

        lots = make_lots(batch, batch.mask, parts=microbatches, buckets=buckets, together=together)

        def gradient(lot):
            gradients, (sums, column) = at_width(
                lambda rows: jax.grad(objective, has_aux=True)(params, rows),
                *lot,
                batch.mask.shape[1],
                buckets,
            )
            return (gradients, sums), column

        (gradients, sums), column = _summed(gradient, (lots.rows, lots.width))
        rows, column = rows[lots.order], jnp.where(column < 0, column, column + lots.first)
        norms = {
            f"{role}/grad_norm": optax.tree.norm(gradient) for role, gradient in gradients.items()
        }
        column = jnp.where(sound, column, -1)
        applied, faults = faults_of(sound, column, sums.loss, norms, sums.kl, limits)
        # Of two branches one is taken, so that nothing has to be held twice to choose from.
        carry = jax.lax.cond(applied, apply, keep, params, opt_state, gradients)
        figures = {"loss": sums.loss, **norms}
        if limits.max_kl is not None:
            figures["kl"] = sums.kl
        return carry, (sums.metrics | norms, Updates(rows, column, faults, applied, figures))

    def update(
        state: TrainState,
        experience: Experience,
        key: PRNGKeyArray,
        sound: Bool[Array, ""] | bool = True,
    ):
        sound = jnp.asarray(sound)
        rows = experience.tokens.shape[0]
        check_rows(rows // together, minibatches, microbatches)

        def epoch(carry, epoch_key):
            order = joined(jax.random.permutation(epoch_key, rows // together), together)
            shuffled = jax.tree.map(lambda x: x[order], experience)
            learn = functools.partial(minibatch_update, state.frozen, sound)
            keys = jax.random.split(jax.random.fold_in(epoch_key, 1), minibatches)
            parts = split_rows(shuffled, minibatches), order.reshape(minibatches, -1), keys
            return jax.lax.scan(learn, carry, parts)

        (params, opt_state), (metrics, updates) = jax.lax.scan(
            epoch, (state.params, state.opt_state), jax.random.split(key, epochs)
        )
        return (
            state.replace(params=params, opt_state=opt_state),
            mean_of_applied(metrics, updates.applied),
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), updates),
        )

    return update


def weighted(batch: Experience, weigh: Weigh) -> Experience:
    """A whole minibatch with the weights of its tokens, in the loss and in means."""
    learned = batch.action_mask if batch.data_weights is None else batch.data_weights
    packed = () if batch.segments is None else (batch.segments,)
    return batch.replace(
        loss_weights=weigh(learned, *packed), mean_weights=token_weights(learned, *packed)
    )


def check_rows(rows: int, minibatches: int, microbatches: int, shards: int = 1) -> None:
    """Raises ``UserError`` unless the rows of a step divide into its micro-batches, and each of
    these over the ``shards`` of the mesh."""
    if min(minibatches, microbatches) < 1:
        raise UserError(
            f"update: minibatches and microbatches must be at least 1, got {minibatches}, "
            f"{microbatches}"
        )
    parts = minibatches * microbatches * shards
    if rows % parts:
        raise UserError(
            f"{rows} rows per step do not divide into {minibatches} minibatches of {microbatches} "
            f"micro-batches over {shards} row shard(s); {multiples(rows, parts)} would"
        )


def _summed(f, xs):
    """Of pairs that ``f`` makes of each of ``xs`` along their leading axis: the sum of the first
    halves, and the second, arrays of rows, one after the other."""
    first = jax.tree.map(lambda x: x[0], xs)
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        return f(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first)[0])

    def add(total, x):
        more, rows = f(x)
        return jax.tree.map(jnp.add, total, more), rows

    total, rows = jax.lax.scan(add, zeros, xs)
    return total, rows.reshape(-1)
