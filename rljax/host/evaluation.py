"""From judged responses to the figures and samples of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from rljax.host.samples import REWARD
from rljax.lengths import VERDICTS, verdict
from rljax.types import PYTHON_REWARD

BY_SOURCE = ("accuracy_", "pass@", "length_mean", "reward_mean")  # beginnings of figures' names


class Evaluated(NamedTuple):
    """The result of an evaluation: its figures, and every response as a record."""

    figures: dict[str, float]
    samples: list[dict[str, Any]]


def join(parts: Sequence[tuple]) -> tuple:
    """(rollout, rewards, …) of all prompts, from those of some prompts each.

    Takes host arrays of the same T; the metrics of the drawing are left out.
    """
    shifted, prompts = [], 0
    for rollout, *others in parts:
        shifted.append((rollout.replace(group=rollout.group + prompts, metrics={}), *others))
        prompts += int(rollout.group.max()) + 1
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *shifted)


def summarise(
    rollout,
    rewards,
    scored,
    tokenizer,
    *,
    each: Mapping[str, np.ndarray] = MappingProxyType({}),
    samples: int = 1,
    sources: Sequence[str] | None = None,
    min_tokens: int,
    max_tokens: int,
    shaped: bool = True,
) -> Evaluated:
    """Takes host arrays, 1 + ``samples`` rows per prompt: greedy, then sampled; ``scored`` is False
    for those that a reward in Python failed for, which enter no figure of accuracy or reward.
    ``each`` has the rewards by name. If not ``shaped``, nothing is said of the shaped reward: it is
    one among others to the same prompt, which an evaluation does not have.

    ``accuracy_greedy`` and ``accuracy_sampled`` are shares of correct responses; the rest is of the
    sampled ones: ``length_mean`` in tokens, ``in_band_ratio``, ``truncated_ratio``,
    ``reward_mean`` and ``reward_shaped_mean``. Accuracies and rewards are means over the prompts,
    each of which counts with the mean of its scored responses; without any it is left out.

    From two ``samples`` on, ``avg@n`` is ``accuracy_sampled`` by the name that tells n, and
    ``pass@k``, for each power of two up to n and for n, is the mean of ``pass_at_k`` over the
    prompts with at least k scored samples; 0 if there are none.

    ``sources`` names the data set of each prompt. If they are several, accuracies, ``pass@k``,
    ``length_mean`` and ``reward_mean`` are also told for each: ``{source}/accuracy_greedy``.
    """

    def by_prompt(values) -> np.ndarray:
        return np.asarray(values).reshape(-1, 1 + samples)

    lengths, ok = by_prompt(rollout.lengths), by_prompt(scored)
    in_band = by_prompt(verdict(rollout.lengths, min_tokens, max_tokens)) == 0
    truncated, correct = by_prompt(rollout.truncated), by_prompt(rewards.correct)
    raw, shaped_rewards = by_prompt(rewards.raw), by_prompt(rewards.shaped)
    greedy, sampled = np.s_[:, :1], np.s_[:, 1:]

    def measure(of) -> dict[str, float]:
        """The figures of some prompts."""
        counts = ok[of][sampled].sum(axis=1).tolist()
        hits = (correct & ok)[of][sampled].sum(axis=1).tolist()
        figures = {
            "accuracy_greedy": _mean(correct[of][greedy], ok[of][greedy]),
            "accuracy_sampled": _mean(correct[of][sampled], ok[of][sampled]),
        }
        if samples > 1:
            figures[f"avg@{samples}"] = figures["accuracy_sampled"]
        for k in _attempts(samples):
            passes = [pass_at_k(n, c, k) for n, c in zip(counts, hits, strict=True) if n >= k]
            figures[f"pass@{k}"] = np.mean(passes) if passes else 0.0
        figures |= {
            "length_mean": lengths[of][sampled].mean(),
            "in_band_ratio": in_band[of][sampled].mean(),
            "truncated_ratio": truncated[of][sampled].mean(),
            "reward_mean": _mean(raw[of][sampled], ok[of][sampled]),
        }
        if shaped:
            figures["reward_shaped_mean"] = _mean(shaped_rewards[of][sampled], ok[of][sampled])
        return {name: float(value) for name, value in figures.items()}

    figures = measure(slice(None))
    if not ok.all():
        figures["failed_ratio"] = float(1.0 - ok.mean())
    if len(names := sorted(set(sources or ()))) > 1:
        for source in names:
            of_source = measure(np.array([other == source for other in sources]))
            figures |= {
                f"{source}/{name}": value
                for name, value in of_source.items()
                if name.startswith(BY_SOURCE)
            }
    rows = records(
        rollout.replace(greedy=np.arange(ok.size) % (1 + samples) == 0),
        rewards,
        scored,
        tokenizer,
        each=each,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        shaped=shaped,
    )
    places = [
        {"prompt_index": prompt} | ({} if sources is None else {"source": sources[prompt]})
        for prompt, _ in np.ndindex(ok.shape)
    ]
    return Evaluated(figures, [place | row for place, row in zip(places, rows, strict=True)])


def records(
    rollout,
    rewards,
    scored,
    tokenizer,
    *,
    each: Mapping[str, np.ndarray],
    min_tokens: int,
    max_tokens: int,
    shaped: bool = True,
) -> list[dict[str, Any]]:
    """Every response as a row of a table of samples (``rljax.host.samples``), of host arrays.

    Null is what a reward failed for: it gave no value by itself, or the response is not ``scored``.
    """
    prompts = tokenizer.batch_decode(_select(rollout.tokens, rollout.mask & ~rollout.action_mask))
    responses = tokenizer.batch_decode(
        _select(rollout.tokens, rollout.action_mask), skip_special_tokens=True
    )
    verdicts = verdict(rollout.lengths, min_tokens, max_tokens)
    raw, all_shaped = (np.asarray(x, np.float64) for x in (rewards.raw, rewards.shaped))
    with np.errstate(invalid="ignore"):  # of rewards that are not finite
        added = all_shaped - raw

    def number(value, known=True) -> float | None:
        return float(value) if known and np.isfinite(value) else None

    return [
        {
            "prompt": prompts[row],
            "response": responses[row],
            "greedy": bool(rollout.greedy[row]),
            "length_tokens": int(rollout.lengths[row]),
            "length_verdict": VERDICTS[verdicts[row]],
            "truncated": bool(rollout.truncated[row]),
            "correct": bool(rewards.correct[row]) if ok else None,
            **{REWARD + name: number(values[row]) for name, values in each.items()},
            "reward_raw": number(raw[row], ok),
            "shaping": number(added[row], ok and shaped),
            "reward_shaped": number(all_shaped[row], ok and shaped),
        }
        for row, ok in enumerate(scored)
    ]


def values_of_each(rollout, scored) -> dict[str, np.ndarray]:
    """The rewards of a rollout by name, NaN where one in Python has failed or does not apply."""

    def given(name: str, values: np.ndarray) -> np.ndarray:
        said = rollout.extras.get(PYTHON_REWARD + name, values)
        return np.where(np.isfinite(said), values, np.nan)

    return {name: given(name, values) for name, values in (scored.each or {}).items()}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that k of n responses, drawn without replacement, hold a correct one.

        1 − C(n − c, k) / C(n, k),  c of the n being correct

    in integers, so that nothing overflows or cancels. It is the unbiased estimate of the
    probability that k new responses hold one. Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return (math.comb(n, k) - math.comb(n - correct, k)) / math.comb(n, k)


def _attempts(samples: int) -> list[int]:
    """The k of pass@k: powers of two from 2 on, and the number of samples itself."""
    powers = (2**i for i in range(1, samples.bit_length()))
    return sorted({*powers, samples} - {1})


def _mean(values: np.ndarray, scored: np.ndarray) -> float:
    """Over prompts [P, n], of the mean over each one's scored responses; 0 if none is scored."""
    some = scored.any(axis=1)
    if not some.any():
        return 0.0
    return float(values[some].mean(axis=1, where=scored[some]).mean())


def _select(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
