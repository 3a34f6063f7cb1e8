"""Numbers that must not reach the parameters: which updates have them, and whose rows they are.

A row is blamed for what comes first. A reward that is not finite makes every advantage of its
group so: then its row is at fault, and not theirs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rljax.kl import k3
from rljax.types import Evidence, Experience, Metrics, Outputs, Rewards, Rollout, Scored, State

# What may be at fault in a row before anything is learned from it, causes before consequences.
CAUSES = (("reward", "logprob", "reference", "value"), ("shaped",), ("advantage",))
COUNTED = {  # the metric that counts rows, by what is not finite in them
    "bad_rewards": ("reward", "shaped"),
    "bad_logprobs": ("logprob", "reference"),
    "bad_values": ("value",),
    "bad_advantages": ("advantage",),
    "bad_outputs": ("output",),
}
UPDATES = {  # and the metric that counts updates, by what is wrong with them
    "bad_losses": "loss",
    "bad_gradients": "gradient",
    "over_max_kl": "max_kl",
    "over_max_grad_norm": "max_grad_norm",
}


class Limits(NamedTuple):
    """Beyond which an update is left out; None: there is no such limit."""

    max_kl: float | None = None  # nats per token between the sampling policy and the one updated
    max_grad_norm: float | None = None  # of any trained role, before clipping


NO_LIMITS = Limits()


class Updates(NamedTuple):
    """What was seen of a step's U updates, of b rows each."""

    rows: Int[Array, "U b"]  # of the experience
    column: Int[Array, "U b"]  # of a row's first output that is not finite, or −1
    faults: dict[str, Bool[Array, " U"]]  # of a whole update, by what is wrong
    applied: Bool[Array, " U"]
    figures: dict[str, Float[Array, " U"]]


def examine_rollout(
    rollout: Rollout, scored: Scored, rewards: Rewards, experience: Experience
) -> Evidence:
    """What of a judged rollout is not finite, and what is to be learned from it."""
    chosen, learned = rollout.action_mask, experience.action_mask
    whole = {
        "reward": scored.counted & ~jnp.isfinite(scored.raw),
        "shaped": rewards.counted & ~jnp.isfinite(rewards.shaped),
    }
    sampled = _not_finite(rollout.logprobs, chosen)
    tokens = {"logprob": sampled | _not_finite(experience.logprobs, chosen)}
    if rollout.ref_logprobs is not None:
        tokens["reference"] = _not_finite(rollout.ref_logprobs, chosen)
    if rollout.values is not None:
        tokens["value"] = _not_finite(rollout.values, chosen)
    tokens["advantage"] = _not_finite(experience.advantages, learned)
    for other in (experience.returns, experience.importance):
        if other is not None:
            tokens["advantage"] |= _not_finite(other, learned)
    figures = {"raw": scored.raw, "shaped": rewards.shaped}
    figures |= {f"rewards/{name}": values for name, values in (scored.each or {}).items()}
    return _evidence(rollout, whole, tokens, figures).replace(logprobs=rollout.logprobs)


def examine_given(batch: Experience, ratios: Float[Array, " B"] | None = None) -> Evidence:
    """What is not finite of given rows before they are learned from: what the reference says of
    them, and the ``ratios`` to it that a baseline is made of."""
    tokens, whole = {}, {}
    if batch.ref_logprobs is not None:
        tokens["reference"] = _not_finite(batch.ref_logprobs, batch.action_mask)
    if ratios is not None:
        whole["logprob"] = ~jnp.isfinite(ratios)
    if batch.baseline is not None:
        whole["advantage"] = ~jnp.isfinite(batch.baseline)
    return _evidence(batch, whole, tokens, {})


def _evidence(
    rows: Rollout | Experience,
    whole: Mapping[str, Bool[Array, " B"]],
    tokens: Mapping[str, Bool[Array, "B T"]],
    figures: dict[str, Float[Array, " B"]],
) -> Evidence:
    """Of what is not finite in whole rows and in tokens, the causes alone."""
    nowhere = jnp.zeros(rows.tokens.shape[0], bool)
    bad = {
        name: whole.get(name, nowhere) | (tokens[name].any(axis=-1) if name in tokens else nowhere)
        for name in (*whole, *tokens)
    }
    kept, blamed = {}, jnp.zeros((), bool)
    for level in CAUSES:
        here = {name: bad[name] & ~blamed for name in level if name in bad}
        kept |= here
        for found in here.values():
            blamed |= found.any()
    at_fault = jnp.zeros(rows.tokens.shape, bool)
    for name, found in tokens.items():
        at_fault |= found & kept[name][:, None]
    return Evidence(
        tokens=rows.tokens,
        mask=rows.mask,
        action_mask=rows.action_mask,
        logprobs=None,
        bad=kept,
        column=_first(at_fault),
        figures=figures,
        source={},
        learned=jnp.arange(rows.tokens.shape[0]),
    )


def sound(evidence: Evidence) -> Bool[Array, ""]:
    """Whether no row is at fault."""
    return ~jnp.any(jnp.stack([found.any() for found in evidence.bad.values()] or [False]))


