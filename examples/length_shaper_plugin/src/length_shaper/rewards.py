"""A reward for a right answer that is worth more the sooner it is there."""

import jax.numpy as jnp

from rljax.errors import UserError
from rljax.rewards import answer_match


def brevity_match(
    rollout,
    *,
    tokenizer,
    marker: str = "#",
    column: str = "answer",
    half_tokens: float = 50.0,
    least: float = 0.6,
):
    """least + (1 − least) · 2^(−n / half_tokens) for a right answer of n tokens, 0 for a wrong one.

    What is right is worth more than one half at any length, so that it counts as correct.

    Args:
      tokenizer: the run's.
      marker, column: as of ``answer_match``, which says what is right.
      half_tokens: the length at which half of the bonus for brevity is left.
      least: what a right answer is worth however long it is.
    """
    if half_tokens <= 0 or not 0.5 < least <= 1:
        raise UserError(
            f"brevity_match: needs half_tokens > 0 and 0.5 < least <= 1; got {half_tokens}, {least}"
        )
    right = answer_match(rollout, marker=marker, tokenizer=tokenizer, column=column)
    return right * (least + (1.0 - least) * jnp.exp2(-rollout.lengths / half_tokens))
