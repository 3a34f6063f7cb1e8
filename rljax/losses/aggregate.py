"""How the losses of tokens become one number: as a weight for each token.

A loss is Σ weight · token loss. The weights are made once over a whole minibatch, so that the
denominators are global: micro-batches and devices only add up, and change nothing.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.errors import UserError, nearest
from rljax.types import Weigh

MODES = (
    "token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)


def make_weigh(mode: str, norm_tokens: float | None = None) -> Weigh:
    """``token_weights`` with a mode of ``MODES`` bound, and ``norm_tokens`` if the mode has it."""
    if mode not in MODES:
        raise UserError(f'unknown aggregation "{mode}"; {nearest(mode, MODES)}')
    if mode == "seq-mean-token-sum-norm":
        if norm_tokens is None or norm_tokens <= 0:
            raise UserError(f"{mode}: needs norm_tokens, a positive number; got {norm_tokens}")
        return functools.partial(token_weights, mode=mode, norm_tokens=norm_tokens)
    if norm_tokens is not None:
        raise UserError(f"norm_tokens is of seq-mean-token-sum-norm; the aggregation is {mode}")
    return functools.partial(token_weights, mode=mode)


def token_weights(
    weights: Bool[Array, "B T"] | Float[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    *,
    mode: str = "token-mean",
    norm_tokens: float = 1.0,
) -> Float[Array, "B T"]:
    """The weight of each token in a loss; 0 where ``weights`` is, and all 0 if it is everywhere.

    ``weights`` is a mask, or how much the data makes of each token. With n_i tokens in sequence i
    whose weight is not 0, and B' sequences that have any, a token's own weight is divided by

    - ``token-mean``: the sum of all weights, which for a mask is Σ n
    - ``seq-mean-token-sum``: B'
    - ``seq-mean-token-mean``: B' n_i
    - ``seq-mean-token-sum-norm``: B' · norm_tokens, a constant length

    A row is one sequence, unless ``segments`` numbers several in it, from 1.

    >>> token_weights(jnp.array([[True, True], [True, False]]), mode="seq-mean-token-mean").tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    learned = weights > 0
    if segments is None:
        each = counts = learned.sum(axis=-1, keepdims=True)
    else:
        add = functools.partial(jax.ops.segment_sum, num_segments=weights.shape[1] + 1)
        counts = jax.vmap(add)(learned.astype(jnp.int32), segments)
        each = jnp.take_along_axis(counts, segments, axis=1)
    sequences = jnp.maximum((counts > 0).sum(), 1)
    denominators: dict[str, Callable[[], Array]] = {
        "token-mean": lambda: _or_one(weights.sum()),
        "seq-mean-token-sum": lambda: sequences,
        "seq-mean-token-mean": lambda: sequences * _or_one(each),
        "seq-mean-token-sum-norm": lambda: sequences * norm_tokens,
    }
    return weights / denominators[mode]().astype(jnp.float32)


def _or_one(total):
    """What to divide by where nothing is summed."""
    return jnp.where(total > 0, total, 1)
