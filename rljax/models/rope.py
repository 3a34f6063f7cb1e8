"""Rotary position embeddings: the angles of every kind that the families use."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rope:
    """Position p turns pair i of a head's first ``2 · len(frequencies)`` entries by
    p · frequencies[i]; cosine and sine are multiplied by ``scale``. Past ``max_positions`` the
    frequencies do not hold."""

    frequencies: tuple[float, ...]
    scale: float = 1.0
    max_positions: int | None = None


def no_rope(dims: int) -> Rope:
    """Turns nothing: a layer without positions."""
    return Rope((0.0,) * (dims // 2))


def rope_from_hf(given: Mapping[str, Any], *, head_dim: int, max_positions: int) -> Rope:
    """The rotary embedding that a Hugging Face config describes.

    Args:
      given: its ``rope_parameters``, of one kind of layer.
      max_positions: its ``max_position_embeddings``.

    Raises:
      UserError: the kind is unknown, or lacks a key.
    """
    kind = given.get("rope_type", "default")
    if kind not in list(KINDS):
        raise UserError(f'rope_type "{kind}" is not supported; known: {", ".join(KINDS)}')
    dims = int(head_dim * given.get("partial_rotary_factor", 1.0))
    try:
        base = float(given["rope_theta"])
        if not 0 < base < math.inf:
            raise UserError(f"rope_theta must be above 0, is {base}")
        frequencies, scale, limit = KINDS[kind](base, dims, given, max_positions)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f'rope_type "{kind}" needs the key {error}, which is missing') from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f'rope_type "{kind}": a value is no number: {error}') from error
    return Rope(tuple(frequencies.tolist()), scale, limit)


def turns(rope: Rope, positions: Int[Array, "B T"]) -> Float[Array, "2 B T 1 pairs"]:
    """Cosine and sine by position."""
    angles = positions[..., None, None] * jnp.asarray(rope.frequencies, jnp.float32)
    return rope.scale * jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: Float[Array, "B T H h"], by: Float[Array, "2 B T 1 pairs"]):
    """Turns the pairs (i, i + pairs) of every head; entries past them stay as they are."""
    cos, sin = by
    pairs = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), [pairs, 2 * pairs], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _frequencies(base: float, dims: int) -> np.ndarray:
    """base^(−2i / dims), for i < dims / 2 (arXiv 2104.09864)."""
    return base ** (-np.arange(dims // 2) / (dims // 2))


def _default(base, dims, given, max_positions):
    return _frequencies(base, dims), 1.0, None


def _linear(base, dims, given, max_positions):
    return _frequencies(base, dims) / given["factor"], 1.0, None


def _dynamic(base, dims, given, max_positions):
    """Within the trained positions nothing is scaled; beyond them it is not supported."""
    return _frequencies(base, dims), 1.0, max_positions


def _llama3(base, dims, given, max_positions):
    """Slow turns are slowed further, fast ones left, those between interpolated (Llama 3.1)."""
    frequencies, factor = _frequencies(base, dims), given["factor"]
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    turns_within = given["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    fast = np.clip((turns_within - low) / (high - low), 0.0, 1.0)
    return fast * frequencies + (1 - fast) * frequencies / factor, 1.0, None


def _yarn(base, dims, given, max_positions):
    """NTK by parts, with a temperature on the attention (arXiv 2309.00071)."""
    original = given["original_max_position_embeddings"]
    factor = given["factor"] or max_positions / original

    def dim_of(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = dim_of(given.get("beta_fast") or 32)
    last = dim_of(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    span = last - first if last != first else 0.001
    slow = np.clip((np.arange(dims // 2) - first) / span, 0.0, 1.0)
    frequencies = _frequencies(base, dims)

    def temperature(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    scale = given.get("attention_factor")
    if scale is None:
        mscale, all_dims = given.get("mscale"), given.get("mscale_all_dim")
        both = mscale and all_dims
        scale = temperature(mscale) / temperature(all_dims) if both else temperature(1.0)
    return slow * frequencies / factor + (1 - slow) * frequencies, float(scale), None


def _longrope(base, dims, given, max_positions):
    """The factors for short sequences, which hold for as many positions as were first trained
    (arXiv 2402.13753)."""
    original = given["original_max_position_embeddings"]
    factor = given.get("factor") or max_positions / original
    scale = given.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    factors = np.asarray(given["short_factor"])
    if factors.shape != (dims // 2,):
        raise UserError(f"longrope: {dims // 2} short factors are needed, got {len(factors)}")
    return _frequencies(base, dims) / factors, float(scale), original


KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
