"""Responses in a reward model's own tokens, where they are not the policy's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rljax.data import NO_TOKEN, pad
from rljax.errors import UserError
from rljax.host.rows import held, local, placed
from rljax.types import REWARD_CROPPED, REWARD_TOKENS, ROW, Rollout


def make_retokenizer(
    prompts: Sequence[str | list[dict[str, str]]], policy, reward, *, max_tokens: int
) -> Callable[[Rollout], Rollout]:
    """rollout -> rollout with every row as the reward model reads it, in its extras. Each process
    reads the rows that it holds.

    Prompt and response are put into the reward model's chat template if it has one (a plain prompt
    as the user's message), else one behind the other, as text. Of a row longer than
    ``max_tokens`` the end is kept.

    Args:
      prompts: text or chat messages, by row of the data.
      policy, reward: the tokenizers.

    Raises:
      UserError: the reward model's chat template does not take one of the prompts.
    """

    def text(prompt: Any, response: str) -> str:
        if reward.chat_template is None:
            turns = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
            return "\n".join(turns) + response
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = [*turns, {"role": "assistant", "content": response}]
        return reward.apply_chat_template(turns, tokenize=False)

    for number, prompt in enumerate(prompts, start=1):
        try:
            text(prompt, "")
        except Exception as error:  # a template is a program, and raises what it likes
            raise UserError(
                f"models.reward: its chat template does not take the prompt in row {number}: "
                f"{error}"
            ) from error

    def retokenize(rollout: Rollout) -> Rollout:
        at = np.flatnonzero(held(rollout.tokens))
        tokens, chosen, rows = (
            local(column)[at]
            for column in (rollout.tokens, rollout.action_mask, rollout.extras[ROW])
        )
        kept = [row[mask].tolist() for row, mask in zip(tokens, chosen, strict=True)]
        responses = policy.batch_decode(kept, skip_special_tokens=True)
        texts = [text(prompts[row], said) for row, said in zip(rows, responses, strict=True)]
        ids = reward(texts, add_special_tokens=reward.chat_template is None)["input_ids"]
        count = len(rollout.tokens)
        read, cropped = np.full((count, max_tokens), NO_TOKEN, np.int32), np.zeros(count, bool)
        read[at] = pad([row[-max_tokens:] for row in ids], max_tokens, NO_TOKEN, left=False)
        cropped[at] = [len(row) > max_tokens for row in ids]
        columns = {
            REWARD_TOKENS: placed(read, rollout.truncated),
            REWARD_CROPPED: placed(cropped, rollout.truncated),
        }
        return rollout.replace(extras=rollout.extras | columns)

    return retokenize
