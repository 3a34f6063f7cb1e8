"""Stretches of training: the step of each, how its state begins, and its batches."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from rljax import resolve
from rljax.config import Config
from rljax.errors import UserError, multiples
from rljax.host.between import NOTHING, Between
from rljax.roles import Networks, Trees
from rljax.sharding import check_host_memory, row_shards
from rljax.train import (
    TrainStep,
    adamw,
    draw_given,
    init_state,
    make_appraise_given,
    make_forward,
    make_measure,
    make_score_forward,
    make_update,
    with_reference,
    with_room,
)
from rljax.train.buckets import MapRows, map_rows
from rljax.train.forward import Forward
from rljax.train.given import Measure
from rljax.train.guard import NO_LIMITS, Limits
from rljax.types import Algorithm, Experience, Optimizers, Prompts, Role, State, TrainState


class Phase(NamedTuple):
    """A stretch of training: its step, how its state begins, and its batches."""

    name: str
    steps: int
    train_step: TrainStep
    begin: Callable[[Trees], TrainState]  # from the starts, by name
    axes: dict[str, PyTree]  # the logical axes of every tree of the state
    optimizers: Optimizers
    batches: Any  # batches[step]
    between: Between = NOTHING  # what the host does between drawing and learning
    parts: int = 1  # that a rollout is drawn in, for the host to be about one of them meanwhile


class Ahead(NamedTuple):
    """The reference's log-probs of given rows, computed once, so that training does without it."""

    make: Callable[[Trees], Trees]  # the reference's tree, from the starts
    logprobs: Callable[[Trees, Experience], tuple[Array, Array | None]]  # and of mismatched rows


class Learning(NamedTuple):
    """How rows that are given are learned from."""

    train_step: TrainStep
    measure: Measure


def learning_from_given(
    algorithm: Algorithm,
    roles: Mapping[str, Role],
    optimizers: Optimizers,
    *,
    needs_reference: bool,
    microbatches: int = 1,
    buckets: int = 1,
    limits: Limits = NO_LIMITS,
) -> Learning:
    """The step over given rows, and how their loss is measured without a step.

    Args:
      needs_reference: rows come without the reference's log-probs, and the loss needs them.
    """
    forward = forward_of(algorithm, roles)
    appraise = make_appraise_given(
        roles,
        needs_reference=needs_reference,
        baseline=algorithm.baseline,
        over_rows=functools.partial(map_rows, parts=microbatches, buckets=buckets),
    )
    update = make_update(
        forward,
        algorithm.loss,
        algorithm.weigh,
        optimizers,
        algorithm.mark,
        rows_per_item(algorithm),
        limits,
        microbatches=microbatches,
        buckets=buckets,
    )
    by_tokens = algorithm.learns_from == "demonstrations"
    return Learning(
        TrainStep(draw_given, appraise, update),
        make_measure(
            appraise,
            forward,
            algorithm.loss,
            algorithm.weigh,
            by_tokens=by_tokens,
            microbatches=microbatches,
        ),
    )


def forward_of(
    algorithm: Algorithm, roles: Mapping[str, Role], temperature: float = 1.0
) -> Forward:
    """What the algorithm's loss needs of the networks."""
    if algorithm.trains == "reward":
        return make_score_forward(roles["reward"])
    return make_forward(roles, temperature=temperature, divergence=algorithm.divergence)


def rows_per_item(algorithm: Algorithm) -> int:
    """Rows of a batch that belong together: the two of a pair."""
    return 2 if algorithm.learns_from == "pairs" else 1


def make_begin(
    config: Config, networks: Networks, optimizers: Optimizers, shaping: Callable[[], State]
) -> Callable[[Trees], TrainState]:
    """How the state of the training proper begins, from the starts."""

    def begin(starts: Trees) -> TrainState:
        state_key, trees_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
        params, frozen = networks.begin(starts, trees_key)
        return init_state(
            key=state_key,
            params=params,
            frozen=frozen,
            optimizers=optimizers,
            shaping=shaping(),
        )

    return begin


