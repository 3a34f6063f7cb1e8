"""Which tokens may be sampled: pure functions of logits, which set the rest to −inf."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rljax.errors import UserError

Filter = Callable[[Float[Array, "*rows V"]], Float[Array, "*rows V"]]


def top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """The k highest; ties with the k-th stay."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= kth, logits, -jnp.inf)


def top_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
    """The fewest of highest probability that together reach ``p`` (arXiv 1904.09751); all of them
    for 1, whatever the rounding of their sum."""
    if p >= 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    lowest = jnp.min(jnp.where(before < _some(p), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def _some(p):
    """Above 0 in float32 too, so that the most probable token stays."""
    return jnp.maximum(p, jnp.finfo(jnp.float32).tiny)


def min_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
    """Those at least ``p`` times as probable as the most probable (arXiv 2407.01082)."""
    highest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.where(logits >= highest + jnp.log(p), logits, -jnp.inf)


def make_filter(
    *, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Filter:
    """The given filters, one after another: top-k, then top-p, then min-p. None leaves one out."""
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, or null for no limit; got {top_k}")
    for name, p in (("top_p", top_p), ("min_p", min_p)):
        if p is not None and not 0 < p <= 1:
            raise UserError(f"{name} must lie in (0, 1], or be null; got {p}")

    def apply(logits):
        if top_k is not None:
            logits = _top_k(logits, top_k)
        if top_p is not None:
            logits = _top_p(logits, top_p)
        if min_p is not None:
            logits = _min_p(logits, min_p)
        return logits

    return apply


def filter_rows(
    logits: Float[Array, "R V"],
    *,
    top_k: Int[Array, " R"],
    top_p: Float[Array, " R"],
    min_p: Float[Array, " R"],
) -> Float[Array, "R V"]:
    """``make_filter``, with settings of each row's own, which are no part of the program.

    No limits are 0, 1 and 0. Nothing is sorted if no row has limits.
    """

    def limit(logits):
        vocabulary = logits.shape[-1]
        kth = jnp.where(top_k == 0, vocabulary, jnp.minimum(top_k, vocabulary))[:, None] - 1
        ordered = jnp.sort(logits, axis=-1, descending=True)
        lowest = jnp.take_along_axis(ordered, kth, axis=-1)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
        ordered = jnp.where(ordered >= lowest, ordered, -jnp.inf)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        reached = (before < _some(top_p[:, None])) | (top_p[:, None] >= 1)
        lowest = jnp.min(jnp.where(reached, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
        return jnp.where(logits >= ordered[:, :1] + jnp.log(min_p[:, None]), logits, -jnp.inf)

    limited = (top_k > 0) | (top_p < 1) | (min_p > 0)
    return jax.lax.cond(limited.any(), limit, lambda logits: logits, logits)


_top_k, _top_p, _min_p = top_k, top_p, min_p
