"""The tokens of a run: the policy's tokenizer, what ends a response, and who reads them."""

import os
from typing import Any, NamedTuple

from rljax import resolve, tasks
from rljax.config import Config, is_function
from rljax.errors import UserError, nearest
from rljax.host.pretrained import (
    count_ids,
    eos_ids_of,
    find_folder,
    has_tokenizer,
    load_tokenizer,
    same_tokens,
    settle_special_tokens,
)
from rljax.roles import Networks, Source, find_model_folder


class Foreign(NamedTuple):
    """The tokens of a reward model that are not the policy's."""

    tokenizer: Any
    max_tokens: int  # of a row


def read_tokenizer(config: Config) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer of a run, by default that of the folder of the model that is trained, and its
    EOS ids. Its pad token is none of these.

    Raises ``UserError`` if there is none.
    """
    role = main_role(config)
    name = resolve.split(getattr(config.models, role), f"models.{role}")[0]
    folder = None if is_function(name) else find_model_folder(name, f"models.{role}")
    if config.tokenizer is not None:
        tokenizer = _named_tokenizer(config.tokenizer)
    elif folder is not None:
        tokenizer = load_tokenizer(folder)
    else:
        raise UserError(f"tokenizer: it is needed where models.{role} is no folder that has one")
    eos_ids = eos_ids_of(tokenizer, folder)
    settle_special_tokens(tokenizer, eos_ids)
    return tokenizer, eos_ids


def main_role(config: Config) -> str:
    """The role that training is about: the policy, or the reward model where there is none.

    Raises ``UserError`` if there is neither.
    """
    if config.models.policy is None and config.models.reward is None:
        raise UserError('the config lacks "models.policy"')
    return "reward" if config.models.policy is None else "policy"


def _named_tokenizer(node) -> Any:
    name, _ = resolve.split(node, "tokenizer")
    if name in tasks.__all__ or ":" in name:
        return resolve.call(node, tasks, context={}, where="tokenizer")
    if "/" not in name and not os.path.isdir(name):
        hint = nearest(name, tasks.__all__)
        raise UserError(f'tokenizer: "{name}" is no folder here, and no function; {hint}')
    return load_tokenizer(find_folder(name, "tokenizer"))


def check_tokens(networks: Networks, tokenizer, columns: int) -> Foreign | None:
    """Raises ``UserError`` for a model that has no room for the tokens or the positions of a run.

    Args:
      columns: tokens of prompt and response.

    Returns: the reward model's own tokens, if they are others.
    """
    foreign = None
    main = next(iter(networks.sources))  # what is trained comes first
    for role, source in networks.sources.items():
        own = _own_tokenizer(role, source, tokenizer)
        if own is not None and role == main:
            raise UserError(
                f"tokenizer: it is not that of models.{main}, {source.folder}, whose tokens it "
                "would confuse; leave it out (tokenizer: null)"
            )
        if own is None and source.max_tokens is not None:
            raise UserError(
                f"models.{role}.max_tokens: it is of a model with tokens of its own, and this one "
                "reads the policy's"
            )
        if own is not None and role != "reward":
            raise UserError(f"models.{role}: the tokenizer of {source.folder} is not the policy's")
        rows, tokens = source.architecture.decoder.vocab_size, count_ids(own or tokenizer)
        if rows < tokens:
            raise UserError(
                f"models.{role}: an embedding of {rows} rows has no room for the tokenizer's "
                f"{tokens} tokens"
            )
        limit = source.architecture.max_positions
        asked = columns if own is None else source.max_tokens or min(2 * columns, limit)
        if asked > limit:
            raise UserError(
                f"models.{role}: {asked} tokens of prompt and response are more than the {limit} "
                "positions that the model knows"
            )
        if own is not None:
            foreign = Foreign(own, asked)
    return foreign


def _own_tokenizer(role: str, source: Source, tokenizer) -> Any:
    """That of a role's folder, if it reads rows otherwise than the policy does."""
    if source.folder is None or not has_tokenizer(source.folder):
        return None
    own = load_tokenizer(source.folder)
    other_template = own.chat_template not in (None, tokenizer.chat_template)
    differs = not same_tokens(own, tokenizer) or (role == "reward" and other_template)
    return own if differs else None
