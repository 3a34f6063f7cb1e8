"""A Hugging Face folder or hub id: its config, its tokenizer, its EOS ids."""

import json
import os
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rljax.errors import UserError
from rljax.models.families import Architecture, check_family, check_most, class_name, decoder_config

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # no pickles, no code
UNWANTED = ["consolidated*", "original/*"]  # the same weights in another layout


class Pretrained(NamedTuple):
    """A model in a folder."""

    architecture: Architecture
    folder: Path
    head: Literal["lm", "value"]


def find_folder(name: str, where: str) -> Path:
    """A local folder, or the local copy of a hub id, fetched if need be.

    Raises ``UserError`` if there is neither.
    """
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return Path(folder)
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except HFValidationError as error:
        raise UserError(f'{where}: "{name}" is no folder here, and no hub id') from error
    except Exception as error:  # the hub's many: absent, private, offline
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f'{where}: "{name}" is no folder here, and could not be fetched from the hub: {reason}'
        ) from error


def pretrained(
    folder: Path,
    /,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    remat: Literal["none", "full", "dots", "offload"] = "full",
) -> Pretrained:
    """The model of a folder.

    Args:
      dtype: of the arithmetic; by default float32 where the folder says float32, else bfloat16.
      remat: what the backward pass keeps, see ``DecoderConfig``.

    Raises ``UserError`` if it holds no config, or its architecture is not supported.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} holds adapters without their base; merge them, as by rljax export --merge"
        )
    given = read_json(folder / "config.json")
    check_family(given.get("model_type"), str(folder))
    check_most(given, str(folder / "config.json"))
    try:
        hf = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / 'config.json'} is no {given['model_type']}: {reason}"
        ) from error
    if dtype is None:
        dtype = "float32" if str(hf.dtype).removeprefix("torch.") == "float32" else "bfloat16"
    try:
        decoder = decoder_config(hf, dtype=dtype, remat=remat)
        architecture = Architecture(decoder, hf)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        where = folder / "config.json"
        raise UserError(f"{where}: a value is of another type or size: {error}") from error
    classes = {class_name(hf, head): head for head in ("lm", "value")}
    names = hf.architectures or [class_name(hf, "lm")]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in classes:
        known = " and ".join(filter(None, classes))
        raise UserError(f"{folder} is a {name}; supported of its family are {known}")
    if classes[name] == "value" and hf.num_labels != 1:
        raise UserError(f"{folder}: a scalar head is needed, it has {hf.num_labels} labels")
    return Pretrained(architecture, folder, classes[name])


def read_json(path: Path) -> dict:
    """A JSON object. Raises ``UserError`` if it is missing or damaged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path.parent} holds no readable {path.name}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a JSON object")
    return tree


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, chat template included, padding on the left.

    Raises ``UserError`` if there is none, or it cannot be read.
    """
    if not has_tokenizer(folder):
        raise UserError(f"{folder} holds no tokenizer; name a folder that does, as tokenizer: …")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("a")  # a value of the wrong type in its config is only met here
    except Exception as error:  # it reads the model's config too, and raises what that does
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    if count_ids(tokenizer) > 2**31:
        raise UserError(f"{folder}: the tokenizer has an id of {count_ids(tokenizer) - 1:,}")
    tokenizer.padding_side = "left"
    return tokenizer


def count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that an embedding needs for the tokenizer: more than it has tokens, if some ids
    below the largest are nobody's."""
    return max([len(tokenizer), *(1 + i for i in tokenizer.get_vocab().values())])


def has_tokenizer(folder: Path) -> bool:
    return any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json"))


def eos_ids_of(tokenizer: PreTrainedTokenizerBase, folder: Path | None) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's EOS, then those of the folder's generation
    config."""
    ids = [tokenizer.eos_token_id]
    if folder is not None and (folder / "generation_config.json").exists():
        given = read_json(folder / "generation_config.json").get("eos_token_id")
        ids += given if isinstance(given, list) else [given]
        if not all(isinstance(i, int | None) for i in ids):
            raise UserError(f"{folder}/generation_config.json: eos_token_id is {given!r}, no id")
    ids = tuple(dict.fromkeys(i for i in ids if i is not None))
    if not ids:
        raise UserError("tokenizer: it has no EOS token, and no generation config names one")
    return ids


def settle_special_tokens(tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> None:
    """Gives the tokenizer an EOS token, and a pad token that is no EOS, if it has none: one made
    for padding, a reserved one, unk or BOS, whichever comes first.

    Raises ``UserError`` if there is none of these.
    """
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos_ids[0])
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in eos_ids:
        return
    special = {t for t in tokenizer.get_added_vocab() if t.startswith(("<", "[")) and len(t) > 2}
    candidates = [
        *sorted((t for t in special if "pad" in t.lower()), key=lambda t: (len(t), t)),
        *sorted(t for t in special if "reserved" in t or "unused" in t),
        tokenizer.unk_token,
        tokenizer.bos_token,
    ]
    for token in candidates:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in eos_ids:
            tokenizer.pad_token = token
            return
    raise UserError(
        "tokenizer: it needs a pad token that is no EOS, and has nothing to take for it"
    )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids the same meaning."""
    return one.get_vocab() == other.get_vocab()