def kept_if(is_sound: Bool[Array, ""], new: State, old: State) -> State:
    """The new state of the shaping if it is sound to keep it, else the old one.

    A leaf that has changed its shape or type is the new one: ``rljax.checks`` refuses it.
    """

    def choose(new, old):
        new = jnp.asarray(new)
        same = (new.shape, new.dtype) == (old.shape, old.dtype)
        return jnp.where(is_sound, new, old) if same else new

    return jax.tree.map(choose, new, old)


def output_column(outputs: Outputs, batch: Experience) -> Int[Array, " b"]:
    """The first column of each row where what the networks say is not finite, or −1."""
    found = jnp.zeros(batch.tokens.shape, bool)
    for output in (outputs.logprobs, outputs.values, outputs.divergence):
        if output is not None:
            found |= _not_finite(output, batch.action_mask)
    if outputs.scores is not None:
        width = batch.mask.shape[1]
        last = jnp.max(jnp.where(batch.mask, jnp.arange(width), 0), axis=-1)
        found |= (jnp.arange(width) == last[:, None]) & ~jnp.isfinite(outputs.scores)[:, None]
    return _first(found)


def distance(outputs: Outputs, batch: Experience) -> Float[Array, ""]:
    """The mean of k3 over tokens: how far the policy is from the one that sampled, in nats. Of its
    own samples k1 says little: where they were made more probable, it is negative."""
    return jnp.sum(batch.mean_weights * k3(batch.logprobs, outputs.logprobs))


def faults_of(
    is_sound: Bool[Array, ""],
    column: Int[Array, " b"],
    loss: Float[Array, ""],
    norms: Mapping[str, Float[Array, ""]],
    kl: Float[Array, ""],
    limits: Limits,
) -> tuple[Bool[Array, ""], dict[str, Bool[Array, ""]]]:
    """Whether an update may be applied, and what is wrong with it that no row is blamed for.

    ``norms`` are of the gradients, by role: one is finite only if the whole gradient is.
    """
    largest = jnp.max(jnp.stack([*norms.values()]))  # NaN if one is
    finite = {"loss": jnp.isfinite(loss), "gradient": jnp.isfinite(largest)}
    within = {}
    if limits.max_kl is not None:
        within["max_kl"] = kl <= limits.max_kl
    if limits.max_grad_norm is not None:
        within["max_grad_norm"] = largest <= limits.max_grad_norm
    so_far, faults = is_sound & (column < 0).all(), {}
    for name, well in finite.items():
        faults[name] = so_far & ~well
        so_far &= well
    faults |= {name: so_far & ~well for name, well in within.items()}
    for well in within.values():
        so_far &= well
    return so_far, faults


def with_updates(evidence: Evidence, updates: Updates) -> Evidence:
    """The evidence, with the rows of the updates that have something wrong."""
    rows, shape = evidence.learned[updates.rows], evidence.column.shape

    def of(found: Bool[Array, "U b"]) -> Bool[Array, " B"]:
        return jnp.zeros(shape, bool).at[rows].max(found)

    faults = {
        name: of(jnp.broadcast_to(found[:, None], rows.shape))
        for name, found in updates.faults.items()
    }
    column = jnp.full(shape, -1, updates.column.dtype).at[rows].max(updates.column)
    return evidence.replace(
        bad=evidence.bad | {"output": of(updates.column >= 0), **faults},
        column=jnp.where(evidence.column >= 0, evidence.column, column),
        updates={"applied": updates.applied, **updates.figures},
    )


def guard_metrics(evidence: Evidence, updates: Updates, skipped: Int[Array, ""]) -> Metrics:
    """How many updates were left out, in how many steps in a row one was, and what was wrong."""
    metrics = {"skipped_updates": (~updates.applied).sum(), "skipped_in_a_row": skipped}
    for metric, names in COUNTED.items():
        there = [evidence.bad[name] for name in names if name in evidence.bad]
        if there:
            metrics[metric] = sum(found.sum() for found in there)
    for metric, name in UPDATES.items():
        if name in updates.faults:
            metrics[metric] = updates.faults[name].sum()
    if "kl" in updates.figures:
        metrics["kl"] = updates.figures["kl"].max()
    return {f"guard/{name}": value for name, value in metrics.items()}


def mean_of_applied(metrics: PyTree, applied: Bool[Array, "*U"]) -> PyTree:
    """The means over the updates that were applied; if none was, over all."""
    some = jnp.where(applied.any(), applied, True)
    return jax.tree.map(
        lambda x: jnp.sum(jnp.where(some, x, 0)) / jnp.sum(some).astype(jnp.float32), metrics
    )


def _not_finite(x: Float[Array, "B T"], where: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    return where & ~jnp.isfinite(x)


def _first(found: Bool[Array, "B T"]) -> Int[Array, " B"]:
    """The first column of each row that has it, or −1."""
    return jnp.where(found.any(axis=-1), jnp.argmax(found, axis=-1), -1)
