"""How long a step takes at the least: what its phases compute, read and send, at a chip's peaks.

Of each phase the longest of the three counts, as if the others were hidden behind it. FLOPs are of
matrix products and attention, as they are computed: what remat computes again is counted, and
attention over all columns, masked or not.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from rljax import resolve
from rljax.build import Build
from rljax.checks import abstract_state
from rljax.chips import Chip, bandwidth
from rljax.config import Config
from rljax.models import DecoderConfig
from rljax.planning.collectives import Collective
from rljax.planning.footprint import Footprint, sampled_weights
from rljax.sharding import row_shards
from rljax.train import make_update
from rljax.types import Role

OPTIMIZER_BYTES = 28  # a parameter: gradient, parameter and two moments are read, three written


class Load(NamedTuple):
    """What there is to do in a step, over all devices."""

    prompts: int
    prompt_tokens: int  # columns; 0 where nothing is sampled
    max_tokens: int
    rows: int
    columns: int
    trained: dict[str, DecoderConfig]
    learned: dict[str, int]  # parameters of these that change: of adapters, not of their base
    scoring: dict[str, DecoderConfig]  # networks that read each row once
    passes: int  # over the rows: epochs
    minibatches: int  # in all epochs
    microbatches: int  # in each of them
    sampled_bytes: int  # of the weights that rows are drawn with
    draws: int = 1  # that rows are drawn in, one after the other: parts, or fills of the slots

    def scored_in(self, mesh: Mesh | AbstractMesh) -> int:
        """Parts that rows are read in before the update, as ``build`` has it."""
        parts = self.minibatches // self.passes * self.microbatches
        return math.gcd(parts, self.rows // row_shards(mesh)) if self.microbatches > 1 else 1


class Phase(NamedTuple):
    """Of one device, in seconds."""

    flops: float  # these two as counts
    read: float  # bytes
    arithmetic: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.memory, self.links)

    @property
    def bound(self) -> str:
        terms = {"arithmetic": self.arithmetic, "memory": self.memory, "links": self.links}
        return max(terms, key=terms.get)


def load_of(built: Build, config: Config) -> Load:
    """What a step of training does."""
    roles, sources = built.networks.roles, built.networks.sources
    decoders = {role: sources[role].architecture.decoder for role in roles if role in sources}
    decoders = {role: decoders.get(role, built.decoder) for role in roles}
    update = resolve.defaults(make_update) | config.update
    learned = {
        role: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for role, tree in abstract_state(built, built.train).params.items()
    }
    trained = {role: decoders[role] for role in learned if not _on_trunk(roles, role)}
    scoring = {role: decoders[role] for role in roles if role not in learned}
    batch = built.train.batches[0]
    if built.algorithm.learns_from == "prompts":
        if "value" in roles:  # before the update, also where it lies on the policy's trunk
            scoring["value"] = decoders["value"]
        if config.rollout_correction is not None:
            scoring["policy"] = decoders["policy"]
        prompts, prompt_tokens = batch.tokens.shape
        max_tokens = built.sample.keywords["max_tokens"]
        rows, columns = prompts * built.group_rows, prompt_tokens + max_tokens
        at_once = rows // built.train.parts
        slots = built.sample.keywords["slots"] or at_once
        draws = built.train.parts * math.ceil(at_once / slots)
        weights = jax.tree.leaves(sampled_weights(built))
        sampled = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    else:
        prompts = prompt_tokens = max_tokens = draws = sampled = 0
        rows, columns = batch.tokens.shape
        rows *= 2 if batch.mismatched is not None else 1
    return Load(
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        rows=rows,
        columns=columns,
        trained=trained,
        learned=learned,
        scoring=scoring,
        passes=update["epochs"],
        minibatches=update["epochs"] * update["minibatches"],
        microbatches=update["microbatches"],
        sampled_bytes=sampled,
        draws=draws,
    )


def _on_trunk(roles: Mapping[str, Role], role: str) -> bool:
    """Whether a role is a head on the policy's own pass."""
    if role == "policy" or "policy" not in roles:
        return False
    trunk = roles["policy"].trees
    return roles[role].trees[: len(trunk)] == trunk


