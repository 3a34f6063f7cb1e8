"""Learning from experience: epochs × minibatches × micro-batches, scanned."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from rljax.errors import UserError, multiples
from rljax.losses.aggregate import token_weights
from rljax.sharding import split_rows
from rljax.train.forward import Forward
from rljax.types import (
    Experience,
    Loss,
    Mark,
    Metrics,
    Optimizers,
    TrainState,
    Weigh,
)

Update = Callable[[TrainState, Experience, PRNGKeyArray], tuple[TrainState, Metrics]]


def make_update(
    forward: Forward,
    loss: Loss,
    weigh: Weigh,
    optimizers: Optimizers,
    mark: Mark | None = None,
    together: int = 1,
    /,
    *,
    epochs: int = 1,
    minibatches: int = 1,
    microbatches: int = 1,
) -> Update:
    """One optimizer update per minibatch; its gradient is the sum over micro-batches.

    The rows are shuffled anew in every epoch; ``together`` adjacent ones stay so, such as pairs.
    Token weights are made over the whole minibatch, so that the number of micro-batches bounds
    memory and changes nothing else.

    Args:
      forward: (all parameters by name, trained or frozen, rows) -> Outputs.
      weigh: which tokens are learned from, or how much each weighs by the data, and segments if
        rows are packed -> the weight of each token in the loss (``losses.token_weights``).
      mark: (minibatch, key) -> the tokens that the loss treats apart, if there are any.
    """
    if min(epochs, minibatches, microbatches) < 1:
        raise UserError("update: epochs, minibatches and microbatches must be at least 1")

    def minibatch_update(frozen, carry, minibatch: tuple[Experience, PRNGKeyArray]):
        params, opt_state = carry
        batch, key = minibatch
        batch = weighted(batch, weigh)
        batch = batch.replace(marked=mark(batch, key) if mark else None)

        def objective(params, batch: Experience):
            return loss(forward(frozen | params, batch), batch)

        gradients, metrics = _summed_gradients(objective, params, split_rows(batch, microbatches))
        new_params, new_opt_state = {}, {}
        for role, gradient in gradients.items():
            updates, new_opt_state[role] = optimizers[role].update(
                gradient, opt_state[role], params[role]
            )
            new_params[role] = optax.apply_updates(params[role], updates)
            metrics[f"{role}/grad_norm"] = optax.tree.norm(gradient)
        return (new_params, new_opt_state), metrics

    def update(state: TrainState, experience: Experience, key: PRNGKeyArray):
        rows = experience.tokens.shape[0]
        check_rows(rows // together, minibatches, microbatches)

        def epoch(carry, epoch_key):
            order = jax.random.permutation(epoch_key, rows // together)
            if together > 1:
                order = (order[:, None] * together + jnp.arange(together)).reshape(-1)
            shuffled = jax.tree.map(lambda x: x[order], experience)
            learn = functools.partial(minibatch_update, state.frozen)
            keys = jax.random.split(jax.random.fold_in(epoch_key, 1), minibatches)
            return jax.lax.scan(learn, carry, (split_rows(shuffled, minibatches), keys))

        (params, opt_state), metrics = jax.lax.scan(
            epoch, (state.params, state.opt_state), jax.random.split(key, epochs)
        )
        return (
            state.replace(params=params, opt_state=opt_state),
            jax.tree.map(jnp.mean, metrics),
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


def _summed_gradients(objective, params, microbatches: Experience):
    """Gradients and metrics, summed over the leading axis of ``microbatches``."""
    gradient = jax.grad(objective, has_aux=True)
    if microbatches.tokens.shape[0] == 1:
        return gradient(params, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches)),
    )

    def add(total, batch):
        return jax.tree.map(jnp.add, total, gradient(params, batch)), None

    return jax.lax.scan(add, zeros, microbatches)[0]
