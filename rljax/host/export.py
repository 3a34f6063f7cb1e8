"""The trained policy as a Hugging Face folder, which transformers and vLLM load as it is."""

import shutil
from pathlib import Path

import jax
from safetensors.numpy import save
from transformers import GenerationConfig, LlamaConfig

from rljax.models.hf import hf_config, hf_tensors
from rljax.models.transformer import DecoderConfig
from rljax.types import Params


def export_hf(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    tokenizer,
    *,
    eos_ids: tuple[int, ...],
    max_tokens: int,
    **sampling: float | None,
) -> None:
    """Writes config, float32 weights, tokenizer and generation config.

    The folder appears whole or not at all; one that is there already is replaced.
    ``max_tokens`` bounds prompt and response together. ``sampling`` (temperature, top_k, top_p,
    min_p) goes into the generation config, so that a server draws as training did.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = dict(hf_tensors(jax.device_get(params), config))
    weights = save(tensors, metadata={"format": "pt"})
    (partial / "model.safetensors").write_bytes(weights)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(eos_ids) if len(eos_ids) > 1 else eos_ids[0],
    }
    keywords = hf_config(config, max_position_embeddings=max_tokens)
    LlamaConfig(**keywords, **ids, dtype="float32").save_pretrained(partial)
    GenerationConfig(**ids, do_sample=True, **_no_limits(sampling)).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _no_limits(sampling: dict[str, float | None]) -> dict[str, float]:
    """With what transformers takes for "no limit" in place of null: its own top_k default is 50."""
    return {
        name: {"top_k": 0, "top_p": 1.0}.get(name, value) if value is None else value
        for name, value in sampling.items()
    }
