"""A policy to be asked: that of a run, at a checkpoint, or that of a Hugging Face folder."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rljax import resolve
from rljax.endpoint.engine import Policy
from rljax.endpoint.protocol import Serving
from rljax.errors import UserError
from rljax.export import restore_role
from rljax.host.pretrained import (
    count_ids,
    eos_ids_of,
    find_folder,
    load_tokenizer,
    pretrained,
    read_json,
)
from rljax.host.steps import steps_in
from rljax.host.weights import Weights, import_params
from rljax.models import Architecture, decoder
from rljax.models.hf import tensors_of
from rljax.models.lora import merge_lora
from rljax.sampling import make_sampler
from rljax.sharding import param_shardings
from rljax.trees import role_params
from rljax.types import Model, Params

MOST_TOKENS = 1024  # of a prompt and of a response, where nobody says
NO_LIMITS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Found(NamedTuple):
    """A policy, and what is known of how it is to be used."""

    name: str
    model: Model
    params: Params
    architecture: Architecture
    tokenizer: Any
    eos_ids: tuple[int, ...]
    sampling: dict[str, float | int]
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    chat_template: Mapping[str, Any] = MappingProxyType({})


def find_policy(target: str, mesh: Mesh, *, step: int | None = None, best: bool = False) -> Found:
    """The policy of a run, at its newest checkpoint unless one is named, or of a folder.

    Raises ``UserError`` if there is none.
    """
    folder = Path(os.path.expanduser(target))
    if (folder / "config.yaml").exists():
        if best or step is not None or steps_in(folder / "checkpoints"):
            return _of_run(folder, mesh, step, best)
        if not (folder / "policy").exists():
            raise UserError(f"{folder} holds no checkpoint yet, and no policy")
        return _of_folder(folder / "policy", folder.resolve().name, mesh)
    if best or step is not None:
        raise UserError("--step and --best are of a run; a model's folder has no checkpoints")
    if "/" not in target and not os.path.isdir(folder):
        raise UserError(f'"{target}" is no folder here, and no hub id')
    local = os.path.isdir(folder)
    return _of_folder(
        find_folder(target, "serve"), folder.resolve().name if local else target, mesh
    )


def _of_run(run: Path, mesh: Mesh, step: int | None, best: bool) -> Found:
    restored = restore_role(run, step=step, best=best, role=None, mesh=mesh)
    if restored.role != "policy":
        raise UserError(f"{run} trained a {restored.role} model, which answers nothing")
    config, source = restored.config, restored.networks.sources["policy"]
    params = role_params(restored.networks.roles["policy"], restored.trees)
    if source.lora is not None:
        params = merge_lora(params, source.lora)
    return Found(
        name=run.resolve().name,
        model=source.model("lm"),
        params=params,
        architecture=source.architecture,
        tokenizer=restored.tokenizer,
        eos_ids=restored.eos_ids,
        sampling=_drawing(resolve.defaults(make_sampler) | config.sampling, run / "config.yaml"),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_tokens=config.sampling.get("max_tokens"),
        chat_template=config.data.chat_template,
    )


def _of_folder(folder: Path, name: str, mesh: Mesh) -> Found:
    found = pretrained(folder)
    if found.head != "lm":
        raise UserError(f"{folder} has no language-model head")
    architecture, tokenizer = found.architecture, load_tokenizer(folder)
    decoder_config, hf = architecture
    rows, ids = decoder_config.vocab_size, count_ids(tokenizer)
    if rows < ids:
        raise UserError(f"{folder}: its embedding of {rows} rows has no room for {ids} tokens")
    model = decoder(decoder_config)
    abstract = jax.eval_shape(lambda key: model.cast(model.init(key)), jax.random.key(0))
    with contextlib.closing(Weights(folder)) as weights:
        params = import_params(
            weights,
            tensors_of(abstract, decoder_config, hf.model_type),
            abstract,
            param_shardings(model.axes, abstract, mesh),
        )
    path = folder / "generation_config.json"
    return Found(
        name=name,
        model=model,
        params=params,
        architecture=architecture,
        tokenizer=tokenizer,
        eos_ids=eos_ids_of(tokenizer, folder),
        sampling=_drawing(read_json(path) if path.exists() else {}, path),
    )


def _drawing(given: Mapping[str, Any], where: Path) -> dict[str, float | int]:
    """The defaults of a request: those that a run or a generation config has."""
    drawing = dict(NO_LIMITS)
    for name in NO_LIMITS:
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{where}: {name}: a number is needed, got {value!r}")
        drawing[name] = value
    return drawing


def limited(
    found: Found, mesh: Mesh, max_prompt_tokens: int | None, max_tokens: int | None
) -> tuple[Policy, Serving]:
    """What is served, within limits: those given, or the run's, or as many as the model knows
    positions for. Raises ``UserError`` if it knows too few."""
    positions = found.architecture.max_positions
    most = max_tokens or found.max_tokens or min(MOST_TOKENS, positions // 2)
    prompt = max_prompt_tokens or found.max_prompt_tokens or min(MOST_TOKENS, positions - most)
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens: at least 1, got {max_tokens}")
    if max_prompt_tokens is not None and max_prompt_tokens < 1:
        raise UserError(f"--max-prompt-tokens: at least 1, got {max_prompt_tokens}")
    if prompt < 1 or prompt + most > positions:
        raise UserError(
            f"--max-prompt-tokens {prompt} and --max-tokens {most}: more than the {positions} "
            "positions that the model knows"
        )
    vocabulary = found.architecture.decoder.vocab_size
    policy = Policy(
        found.model, found.params, found.tokenizer, found.eos_ids, vocabulary, mesh, prompt, most
    )
    serving = Serving(
        model=found.name,
        tokenizer=found.tokenizer,
        vocabulary=vocabulary,
        max_prompt_tokens=prompt,
        max_tokens=most,
        defaults=found.sampling,
        chat_template=found.chat_template,
    )
    return policy, serving
