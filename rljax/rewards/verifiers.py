"""Verifiable rewards: pure functions of a rollout, compiled into the step."""

import jax.numpy as jnp
from jaxtyping import Array, Float

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
    if column not in rollout.extras:
        raise UserError(f'answer_match: the data has no column "{column}"')
    answer = rollout.extras[column]
    if answer.ndim != 2:
        raise UserError(f'answer_match: the data column "{column}" must be text')
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
