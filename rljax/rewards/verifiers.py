"""Verifiable rewards: a response's tokens against those of the row's answer."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rljax.errors import UserError
from rljax.types import Rollout


def answer_match(
    rollout: Rollout, *, marker: str, tokenizer, column: str = "answer"
) -> Float[Array, " B"]:
    """1 if what stands after the response's last ``marker`` is exactly the row's answer, else 0.

    The answer must be the end of the response: right behind it comes the EOS, and a response that
    the budget cut off earns 0.

    Args:
      marker: text of a single token, such as ``"#"``.
      column: the data column with the answer.

    Raises:
      UserError: ``marker`` is not one token, or the data has no such column of text.
    """
    marker_ids = tokenizer.encode(marker, add_special_tokens=False)
    if len(marker_ids) != 1:
        raise UserError(f'answer_match: marker "{marker}" must be one token, is {marker_ids}')
    answer = _text_column(rollout, column, "answer_match")
    width = rollout.tokens.shape[-1]
    columns = jnp.arange(width)

    def last(where):  # column of the last True, or -1
        return jnp.max(jnp.where(where, columns, -1), axis=-1)

    start = last((rollout.tokens == marker_ids[0]) & rollout.action_mask)
    answer_tokens = (answer >= 0).sum(axis=-1)
    ends_there = last(rollout.action_mask) == start + answer_tokens + 1
    at = jnp.minimum(start[:, None] + 1 + jnp.arange(answer.shape[-1]), width - 1)
    same = (jnp.take_along_axis(rollout.tokens, at, axis=-1) == answer) | (answer < 0)
    correct = (start >= 0) & same.all(axis=-1) & ends_there & ~rollout.truncated
    return correct.astype(jnp.float32)


def exact_match(rollout: Rollout, *, column: str = "answer") -> Float[Array, " B"]:
    """1 if the response is exactly the row's answer and the EOS, else 0.

    Tokens are compared, not text: a tokenizer that writes a first word otherwise than the words
    after it (a leading space) wants the answer as it follows the prompt. A response that the budget
    cut off earns 0.

    Args:
      column: the data column with the answer.

    Raises:
      UserError: the data has no such column of text.
    """
    answer = _text_column(rollout, column, "exact_match")
    answer_tokens = (answer >= 0).sum(axis=-1)
    place = jnp.cumsum(rollout.action_mask, axis=-1) - 1  # of a column's token in the response
    at = jnp.clip(place, 0, answer.shape[-1] - 1)
    same = rollout.tokens == jnp.take_along_axis(answer, at, axis=-1)
    of_answer = rollout.action_mask & (place < answer_tokens[:, None])
    ends_there = rollout.lengths == answer_tokens + 1
    correct = (same | ~of_answer).all(axis=-1) & ends_there & ~rollout.truncated
    return correct.astype(jnp.float32)


def data_column(rollout: Rollout, column: str, reward: str) -> Array:
    """A column of the data. Raises ``UserError`` in the name of ``reward`` if there is none."""
    if column not in rollout.extras:
        raise UserError(f'{reward}: the data has no column "{column}"')
    return rollout.extras[column]


def _text_column(rollout: Rollout, column: str, reward: str) -> Int[Array, "B A"]:
    answer = data_column(rollout, column, reward)
    if answer.ndim != 2:
        raise UserError(f'{reward}: the data column "{column}" must be text')
    return answer
