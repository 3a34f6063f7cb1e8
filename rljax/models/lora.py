"""Low-rank adapters (arXiv 2106.09685) as functions of the parameter tree.

The decoder keeps them beside its matrices, as ``lora_a`` and ``lora_b``; here they are told apart
from their base, merged into it, and named as PEFT names them.
"""

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rljax.errors import UserError
from rljax.models.config import DecoderConfig, LoRA
from rljax.models.hf import module_names
from rljax.trees import Path
from rljax.types import Params


def make_lora(
    config: DecoderConfig,
    model_type: str,
    /,
    *,
    rank: int = 16,
    alpha: float | None = None,
    targets: str | list[str] = "*",
) -> LoRA:
    """Adapters for the matrices of a decoder.

    Args:
      alpha: adapters are multiplied by alpha / rank; by default twice the rank.
      targets: patterns (``*`` and ``?``) of the family's own names, such as ``q_proj`` or
        ``self_attn.*``; by default every matrix but the experts'.

    Raises ``UserError`` for a pattern that names no matrix.
    """
    alpha = 2 * rank if alpha is None else alpha
    if rank < 1 or not 0 < alpha < math.inf:
        raise UserError(f"lora: needs rank >= 1 and alpha > 0; got {rank}, {alpha}")
    known = module_names(config, model_type)
    chosen: set[str] = set()
    for pattern in [targets] if isinstance(targets, str) else targets:
        found = [
            name
            for name in known
            if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.split(".")[-1]))
        ]
        if not found:
            raise UserError(f'lora: no matrix is called "{pattern}"; there are {", ".join(known)}')
        chosen |= {matrix for name in found for matrix in known[name]}
    if not chosen:
        raise UserError("lora: targets names no matrix")
    return LoRA(rank, float(alpha), frozenset(chosen))


def is_adapter(path: Path) -> bool:
    return path[-1] in ("lora_a", "lora_b")


def merge_lora(params: Params, lora: LoRA) -> Params:
    """Every W + (alpha / rank)·A·B in float32, and no adapters left.

    Args:
      params: a decoder's tree, adapters included, its layers stacked.
    """
    if not isinstance(params, Mapping):
        return params
    if "lora_a" not in params:
        return {name: merge_lora(entry, lora) for name, entry in params.items()}
    kernel, a, b = params["kernel"], params["lora_a"], params["lora_b"]
    layers, rank = a.shape[0], a.shape[-1]
    low = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1))
    merged = kernel.astype(jnp.float32) + (lora.alpha / lora.rank * low).reshape(kernel.shape)
    rest = {k: v for k, v in params.items() if k not in ("kernel", "lora_a", "lora_b")}
    return {"kernel": merged, **rest}


def peft_config(lora: LoRA, config: DecoderConfig, model_type: str, base: str) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``. ``base``: the folder or hub id of the base weights.

    Where a family keeps several of our matrices as one, their adapters become one of the sum of
    their ranks, which is the same function.
    """
    names = module_names(config, model_type)
    adapted = {name: ours for name, ours in names.items() if lora.targets & set(ours)}
    wide = {name: len(ours) for name, ours in adapted.items() if len(ours) > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": {name: count * lora.rank for name, count in wide.items()},
        "alpha_pattern": {name: count * lora.alpha for name, count in wide.items()},
        "target_modules": sorted(adapted),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
