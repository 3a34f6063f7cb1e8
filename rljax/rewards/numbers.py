"""The last number of a response against the row's number, digit by digit.

A number is a run of ASCII digits. A point belongs to it between two digits, a comma where a digit
stands before and exactly three behind, and a ``-`` directly before a digit, unless a digit stands
before that (``5-3`` ends in 3). A run with two points, or with a comma right of its point
(``1.2.3``), is no number, and equals none.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rljax.errors import UserError
from rljax.rewards.verifiers import data_column
from rljax.types import Rollout

MAX_CHARACTERS = 32  # of a number as it is written, its sign aside
REACH = MAX_CHARACTERS + 2  # and its sign, and what stands before that

SYMBOLS = "0123456789-.,o"  # o: any other character
MINUS, POINT, COMMA, OTHER, NONE = 10, 11, 12, 13, 14  # NONE: behind the end of a text
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece names the token of a byte
# What is one other character as good as written out: of several in a row that are no digits, only
# the last one can belong to a number, a minus.
SILENT = re.compile(r"[^0-9]+(?=-)|[^0-9]{2,}|[^0-9.,-]")


def number_match(
    rollout: Rollout, *, tokenizer, column: str = "answer", allow_truncated: bool = False
) -> Float[Array, " B"]:
    """1 if the last number of the response equals the row's number, else 0.

    Whatever stands around it, and however the tokenizer cut it, ``1042``, ``1,042``, ``01042`` and
    ``1042.0`` are the same number. Digits are compared, not floats, so that 123456789 is not
    123456788. A number written with more than 32 characters, sign aside, equals none. The text is
    that of the tokens themselves: a special token parts two numbers, as does one that the policy
    did not choose.

    Args:
      column: the data column with the number: text, whose last number counts, or whole numbers.
      allow_truncated: also look at a response that the budget cut off, perhaps within a number.

    Raises:
      UserError: the data has no such column, or it is neither text nor whole numbers. Fractions
        arrive as float32, which has rounded them already: 0.1 must be given as text.
    """
    answer = data_column(rollout, column, "number_match")
    if not jnp.issubdtype(answer.dtype, jnp.integer):
        raise UserError(
            f'number_match: the data column "{column}" must be text or whole numbers, not '
            f'{answer.dtype}; write fractions as text ("0.1")'
        )
    table = _character_table(tokenizer)
    said = _last_number(rollout.tokens, rollout.action_mask, table)
    true = _last_number(answer, answer >= 0, table) if answer.ndim == 2 else _whole_number(answer)
    zero = (said.digits == 0).all(axis=-1)  # of either sign
    equal = (said.digits == true.digits).all(axis=-1) & ((said.negative == true.negative) | zero)
    ended = ~rollout.truncated | allow_truncated
    return (said.found & true.found & equal & ended).astype(jnp.float32)


class _Number(NamedTuple):
    """Decimal digits by their place: the units at ``MAX_CHARACTERS``, the tens after them."""

    digits: Int[Array, "B P"]
    negative: Bool[Array, " B"]
    found: Bool[Array, " B"]


class _CharacterTable(NamedTuple):
    """The characters of every token. Row 0 of ``backwards`` is a single other character."""

    kind: Int[np.ndarray, " V"]  # a token's row in ``backwards``; the last entry is 0
    backwards: Int[np.ndarray, "N C"]  # indices of ``SYMBOLS``, the token's last character first


@functools.lru_cache(maxsize=8)
def _character_table(tokenizer) -> _CharacterTable:
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    # By their ids: a vocabulary comes in another order in every process, and all of them must
    # compile the same program.
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    rows = {"o": 0}
    kind = np.zeros(pieces[-1][1] + 2, np.int32)
    for piece, token in pieces:
        if token not in special:
            text = tokenizer.decode([token]) if BYTE.fullmatch(piece) else piece
            kind[token] = rows.setdefault(SILENT.sub("o", text)[::-1] or "o", len(rows))
    backwards = np.full((len(rows), max(map(len, rows))), NONE, np.int32)
    for row, text in zip(backwards, rows, strict=True):
        row[: len(text)] = [SYMBOLS.index(character) for character in text]
    return _CharacterTable(kind, backwards)


def _last_number(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], table: _CharacterTable
) -> _Number:
    text = _ending(tokens, mask, table)
    digit = text < MINUS

    def is_digit(steps):  # whether a digit stands so many characters before
        padded = jnp.pad(digit, [(0, 0), (4, 4)])
        return padded[:, 4 + steps : 4 + steps + REACH]

    point = (text == POINT) & is_digit(1) & is_digit(-1)
    three = is_digit(-1) & is_digit(-2) & is_digit(-3) & ~is_digit(-4)
    comma = (text == COMMA) & is_digit(1) & three
    inside = jnp.cumprod(digit | point | comma, axis=-1).astype(bool)  # up to the first outside
    digit, point, comma = digit & inside, point & inside, comma & inside
    characters = inside.sum(axis=-1)
    has_point = point.any(axis=-1, keepdims=True)
    fraction = has_point & (jnp.cumsum(point, axis=-1) == 0)
    found = (characters > 0) & (characters <= MAX_CHARACTERS)
    found &= (point.sum(axis=-1) <= 1) & ~(comma & fraction).any(axis=-1)

    before = jnp.take_along_axis(
        text, jnp.minimum(characters[:, None] + jnp.arange(2), REACH - 1), axis=-1
    )
    negative = (before[:, 0] == MINUS) & (before[:, 1] >= MINUS)
    place = jnp.cumsum(digit, axis=-1) - 1 - (digit & fraction).sum(axis=-1, keepdims=True)
    at = jnp.where(digit, MAX_CHARACTERS + place, 2 * MAX_CHARACTERS)
    return _Number(_placed(text, at, 2 * MAX_CHARACTERS, 0), negative, found)


def _ending(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], table: _CharacterTable
) -> Int[Array, "B R"]:
    """The text that ends in the last digit, backwards from it; others where there is no more."""
    unknown = len(table.kind) - 1
    kind = jnp.asarray(table.kind)[jnp.where(mask & (tokens < unknown), tokens, unknown)]
    has_digit = jnp.asarray((table.backwards < MINUS).any(axis=-1))
    columns = jnp.arange(tokens.shape[-1])
    last = jnp.max(jnp.where(has_digit[kind], columns, -1), axis=-1, initial=-1)
    at = last[:, None] - jnp.arange(REACH)  # enough, for a token has at least one character
    kind = jnp.where(at >= 0, jnp.take_along_axis(kind, jnp.maximum(at, 0), axis=-1), 0)
    text = jnp.asarray(table.backwards)[kind].reshape(len(tokens), -1)
    kept = (text != NONE) & (jnp.cumsum(text < MINUS, axis=-1) > 0)
    at = jnp.where(kept, jnp.cumsum(kept, axis=-1) - 1, REACH)
    return _placed(text, at, REACH, OTHER)


def _placed(
    x: Int[Array, "B N"], at: Int[Array, "B N"], width: int, fill: int
) -> Int[Array, "B {width}"]:
    """Every entry of a row in the column ``at`` of it, if that is one of ``width``."""
    return jax.vmap(lambda row, to: jnp.full(width, fill).at[to].set(row, mode="drop"))(x, at)


def _whole_number(x: Int[Array, " B"]) -> _Number:
    size = jnp.abs(x).astype(jnp.uint32)  # −2³¹ stays itself in int32, and is 2³¹ here
    powers = np.array([10**place for place in range(10)], np.uint32)
    digits = (size[:, None] // powers % 10).astype(jnp.int32)
    places = [(0, 0), (MAX_CHARACTERS, MAX_CHARACTERS - len(powers))]
    return _Number(jnp.pad(digits, places), x < 0, jnp.ones(x.shape, bool))