def forward_flops(config: DecoderConfig, rows: int, columns: int, *, head_width: int) -> float:
    """FLOPs of one forward pass over [rows, columns]: its matrix products, attention over all
    columns (as computed, masked or not), and a head of ``head_width`` outputs."""
    layer = matrix_sizes(config) + 2 * config.heads * config.head_dim * columns
    return 2.0 * rows * columns * (config.layers * layer + config.width * head_width)


def role_flops(load: Load, role: str, decoder: DecoderConfig) -> float:
    """FLOPs of one forward pass of a network over all rows."""
    head = 1 if role in ("value", "reward") else decoder.vocab_size
    return forward_flops(decoder, load.rows, load.columns, head_width=head)


def backward_passes(load: Load, role: str, parameters: Mapping[str, int]) -> int:
    """What a backward pass counts as, in passes forward: one where only adapters are learned."""
    return 2 if load.learned[role] == parameters[role] else 1


def matrix_sizes(config: DecoderConfig) -> int:
    """Entries of a layer's matrices that a token is multiplied with."""
    c = config
    mlp = 3 * c.width * c.mlp_width
    if c.experts:
        mlp = c.experts.per_token * mlp + c.width * c.experts.count
    return c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + mlp


def phases(
    load: Load,
    held: Footprint,
    parameters: Mapping[str, int],
    mesh: Mesh | AbstractMesh,
    chip: Chip,
    links: Mapping[str, float],
) -> dict[str, Phase]:
    """The phases of a step.

    Args:
      parameters: of each role, over all devices.
      links: seconds that devices send to each other, by phase.
    """
    count, tensor = mesh.size, mesh.shape["tensor"] * mesh.shape["sequence"]
    work: dict[str, tuple[float, float]] = {}
    if load.max_tokens:
        policy = load.trained["policy"]
        weights, cache = held.sampling.values()
        flops = forward_flops(policy, load.prompts, load.prompt_tokens, head_width=0)
        flops += 2.0 * load.prompts * policy.width * policy.vocab_size
        moved = activation_bytes(policy, load.prompts * load.prompt_tokens) / count
        work["prefill"] = flops, load.draws * weights + moved
        work["decode"] = (
            role_flops(load, "policy", policy) * load.max_tokens / load.columns,
            load.draws * load.max_tokens * (weights + cache),
        )
    tokens = load.rows * load.columns
    if load.scoring:
        work["score"] = _sum(
            (
                role_flops(load, role, decoder),
                load.scored_in(mesh) * _weights(decoder, parameters[role]) / tensor
                + activation_bytes(decoder, tokens) / count,
            )
            for role, decoder in load.scoring.items()
        )
    updates, optimizer = [], sum(load.learned.values()) / mesh.size
    for role, decoder in load.trained.items():
        times = 1 + backward_passes(load, role, parameters) + _recomputes(decoder)
        forward = role_flops(load, role, decoder)
        reads = load.minibatches * load.microbatches * _weights(decoder, parameters[role]) / tensor
        moved = load.passes * activation_bytes(decoder, tokens) / count
        updates.append((times * load.passes * forward, times * (reads + moved)))
    flops, moved = _sum(updates)
    work["update"] = flops, moved + load.minibatches * optimizer * OPTIMIZER_BYTES
    return {
        name: Phase(
            flops=flops / count,
            read=moved,
            arithmetic=flops / count / chip.flops,
            memory=moved / chip.memory_bandwidth,
            links=links.get(name, 0.0),
        )
        for name, (flops, moved) in work.items()
    }


def activation_bytes(config: DecoderConfig, tokens: int) -> float:
    """Bytes that the matrix products of a forward pass read and write beside their weights."""
    c = config
    experts = c.experts.per_token if c.experts else 1
    layer = 7 * c.width + 2 * c.head_dim * (c.heads + c.kv_heads) + 3 * c.mlp_width * experts
    return float(tokens * c.layers * layer * _item(c))


