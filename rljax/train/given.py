"""Experience that is given and not sampled: demonstrations, pairs, labelled responses."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from rljax.logprobs import token_logprobs
from rljax.masked import masked_sum
from rljax.sharding import split_rows
from rljax.train.buckets import MapRows, map_rows
from rljax.train.collect import Appraise, Appraised
from rljax.train.forward import Forward
from rljax.train.guard import examine_given
from rljax.train.update import weighted
from rljax.trees import role_params
from rljax.types import (
    Baseline,
    Experience,
    Loss,
    Metrics,
    Params,
    Role,
    TrainState,
    Weigh,
)

Measure = Callable[[TrainState, Experience], tuple[Metrics, Array]]  # -> means, of how much


def draw_given(state: TrainState, batch: Experience, key: PRNGKeyArray) -> Experience:
    """The batch is the experience already."""
    del state, key
    return batch


def make_appraise_given(
    roles: Mapping[str, Role],
    *,
    needs_reference: bool = False,
    baseline: Baseline | None = None,
    over_rows: MapRows = map_rows,
) -> Appraise:
    """What the loss needs beside the rows: the reference's log-probs, unless the batch has them,
    and the baseline, of the policy as it is before the update.

    The rows go through the networks in parts as ``over_rows`` has them.
    """

    def appraise(state: TrainState, batch: Experience):
        if needs_reference:
            batch = with_reference(roles["reference"], state.trees, batch, over_rows)
        if baseline is None:
            return Appraised(batch, state.shaping, {}, examine_given(batch))
        rows = batch.mismatched if baseline.mismatched else batch
        logprobs = given_logprobs(roles["policy"], state.trees, rows, over_rows)
        ratios = masked_sum(logprobs - rows.ref_logprobs, rows.action_mask, axis=-1)
        value, shaping, metrics = baseline.apply(
            ratios, rows.action_mask.any(axis=-1), state.shaping
        )
        value = jnp.broadcast_to(value, ratios.shape)
        batch = batch.replace(baseline=value, mismatched=None)
        return Appraised(batch, shaping, metrics, examine_given(batch, ratios))

    return appraise


def with_reference(
    role: Role, trees: Mapping[str, Params], batch: Experience, over_rows: MapRows = map_rows
) -> Experience:
    """The batch with the reference's log-probs where it lacks them, mismatched rows included."""
    if batch.ref_logprobs is None:
        batch = batch.replace(ref_logprobs=given_logprobs(role, trees, batch, over_rows))
    if batch.mismatched is not None:
        mismatched = with_reference(role, trees, batch.mismatched, over_rows)
        batch = batch.replace(mismatched=mismatched)
    return batch


def given_logprobs(
    role: Role, trees: Mapping[str, Params], batch: Experience, over_rows: MapRows = map_rows
) -> Float[Array, "B T"]:
    """A role's log-probs of the tokens that the loss is over, 0 elsewhere, in parts of the rows as
    ``over_rows`` has them."""
    params = role_params(role, trees)

    def of_rows(tokens, mask):
        return token_logprobs(role.model, params, tokens, mask)[0]

    logprobs = over_rows(of_rows, batch.tokens, batch.mask)
    return jnp.where(batch.action_mask, logprobs, 0.0)


def make_measure(
    appraise: Appraise,
    forward: Forward,
    loss: Loss,
    weigh: Weigh,
    *,
    by_tokens: bool,
    microbatches: int = 1,
) -> Measure:
    """The metrics of held-out rows, without learning from them, in as many parts as there are
    ``microbatches``.

    Returns metrics, and how much they weigh in a mean over several batches: as the rows, or, if
    they are means ``by_tokens``, as the tokens. Then there is no loss among them, which may be a
    mean over sequences; else it is ``loss``.
    """

    def measure(state: TrainState, batch: Experience):
        appraised = appraise(state, batch)
        batch = weighted(appraised.experience, weigh)

        def of_rows(rows: Experience) -> Metrics:
            total, metrics = loss(forward(state.trees, rows), rows)
            return metrics if by_tokens else {"loss": total, **metrics}

        parts = jax.lax.map(of_rows, split_rows(batch, microbatches))
        metrics = appraised.metrics | jax.tree.map(jnp.sum, parts)
        learned = batch.action_mask if batch.data_weights is None else batch.data_weights
        return metrics, learned.sum() if by_tokens else learned.any(axis=-1).sum()

    return measure
