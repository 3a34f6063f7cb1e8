"""Networks: one decoder, and the families that configure it."""

from rljax.models.cache import extend_cache, map_cache
from rljax.models.config import DecoderConfig, LoRA
from rljax.models.families import Architecture, decoder_config, fresh, llama
from rljax.models.transformer import decoder

__all__ = [
    "Architecture",
    "DecoderConfig",
    "LoRA",
    "decoder",
    "decoder_config",
    "extend_cache",
    "fresh",
    "llama",
    "map_cache",
]