def seconds_on_links(
    collectives: Mapping[str, list[Collective]], chip: Chip, count: int
) -> dict[str, float]:
    """Seconds that the devices of each phase send, one collective after the other."""
    return {
        phase: sum(one.total / bandwidth(chip, one.group, count) for one in found)
        for phase, found in collectives.items()
    }


class Least(NamedTuple):
    """Bytes that a device has to send in a step, at least, by phase and mesh axis."""

    sampling_weights: float  # parameters gathered once a rollout
    gathered: float  # parameters gathered for each pass of each micro-batch
    reduced: float  # gradients, for each micro-batch
    activations: float  # over the tensor axis, in the update and in scoring
    decoded: float  # the same for each token that is drawn


def least_sent(load: Load, parameters: Mapping[str, int], mesh: Mesh | AbstractMesh) -> Least:
    """What fully sharded training has to send, in the dtype of the arithmetic, or of sampling.

    Each micro-batch gathers every parameter forward and backward, and scatters its gradients' sums;
    a network that only scores gathers them for each of its parts, and a rollout once. Over the
    tensor axis each layer sums its activations twice forward, twice backward, and once more for
    what remat computes again. The sequence axis splits matrices while tokens are drawn, and
    columns otherwise, whose keys and values are left out here.
    """
    tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
    held = mesh.shape["fsdp"] * mesh.shape["expert"]
    batches = load.minibatches * load.microbatches

    def weights(role: str, decoder: DecoderConfig, split: int, shards: int) -> float:
        """Those of other shards, of a part of the parameters that is split no further."""
        return _weights(decoder, parameters[role]) / split * (shards - 1) / shards

    def stream(decoder: DecoderConfig, tokens: float, split: int) -> float:
        """A sum of what flows through every layer, over the devices that matrices are split over;
        ``tokens`` are of one device."""
        return decoder.layers * tokens * decoder.width * _item(decoder) * 2 * (split - 1) / split

    trained, scored = load.trained.items(), load.scored_in(mesh)
    tokens = load.rows * load.columns / row_shards(mesh) / sequence
    once = {role: weights(role, decoder, tensor, held * sequence) for role, decoder in trained}
    gathered = 2 * batches * sum(once.values()) + sum(
        scored * weights(role, decoder, tensor, held * sequence)
        for role, decoder in load.scoring.items()
    )
    activations = sum(
        load.passes * (4 + _recomputes(decoder)) * stream(decoder, tokens, tensor)
        for _, decoder in trained
    ) + sum(2 * stream(decoder, tokens, tensor) for decoder in load.scoring.values())
    sampling = decoded = 0.0
    if load.max_tokens:
        policy, split = load.trained["policy"], tensor * sequence
        sampling = load.sampled_bytes / split * (held - 1) / held
        drawn = load.rows * load.max_tokens + load.prompts * load.prompt_tokens
        decoded = 2 * stream(policy, drawn / row_shards(mesh), split)
    return Least(
        sampling_weights=sampling,
        gathered=gathered,
        reduced=batches
        * sum(once[role] * load.learned[role] / parameters[role] for role in load.trained),
        activations=activations,
        decoded=decoded,
    )


def parameter_counts(built: Build) -> dict[str, int]:
    """Parameters of each role."""
    models = {role: one.model for role, one in built.networks.roles.items()}
    shapes = {role: jax.eval_shape(model.init, jax.random.key(0)) for role, model in models.items()}
    return {
        role: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for role, tree in shapes.items()
    }


def _recomputes(decoder: DecoderConfig) -> int:
    """Passes forward that remat adds."""
    return int(decoder.remat in ("full", "offload"))


def _item(decoder: DecoderConfig) -> int:
    return 2 if decoder.dtype == "bfloat16" else 4


def _weights(decoder: DecoderConfig, parameters: int) -> float:
    return float(parameters * _item(decoder))


def _sum(pairs) -> tuple[float, float]:
    flops, moved = zip(*pairs, strict=True)
    return sum(flops), sum(moved)
