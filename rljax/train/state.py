"""Making a TrainState, and saying where each of its leaves lives."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from rljax.sharding import param_shardings, replicated
from rljax.types import Model, Optimizers, Params, TrainState


def init_state(
    *,
    key: PRNGKeyArray,
    params: dict[str, Params],
    optimizers: Optimizers,
    frozen: dict[str, Params] | None = None,
    shaping: PyTree = (),
) -> TrainState:
    """The state before the first step, every leaf an array of its own, as donation needs it."""
    params, frozen = jax.tree.map(jnp.copy, (params, frozen or {}))
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        frozen=frozen,
        opt_state={role: optimizers[role].init(tree) for role, tree in params.items()},
        shaping=shaping,
    )


def state_shardings(
    abstract: TrainState,
    models: Mapping[str, Model],
    optimizers: Optimizers,
    mesh: Mesh,
) -> TrainState:
    """A tree of shardings like the state: parameters by the rule table, the optimizer's moments
    like their parameters, and the rest whole on every device."""
    whole = replicated(mesh)

    def of(params: dict[str, Params]):
        return {
            role: param_shardings(models[role].axes, tree, mesh) for role, tree in params.items()
        }

    def moments(role: str):
        return optax.tree.map_params(
            optimizers[role],
            lambda _, sharding: sharding,
            abstract.opt_state[role],
            params[role],
            transform_non_params=lambda _: whole,
        )

    params = of(abstract.params)
    return TrainState(
        step=whole,
        key=whole,
        params=params,
        frozen=of(abstract.frozen),
        opt_state={role: moments(role) for role in abstract.opt_state},
        shaping=jax.tree.map(lambda _: whole, abstract.shaping),
    )


def place(
    make: Callable[..., TrainState],
    *args: PyTree,
    models: Mapping[str, Model],
    optimizers: Optimizers,
    mesh: Mesh,
) -> TrainState:
    """``make(*args)``, compiled so that every leaf is born where it belongs."""
    shardings = state_shardings(jax.eval_shape(make, *args), models, optimizers, mesh)
    return jax.jit(make, out_shardings=shardings)(*args)
