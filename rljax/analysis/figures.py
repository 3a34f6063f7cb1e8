"""Which figures of runs are shown, and what is known of each."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from rljax.analysis.reading import HELD_OUT, Run
from rljax.analysis.series import Series
from rljax.errors import UserError, nearest
from rljax.health import Sign
from rljax.metrics import METRICS, find_metric

SHOWN = (  # where a run has them and nobody asks for others, in this order
    *("reward_mean", "reward_shaped_mean", "accuracy", "accuracy_greedy"),
    *("length_mean", "response_length_p95", "in_band_ratio", "length_penalty_mean"),
    *("reward_shaping_ratio", "truncated_ratio", "left_out_ratio"),
    *("reference_kl", "policy/ppo_kl", "policy/divergence", "policy/entropy"),
    *("policy/loss", "policy/nll", "policy/grad_norm", "value/explained_var", "value/loss"),
    *("reward/loss", "rewards/accuracies", "rewards/chosen", "rewards/rejected"),
    "rewards/margins",
)
SHOWN_OF_OTHERS = 12  # of the figures of a trainer that has none of these
HELD_OUT_AS = {"accuracy": "accuracy_sampled"}  # a figure of training, and of an evaluation
HIGHER = (
    *("reward_mean", "reward_shaped_mean", "accuracy*", "in_band_ratio", "pass@*", "avg@*"),
    *("rewards/accuracies", "rewards/margins", "value/explained_var", "perf/tokens_per_second"),
)
LOWER = (
    *("length_penalty_mean", "truncated_ratio", "left_out_ratio", "*nll", "perf/step_seconds"),
    *("value/loss", "reward/loss", "*heldout/loss", "*eval/loss", "*eval_loss"),
)
LENGTHS = (
    *("length_mean", "length_terminated_mean", "length_correct_mean", "length_wrong_mean"),
    "response_length_*",
)
SHARES = ("accuracy*", "*_ratio", "rewards/accuracies")


def chosen(asked: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The names of the figures to show: those asked for, ``rewards/*`` for all that fit, or else
    the ones that matter and are there. Raises ``UserError`` for one that no run has."""
    there = set().union(*(run.names for run in runs))
    if not asked:
        found = [name for name in SHOWN if name in there]
        return found or sorted(there)[:SHOWN_OF_OTHERS]
    found = []
    for name in asked:
        if name not in there and name.removeprefix(HELD_OUT) in there:
            name = name.removeprefix(HELD_OUT)
        fitting = [name] if name in there else sorted(n for n in there if fnmatchcase(n, name))
        if not fitting:
            raise UserError(unknown(name, there))
        found += fitting
    return list(dict.fromkeys(found))


def unknown(name: str, there: set[str]) -> str:
    """What is wrong with the name of a figure that no run has."""
    if name in {metric.name for metric in METRICS}:
        return f'no run has recorded the metric "{name}"; recorded: {", ".join(sorted(there))}'
    return f'unknown metric "{name}"; {nearest(name, there)}'


def held_out(run: Run, name: str) -> Series | None:
    """What the evaluations of a run say of a figure of its training."""
    for called in (name, HELD_OUT_AS.get(name, name), f"heldout/{name}"):
        if called in run.held_out:
            return run.held_out[called]
    return None


def direction(name: str) -> int:
    """1 where more is better, -1 where less is, else 0.

    >>> direction("accuracy_greedy"), direction("value/loss"), direction("length_mean")
    (1, -1, 0)
    """
    return int(_fits(name, HIGHER)) - int(_fits(name, LOWER))


def is_length(name: str) -> bool:
    """Whether it is a length of responses, which the band is about."""
    return _fits(name, LENGTHS)


def bounds(name: str, signs: Sequence[Sign]) -> list[float]:
    """The numbers between which it is healthy, those of the band apart."""
    edges = (edge for sign in signs if sign.metric == name for edge in (sign.low, sign.high))
    return [float(edge) for edge in edges if isinstance(edge, int | float)]


def is_share(name: str) -> bool:
    """Whether it lies between 0 and 1."""
    return _fits(name, SHARES)


def about(name: str) -> tuple[str, str]:
    """Its unit and its meaning, where they are known."""
    if found := find_metric(name):
        return found[0].unit, found[0].meaning
    return "tokens" if is_length(name) else "", ""


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
