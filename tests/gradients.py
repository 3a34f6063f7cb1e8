"""An optimizer to look at gradients with."""

import jax
import jax.numpy as jnp
import optax


def recorder(updates: int) -> optax.GradientTransformation:
    """Changes nothing, and keeps every gradient in its state, in the order of their coming."""

    def init(params):
        return jnp.int32(0), jax.tree.map(lambda x: jnp.zeros((updates, *x.shape)), params)

    def update(gradient, state, params):
        count, kept = state
        kept = jax.tree.map(lambda old, new: old.at[count].set(new), kept, gradient)
        return jax.tree.map(jnp.zeros_like, gradient), (count + 1, kept)

    return optax.GradientTransformation(init, update)
