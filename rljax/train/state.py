"""Making a TrainState, and saying where each of its leaves lives."""

import warnings
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PRNGKeyArray, PyTree

from rljax.sharding import MOMENTS, TRAINING, param_shardings, replicated, rollout_shardings
from rljax.types import Optimizers, Params, Rollout, TrainState


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
        skipped=jnp.int32(0),
        key=key,
        params=params,
        frozen=frozen,
        opt_state={role: optimizers[role].init(tree) for role, tree in params.items()},
        shaping=shaping,
    )


def with_room(state: TrainState, drawn: Rollout) -> TrainState:
    """The state with room for a rollout of these shapes, in which nothing was drawn yet."""
    return state.replace(pending=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), drawn))


def state_shardings(
    abstract: TrainState,
    axes: Mapping[str, PyTree],
    optimizers: Optimizers,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """A tree of shardings like the state: parameters by the rule table, from the logical ``axes``
    of each tree, the optimizer's moments by theirs, a pending rollout as rows are, and the rest
    whole on every device."""
    whole = replicated(mesh)

    def of(params: dict[str, Params], rules=TRAINING):
        return {
            name: param_shardings(axes[name], tree, mesh, rules) for name, tree in params.items()
        }

    def moments(role: str):
        return optax.tree.map_params(
            optimizers[role],
            lambda _, sharding: sharding,
            abstract.opt_state[role],
            spread[role],
            transform_non_params=lambda _: whole,
        )

    params, spread = of(abstract.params), of(abstract.params, MOMENTS)
    return TrainState(
        step=whole,
        skipped=whole,
        key=whole,
        params=params,
        frozen=of(abstract.frozen),
        opt_state={role: moments(role) for role in abstract.opt_state},
        shaping=jax.tree.map(lambda _: whole, abstract.shaping),
        pending=rollout_shardings(abstract.pending, mesh),
    )


def place(
    make: Callable[[PyTree], TrainState],
    start: PyTree,
    /,
    *,
    axes: Mapping[str, PyTree],
    optimizers: Optimizers,
    mesh: Mesh,
) -> TrainState:
    """``make(start)``, compiled so that every leaf is born where it belongs; ``start`` is
    donated."""
    shardings = state_shardings(jax.eval_shape(make, start), axes, optimizers, mesh)
    with warnings.catch_warnings():  # of a start's leaves that the state has no use for
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        return jax.jit(make, out_shardings=shardings, donate_argnums=0)(start)
