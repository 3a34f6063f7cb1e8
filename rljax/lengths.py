"""What a response's length is judged by and costs, in arrays of NumPy and of JAX alike.

Training, evaluation, analysis and serving all call these functions, so that they agree. None of
them imports JAX: they compute with the library whose arrays they are given.
"""

from typing import Any

from jaxtyping import Bool, Float, Int

from rljax.errors import UserError

VERDICTS = ("in band", "long", "short")  # by ``verdict``, which is -1 for the last
PERCENTILES = (5, 50, 95)  # of the lengths, that are measured
MOST_TOKENS = 2**30  # stands behind every length, where lengths are sorted


def check_band(min_tokens: float, max_tokens: float) -> None:
    """Raises ``UserError`` unless 0 <= min_tokens <= max_tokens."""
    if not 0 <= min_tokens <= max_tokens:
        raise UserError(
            "a length band needs 0 <= min_tokens <= max_tokens; "
            f"got min_tokens={min_tokens}, max_tokens={max_tokens}"
        )


def verdict(lengths: Int[Any, "*B"], min_tokens: Any, max_tokens: Any) -> Int[Any, "*B"]:
    """-1 for a response shorter than the band, 1 for a longer one, else 0: ``VERDICTS`` by index.

    >>> import numpy as np
    >>> verdict(np.array([29, 30, 80, 81]), 30, 80).tolist()
    [-1, 0, 0, 1]
    """
    xp = lengths.__array_namespace__()
    return (lengths > max_tokens).astype(xp.int32) - (lengths < min_tokens).astype(xp.int32)


def band_distance(lengths: Int[Any, "*B"], min_tokens: Any, max_tokens: Any) -> Float[Any, "*B"]:
    """Tokens between a length and the nearest edge of the band; 0 inside, edges included.

    >>> import numpy as np
    >>> band_distance(np.array([25, 30, 80, 90]), 30, 80).tolist()
    [5.0, 0.0, 0.0, 10.0]
    """
    xp = lengths.__array_namespace__()
    below, above = min_tokens - lengths, lengths - max_tokens
    return xp.maximum(xp.maximum(below, above), 0).astype(xp.float32)


def band_cost(
    lengths: Int[Any, "*B"],
    min_tokens: Any,
    max_tokens: Any,
    weight: Any,
    *,
    scale_tokens: float,
    cap: float | None,
) -> Float[Any, "*B"]:
    """weight · min((d / scale_tokens)², cap), d the ``band_distance``; None for no bound."""
    xp = lengths.__array_namespace__()
    squared = xp.square(band_distance(lengths, min_tokens, max_tokens) / scale_tokens)
    return weight * (squared if cap is None else xp.minimum(squared, cap))


def overlong_cost(
    lengths: Int[Any, "*B"], budget_tokens: int, buffer_tokens: int, penalty: float
) -> Float[Any, "*B"]:
    """penalty · clip((n − (L − buffer)) / buffer, 0, 1), L the budget."""
    xp = lengths.__array_namespace__()
    over = (lengths - (budget_tokens - buffer_tokens)) / buffer_tokens
    return penalty * xp.clip(over, 0.0, 1.0).astype(xp.float32)


def band_scale(
    min_tokens: float,
    max_tokens: float,
    scale_tokens: float | None,
    cap: float | None,
) -> float:
    """The distance in tokens that costs one weight: by default the width of the band.

    Raises ``UserError`` for a band, a scale or a cap that cannot be one.
    """
    check_band(min_tokens, max_tokens)
    scale = max(max_tokens - min_tokens, 1.0) if scale_tokens is None else scale_tokens
    if scale <= 0 or (cap is not None and cap <= 0):
        raise UserError(
            "length_band: scale_tokens and cap must be positive, or null; "
            f"got {scale_tokens}, {cap}"
        )
    return scale


def overlong_buffer(budget_tokens: int, buffer_tokens: int | None, penalty: float) -> int:
    """The last tokens of the budget, over which the cost rises: by default a fifth of it.

    Raises ``UserError`` for a buffer that the budget does not hold, or a penalty that is none.
    """
    buffer = max(budget_tokens // 5, 1) if buffer_tokens is None else buffer_tokens
    if not 0 < buffer <= budget_tokens or penalty <= 0:
        raise UserError(
            "soft_overlong: needs 0 < buffer_tokens <= budget_tokens and penalty > 0; "
            f"got {buffer_tokens}, {budget_tokens}, {penalty}"
        )
    return buffer


def length_figures(
    lengths: Int[Any, " B"],
    truncated: Bool[Any, " B"],
    counted: Bool[Any, " B"],
    min_tokens: int,
    max_tokens: int,
) -> dict[str, Any]:
    """What is said of the lengths of many responses, those that are ``counted``; 0 without any.

    In tokens: ``length_mean``, ``length_std``, ``length_terminated_mean`` (of those that an EOS
    ended), ``response_length_min``, ``response_length_max`` and its percentiles
    ``response_length_p5``, ``_p50`` and ``_p95``. Shares of the responses: ``in_band_ratio`` and
    ``truncated_ratio`` (the budget ended it).
    """
    xp = lengths.__array_namespace__()
    tokens = lengths.astype(xp.float32)

    def mean(x, of=counted):
        return xp.where(of, x, 0.0).sum() / xp.maximum(of.sum(), 1)

    average = mean(tokens)
    last = xp.maximum(counted.sum() - 1, 0)
    ordered = xp.sort(xp.where(counted, tokens, MOST_TOKENS))

    def at(place):
        return xp.where(counted.any(), ordered[place], 0.0)

    def percentile(percent):
        place = percent / 100 * last
        below = xp.floor(place).astype(xp.int32)
        share = place - below
        return at(below) * (1 - share) + at(xp.minimum(below + 1, last)) * share

    return {
        "length_mean": average,
        "length_std": xp.sqrt(mean(xp.square(tokens - average))),
        "length_terminated_mean": mean(tokens, counted & ~truncated),
        "response_length_min": at(0),
        "response_length_max": at(last),
        **{f"response_length_p{percent}": percentile(percent) for percent in PERCENTILES},
        "in_band_ratio": mean((verdict(lengths, min_tokens, max_tokens) == 0).astype(xp.float32)),
        "truncated_ratio": mean(truncated.astype(xp.float32)),
    }
