"""How many tokens a text has, by a model's tokenizer."""

import os
from collections.abc import Callable
from pathlib import Path

from rljax.errors import UserError

CountTokens = Callable[[list[str]], list[int]]
FILE = "tokenizer.json"


def load_counter(source: str | os.PathLike | CountTokens | None) -> CountTokens | None:
    """Counts the tokens of texts, without the special ones that a tokenizer may add.

    Args:
      source: a folder with a ``tokenizer.json``, or that file; a function is taken as it is.

    Raises ``UserError`` if there is no such file, or the package that reads it is missing.
    """
    if source is None or callable(source):
        return source
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"tokenizer: no {FILE} at {source}; a folder that has one is needed")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"tokenizer: {path} is read by the package tokenizers: {error}") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # it has no type of its own
        raise UserError(f"tokenizer: cannot read {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        # As a batch: other threads go on meanwhile.
        return [len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return count
