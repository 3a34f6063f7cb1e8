"""What a step is known to hold in each device's memory, counted from shapes and shardings."""

import functools
import math
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from rljax.build import Build
from rljax.checks import abstract_state
from rljax.sampling.chunk import cached_columns
from rljax.sampling.decode import cache_axes
from rljax.sharding import SAMPLING, OnHost, bytes_per_device, param_shardings, partition_spec
from rljax.train import state_shardings
from rljax.types import Params


class Footprint(NamedTuple):
    """Bytes on the fullest device, by what they are of."""

    state: dict[str, int]  # roles and their optimizers: always there
    sampling: dict[str, int]  # while responses are drawn
    update: dict[str, int]  # while gradients are made

    @property
    def least(self) -> int:
        """Bytes that are needed at some moment, whatever the compiler does."""
        return sum(self.state.values()) + max(
            sum(self.sampling.values()), sum(self.update.values())
        )


def footprint(built: Build, mesh: Mesh | AbstractMesh) -> Footprint:
    """What training holds on a mesh, which need not be that of the build."""
    phase = built.train
    state = abstract_state(built, phase)
    places = state_shardings(state, phase.axes, phase.optimizers, mesh)
    trees, tree_places = state.params | state.frozen, places.params | places.frozen
    counts = {
        name: bytes_per_device(tree, tree_places[name])
        for name, tree in trees.items()
        if not isinstance(phase.axes[name], OnHost)  # it takes room while it is used alone
    }
    counts["optimizer"] = bytes_per_device(state.opt_state, places.opt_state)
    if state.pending is not None:
        counts["pending rollout"] = bytes_per_device(state.pending, places.pending)
    gradients = sum(counts[name] for name in state.params)
    sampling = {}
    if built.algorithm.learns_from == "prompts":
        (model,), keywords = built.sample.args, built.sample.keywords
        weights = sampled_weights(built)
        shardings = param_shardings(model.axes, weights, mesh, SAMPLING)
        sampling["weights to sample with"] = bytes_per_device(weights, shardings)
        prompts, width = phase.batches[0].tokens.shape
        rows = prompts // phase.parts * built.group_rows
        slots = min(keywords["slots"] or rows, rows)
        abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
        with jax.sharding.use_abstract_mesh(abstract):  # it may have copies of key heads there
            stacked = not isinstance(jax.eval_shape(lambda: model.init_cache(1, 1)).keys, tuple)
            columns = cached_columns(
                slots,
                rows,
                width,
                keywords["max_tokens"],
                guesses=keywords["prompt_lookup"],
                stacked=stacked,
            )
            cache = jax.eval_shape(functools.partial(model.init_cache, slots, columns))
        sampling["KV cache"] = sum(_bytes(leaf, mesh) for leaf in jax.tree.leaves(cache))
    return Footprint(counts, sampling, {"gradients": gradients})


def sampled_weights(built: Build) -> Params:
    """The shapes and types of the parameters that responses are drawn with."""
    (model,) = built.sample.args
    return jax.eval_shape(model.cast, jax.eval_shape(model.init, jax.random.key(0)))


def _bytes(leaf: jax.ShapeDtypeStruct, mesh: Mesh | AbstractMesh) -> int:
    """Of a cache, per device."""
    spec = partition_spec(cache_axes(leaf), leaf.shape, mesh, SAMPLING)
    return math.prod(jax.NamedSharding(mesh, spec).shard_shape(leaf.shape)) * leaf.dtype.itemsize
