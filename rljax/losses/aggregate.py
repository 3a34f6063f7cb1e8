"""How the losses of tokens become one number: as a weight for each token.

A loss is Σ weight · token loss. The weights are made once over a whole minibatch, so that the
denominators are global: micro-batches and devices only add up, and change nothing.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
    mask: Bool[Array, "B T"], *, mode: str = "token-mean", norm_tokens: float = 1.0
) -> Float[Array, "B T"]:
    """The weight of each token in a loss; 0 outside ``mask``, and all 0 for an empty mask.

    With n_i tokens in row i, and B' rows that have any:

    - ``token-mean``: 1 / Σ n
    - ``seq-mean-token-sum``: 1 / B'
    - ``seq-mean-token-mean``: 1 / (B' n_i)
    - ``seq-mean-token-sum-norm``: 1 / (B' · norm_tokens), a constant length

    >>> token_weights(jnp.array([[True, True], [True, False]]), mode="seq-mean-token-mean").tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    tokens = mask.sum(axis=-1, keepdims=True)
    rows = jnp.maximum((tokens > 0).sum(), 1)
    denominators: dict[str, Callable[[], Array]] = {
        "token-mean": lambda: jnp.maximum(tokens.sum(), 1),
        "seq-mean-token-sum": lambda: rows,
        "seq-mean-token-mean": lambda: rows * jnp.maximum(tokens, 1),
        "seq-mean-token-sum-norm": lambda: rows * norm_tokens,
    }
    return mask / denominators[mode]().astype(jnp.float32)
