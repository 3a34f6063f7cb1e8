"""A trained model as a Hugging Face folder, which transformers loads as it is."""

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rljax import __version__
from rljax.errors import UserError
from rljax.host.agree import is_writer
from rljax.host.secrets import redact, redacted
from rljax.host.weights import export_tensors, whole
from rljax.models.config import LoRA
from rljax.models.families import Architecture, class_name
from rljax.models.hf import adapter_tensors, tensors_of
from rljax.models.lora import peft_config
from rljax.types import Params

CARD = "README.md"
# The first lines of every card; a folder is known by them as an export, which another may replace.
HEADER = "---\nlibrary_name: transformers\ntags: [rljax, reinforcement-learning]\n---\n\n"


def export_model(
    folder: Path,
    params: Params,
    architecture: Architecture,
    head: Literal["lm", "value"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
    eos_ids: tuple[int, ...],
    sampling: dict[str, float | None],
    card: str,
) -> None:
    """Writes config, weights, tokenizer, chat template, generation config and a model card.

    The folder appears whole or not at all; one that is there already is replaced. Of several
    processes, which all call this, one writes.

    Args:
      params: the whole tree, no adapters in it.
      dtype: of the weights: float32, bfloat16 or float16.
      sampling: temperature, top_k, top_p, min_p: a language model's generation config has them, so
        that a server draws as training did.
      card: what the model card says, in Markdown.

    Raises ``UserError`` if transformers has no class for the family with this head.
    """
    name = class_name(architecture.hf, head)
    if name is None:
        family = architecture.hf.model_type
        raise UserError(f"export: transformers has no {family} with a scalar head to load it with")
    hf = copy.deepcopy(architecture.hf)
    ids = _ids(tokenizer, eos_ids)
    for key, value in {"architectures": [name], "dtype": dtype, **ids}.items():
        setattr(hf, key, value)
    if head == "value":
        hf.num_labels = 1
    with _whole(folder) as partial:
        abstract = jax.eval_shape(lambda: params)
        tensors = tensors_of(abstract, architecture.decoder, hf.model_type)
        export_tensors(partial, tensors, params, dtype)
        if not is_writer():
            return
        hf.save_pretrained(partial)
        if head == "lm":
            GenerationConfig(**ids, do_sample=True, **_no_limits(sampling)).save_pretrained(partial)
        _save_texts(partial, tokenizer, card)


def export_adapters(
    folder: Path,
    adapters: Params,
    architecture: Architecture,
    lora: LoRA,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: str,
    card: str,
) -> None:
    """Writes adapters in PEFT's layout, with the tokenizer. ``base``: the folder or hub id that
    they belong to."""
    decoder, hf = architecture
    adapters = jax.tree.map(whole, adapters)
    if not is_writer():
        return
    with _whole(folder) as partial:
        tensors = dict(adapter_tensors(adapters, decoder, hf.model_type))
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        config = redacted(peft_config(lora, decoder, hf.model_type, base))
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        _save_texts(partial, tokenizer, card)


def model_card(base: str | None, details: dict[str, Any]) -> str:
    """A short card: what it was trained from, with what, and how it did."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in details.items())
    trained = f"Trained from {base or 'scratch'} with rljax {__version__}."
    return f"{trained}\n\n| | |\n|---|---|\n{rows}"


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name when all is written. Only an earlier export
    makes way for it. Of several processes only one sees to it."""
    if not is_writer():
        yield folder
        return
    folder = folder.resolve()
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise UserError(
            f"cannot export to {folder}: it holds something else than an export; name a new one"
        )
    partial, old = (folder.with_name(f".{folder.name}.rljax-{end}") for end in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if folder.is_dir():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot export to {folder}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    card = folder / CARD
    return card.exists() and card.read_text(encoding="utf-8", errors="replace").startswith(HEADER)


def _save_texts(folder: Path, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(f"{HEADER}{redact(card)}", encoding="utf-8")


def _ids(tokenizer, eos_ids: tuple[int, ...]) -> dict[str, Any]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(eos_ids) if len(eos_ids) > 1 else eos_ids[0],
    }


def _no_limits(sampling: dict[str, float | None]) -> dict[str, float]:
    """With what transformers takes for "no limit" in place of null: its own top_k default is 50."""
    return {
        name: {"top_k": 0, "top_p": 1.0}.get(name, value) if value is None else value
        for name, value in sampling.items()
    }
