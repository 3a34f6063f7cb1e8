"""Hugging Face folders small enough to write in a moment, with weights that are all different."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rljax.host.export import export_model, model_card
from rljax.models import Architecture, decoder, fresh
from rljax.tasks import character_tokenizer
from rljax.types import Model, Params

SIZES = {
    "vocab_size": 104,  # the tokenizer has 100
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SAMPLING = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
TURNS = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ mood }}{% endif %}"
)


def shape_of(model_type: str = "llama", **keys) -> Architecture:
    return fresh(model_type=model_type, **SIZES | keys)


def numbers(model: Model, seed: int = 0) -> Params:
    """Parameters of which none is zero, adapters and scalar heads included."""
    draw = np.random.default_rng(seed)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.3, x.shape), x.dtype), abstract)


def write_folder(
    folder: Path,
    model_type: str = "llama",
    *,
    head: str = "lm",
    tokenizer=None,
    dtype: str = "float32",
    seed: int = 0,
    **keys,
) -> Params:
    """Writes a model, and returns its parameters."""
    architecture = shape_of(model_type, **keys)
    params = numbers(decoder(architecture.decoder, head), seed)
    tokenizer = tokenizer or character_tokenizer()
    export_model(
        folder,
        params,
        architecture,
        head,
        tokenizer,
        dtype=dtype,
        eos_ids=(tokenizer.eos_token_id,),
        sampling=SAMPLING,
        card=model_card(None, {}),
    )
    return params


def edit_json(path: Path, **keys) -> None:
    """Sets keys of a JSON file; None takes one away."""
    tree = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))


def tokenizer_of(
    *special: str, characters: str = "abcdefgh: \n", **roles
) -> PreTrainedTokenizerFast:
    """A token per character behind the special ones. ``roles``: pad_token, bos_token, …"""
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=roles.get("unk_token", special[0])))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r".|\n"), "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer
