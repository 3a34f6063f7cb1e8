"""Model families: each a function from its own terms to the one decoder's configuration."""

from typing import Literal

from rljax.errors import UserError
from rljax.models.transformer import DecoderConfig

__all__ = ["llama"]


def llama(
    *,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_width: int | None = None,
    rope_base: float = 10_000.0,
    norm_eps: float = 1e-6,
    tied: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: Literal["none", "full", "dots"] = "none",
) -> DecoderConfig:
    """A Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Args:
      kv_heads: heads of keys and values; by default as many as ``heads``.
      head_dim: by default width / heads.
      mlp_width: by default 8/3 of the width, rounded up to a multiple of 64.
      tied: the embedding serves as the output head too.
      dtype: of the arithmetic; the parameters stay float32.
      remat: what the backward pass keeps, see ``DecoderConfig``.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if rope_base <= 1 or norm_eps < 0:
        raise UserError(f"llama: needs rope_base > 1, norm_eps >= 0; got {rope_base}, {norm_eps}")
    if min(vocab_size, layers, width, heads, kv_heads) < 1:
        raise UserError("llama: vocab_size, layers, width, heads and kv_heads must be at least 1")
    if heads % kv_heads:
        raise UserError(f"llama: heads ({heads}) must be a multiple of kv_heads ({kv_heads})")
    if head_dim is None:
        if width % heads:
            raise UserError(f"llama: width ({width}) must be a multiple of heads ({heads})")
        head_dim = width // heads
    if head_dim % 2:
        raise UserError(f"llama: head_dim ({head_dim}) must be even, for the rotary embedding")
    if mlp_width is None:
        mlp_width = -(-8 * width // (3 * 64)) * 64
    return DecoderConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        rope_base=rope_base,
        norm_eps=norm_eps,
        tied=tied,
        dtype=dtype,
        remat=remat,
    )
