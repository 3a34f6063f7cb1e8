"""``rljax doctor MODEL``: what a model folder is, whether it is supported, and what it takes."""

import contextlib

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rljax.errors import UserError
from rljax.host.pretrained import (
    Pretrained,
    count_ids,
    eos_ids_of,
    find_folder,
    has_tokenizer,
    load_tokenizer,
    pretrained,
    settle_special_tokens,
)
from rljax.host.secrets import redact, say
from rljax.host.weights import Weights
from rljax.models import decoder
from rljax.models.hf import tensors_of
from rljax.options import doctor_options

FLOAT32, GIB = 4, 2**30


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 if the model can be trained, else 2."""
    options = doctor_options().parse_args(arguments)
    try:
        found = pretrained(find_folder(options.model, "doctor"))
        facts = examine(found)
    except UserError as error:
        say(f"error: {error}")
        return 2
    table = Table(title=escape(redact(str(found.folder))), show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(redact(value)))
    console = Console()
    console.print(table)
    console.print(memory_table(found))
    console.print(
        "These are the parameters and what an optimizer keeps, over all devices together; caches "
        "and activations depend on a run: rljax launch CONFIG --dry-run."
    )
    return 0


def examine(found: Pretrained) -> dict[str, str]:
    """What a folder is, in words, its weights and tokenizer checked.

    Raises ``UserError`` for weights that are damaged or do not fit the config, and for a tokenizer
    larger than the embedding.
    """
    config, hf = found.architecture
    tensors = tensors_of(_shapes(found), config, hf.model_type)
    with contextlib.closing(Weights(found.folder)) as weights:
        weights.check(tensors)
        dtypes = sorted({weights.dtype(tensor.name) for tensor in tensors})
    windows = sorted({a.window for a in config.attends if a.window is not None})
    experts = config.experts
    head = {"lm": "language model", "value": "scalar head: a reward or value model"}[found.head]
    return {
        "architecture": f"{(hf.architectures or [hf.model_type])[0]} ({head}), supported",
        "parameters": f"{parameter_count(found):,}, stored as {', '.join(dtypes)}",
        "layers": f"{config.layers} of width {config.width}, {config.heads} heads "
        f"({config.kv_heads} of keys and values) of {config.head_dim}"
        + (f", {experts.per_token} of {experts.count} experts" if experts else ""),
        "positions": f"{found.architecture.max_positions:,}"
        + (f", in some layers {windows[0]:,} back" if windows else ""),
        "embedding": f"{config.vocab_size:,} rows" + (", the output head too" * config.tied),
        **_tokenizer_facts(found),
    }


def _tokenizer_facts(found: Pretrained) -> dict[str, str]:
    if not has_tokenizer(found.folder):
        return {"tokenizer": "none here; the config must name one"}
    tokenizer = load_tokenizer(found.folder)
    size, rows = count_ids(tokenizer), found.architecture.decoder.vocab_size
    if size > rows:
        raise UserError(
            f"{found.folder}: the tokenizer has {size} tokens, more than the embedding's {rows}"
        )
    eos_ids = eos_ids_of(tokenizer, found.folder)
    settle_special_tokens(tokenizer, eos_ids)
    for token in eos_ids:
        if not 0 <= token < size or tokenizer.convert_ids_to_tokens(token) is None:
            raise UserError(
                f"{found.folder}: its generation config ends with {token}, no token's id"
            )
    names = ", ".join(tokenizer.convert_ids_to_tokens(list(eos_ids)))
    template = "a" if tokenizer.chat_template else "no"
    return {
        "tokenizer": f"{size:,} tokens, {template} chat template",
        "ends with": f"{names}; padded with {tokenizer.pad_token}",
    }


def parameter_count(found: Pretrained) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(found)))


def memory_table(found: Pretrained) -> Table:
    """GiB by role, over all devices: what is trained has two moments beside it."""
    count, config = parameter_count(found), found.architecture.decoder
    table = Table(title="memory by role, GiB")
    for title in ("role", "float32", "bfloat16"):
        table.add_column(title, justify="left" if title == "role" else "right")

    def gib(size: float) -> str:
        return f"{count * size / GIB:,.2f}"

    table.add_row("policy or value, trained in full", gib(3 * FLOAT32), "-")
    table.add_row("gradients, for a moment", gib(FLOAT32), "-")
    table.add_row("base under LoRA adapters", gib(FLOAT32), gib(2))
    table.add_row("reference or reward, frozen", gib(FLOAT32), gib(2))
    token = 2 * config.layers * config.kv_heads * config.head_dim
    table.caption = f"the cache of sampling takes {token * 2 / 2**10:,.1f} KiB a token in bfloat16"
    return table


def _shapes(found: Pretrained):
    model = decoder(found.architecture.decoder, found.head)
    return jax.eval_shape(model.init, jax.random.key(0))
