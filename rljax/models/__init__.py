"""Networks: one decoder, and the families that configure it."""

from rljax.models.families import llama
from rljax.models.transformer import DecoderConfig, decoder, extend_cache

__all__ = ["DecoderConfig", "decoder", "extend_cache", "llama"]
