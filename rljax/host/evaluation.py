"""From judged responses to the figures and samples of an evaluation."""

from typing import Any, NamedTuple

import numpy as np

from rljax.shaping import band_distance


class Evaluated(NamedTuple):
    """The result of an evaluation: its figures, and every response as a record."""

    figures: dict[str, float]
    samples: list[dict[str, Any]]


def summarise(
    rollout,
    rewards,
    scored,
    tokenizer,
    *,
    min_tokens: int,
    max_tokens: int,
    shaped: bool = True,
) -> Evaluated:
    """Takes host arrays, two rows per prompt: greedy, then sampled; ``scored`` is False for those
    that a reward in Python failed for, which enter no figure of accuracy or reward. If not
    ``shaped``, nothing is said of the shaped reward: it is one among others to the same prompt,
    which an evaluation does not have.

    ``accuracy_greedy`` and ``accuracy_sampled`` are shares of correct responses; the rest is of the
    sampled ones: ``length_mean`` in tokens, ``in_band_ratio``, ``truncated_ratio``,
    ``reward_mean`` and ``reward_shaped_mean``.
    """
    greedy, sampled = slice(0, None, 2), slice(1, None, 2)
    correct, lengths = np.asarray(rewards.correct), np.asarray(rollout.lengths)
    in_band = np.asarray(band_distance(lengths, min_tokens, max_tokens)) == 0
    shaped_rewards = np.asarray(rewards.shaped)

    def mean(values, rows: slice) -> float:
        return float(values[rows][scored[rows]].mean()) if scored[rows].any() else 0.0

    figures = {
        "accuracy_greedy": mean(correct, greedy),
        "accuracy_sampled": mean(correct, sampled),
        "length_mean": lengths[sampled].mean(),
        "in_band_ratio": in_band[sampled].mean(),
        "truncated_ratio": rollout.truncated[sampled].mean(),
        "reward_mean": mean(rewards.raw, sampled),
    }
    if shaped:
        figures["reward_shaped_mean"] = mean(shaped_rewards, sampled)
    if not scored.all():
        figures["failed_ratio"] = 1.0 - scored.mean()
    prompts = tokenizer.batch_decode(_select(rollout.tokens, rollout.mask & ~rollout.action_mask))
    responses = tokenizer.batch_decode(
        _select(rollout.tokens, rollout.action_mask), skip_special_tokens=True
    )
    samples = [
        {
            "prompt": prompts[row],
            "response": responses[row],
            "greedy": row % 2 == 0,
            "length_tokens": int(lengths[row]),
            "truncated": bool(rollout.truncated[row]),
            "reward_raw": float(rewards.raw[row]) if scored[row] else None,
            "reward_shaped": float(shaped_rewards[row]) if scored[row] and shaped else None,
        }
        for row in range(len(lengths))
    ]
    return Evaluated({name: float(value) for name, value in figures.items()}, samples)


def _select(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