def with_pending(
    begin: Callable[[Trees], TrainState], step: TrainStep, batch: Prompts
) -> Callable[[Trees], TrainState]:
    """``begin``, with room in the state for a rollout of such a batch, drawn one step ahead."""

    def begin_with_room(starts: Trees) -> TrainState:
        state = begin(starts)
        return with_room(state, jax.eval_shape(step.draw_step, state, batch))

    return begin_with_room


def split_ahead(networks: Networks, over_rows: MapRows) -> tuple[Networks, Ahead]:
    """The networks without the reference, and what computes its log-probs before training, of a
    batch's rows in parts as ``over_rows`` has them."""
    role = networks.roles["reference"]
    (name,) = role.trees
    tree = networks.trees[name]

    def make(starts: Trees) -> Trees:
        made = tree.make(starts, jax.random.key(0))
        return {name: jax.tree.map(lambda x: x.astype(tree.dtype), made)}

    def logprobs(trees: Trees, batch: Experience) -> tuple[Array, Array | None]:
        batch = with_reference(role, trees, batch, over_rows)
        other = batch.mismatched
        return batch.ref_logprobs, None if other is None else other.ref_logprobs

    roles = {key: value for key, value in networks.roles.items() if key != "reference"}
    trees = {key: value for key, value in networks.trees.items() if key != "reference"}
    return networks._replace(roles=roles, trees=trees), Ahead(make, logprobs)


def with_columns(batch: Experience) -> Experience:
    """The batch with room for the reference's log-probs, for its shapes."""
    other = batch.mismatched
    return batch.replace(
        ref_logprobs=np.zeros(batch.tokens.shape, np.float32),
        mismatched=None if other is None else with_columns(other),
    )


def make_optimizers(
    config: Config, trained: list[str], steps: int, updates_per_step: int, *, hint: str = ""
) -> Optimizers:
    """An optimizer for each role that is trained.

    Raises ``UserError`` if the config has settings for others.
    """
    if set(config.optimizer) != set(trained):
        raise UserError(
            f"optimizer: settings are needed for {' and '.join(trained)}, "
            f"got them for {', '.join(config.optimizer) or 'none'}{hint}"
        )
    return {
        role: make_adamw(config.optimizer[role], steps, updates_per_step, f"optimizer.{role}")
        for role in trained
    }


def make_adamw(given: Mapping[str, Any], steps: int, updates_per_step: int, where: str):
    keywords = resolve.arguments(adamw, given, context={}, where=where, open_positionals=2)
    try:
        return adamw(steps, updates_per_step, **keywords)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def steps_of(config: Config, rows: int, rows_per_step: int) -> int:
    """Of the training proper: as the config has them, or as many as its epochs have rows for."""
    if config.steps is not None:
        return config.steps
    return math.ceil(config.epochs * rows / rows_per_step)


def check_shards(where: str, count: int, mesh: Mesh) -> None:
    """Raises ``UserError`` unless ``count`` divides over the mesh's row shards."""
    shards = row_shards(mesh)
    if count % shards:
        raise UserError(
            f"{where}={count} does not divide over the mesh's {shards} row shards (data x fsdp x "
            f"expert); {multiples(count, shards)} would"
        )


def check_columns(columns: int, mesh: Mesh) -> None:
    """Raises ``UserError`` unless a row's columns, prompt and response, divide over the mesh."""
    shards = mesh.shape["sequence"]
    if columns % shards:
        raise UserError(
            f"data.max_prompt_tokens + sampling.max_tokens = {columns} columns do not divide over "
            f"mesh.sequence={shards}; {multiples(columns, shards)} would"
        )


def check_mesh(mesh: Mesh, networks: Networks) -> None:
    """Raises ``UserError`` if the mesh has an axis that no network uses, or cannot hold one."""
    decoders = [source.architecture.decoder for source in networks.sources.values()]
    if mesh.shape["expert"] > 1 and not any(decoder.experts for decoder in decoders):
        raise UserError(
            f"mesh.expert={mesh.shape['expert']}: no model has experts; fsdp spreads the others"
        )
    if any(role.offloaded for role in networks.roles.values()):
        check_host_memory(mesh)
