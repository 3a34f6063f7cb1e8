"""The length policy of a config, without a model: what a response is judged by, and what it costs.

Of the shaping stages it has those that need no more than a response's length and whether the budget
ended it. They take the keywords of the stages of the same names in ``rljax.shaping``, with the same
defaults, and compute the same, by ``rljax.lengths``.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from rljax import lengths as rules
from rljax.config_file import read_config_file
from rljax.errors import UserError, nearest

Cost = Callable[[Int[np.ndarray, " B"], Bool[np.ndarray, " B"]], Float[np.ndarray, " B"]]
NEEDS_MORE = {  # keywords that, if set, make a stage need what a response alone does not tell
    "correct_only": "which responses are correct",
    "relative_to_reward": "what the responses earn",
}
STARTS = {"drift": "start", "fixed": "value", "adaptive_kl": "start"}  # of controllers


class LengthPolicy(NamedTuple):
    """How the lengths of responses are judged, in tokens, the closing EOS included."""

    min_tokens: int
    max_tokens: int
    costs: Mapping[str, Cost]  # by the name of the stage
    left_out: Mapping[str, str]  # stages that are not applied, and why

    def verdict(self, lengths: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """``rljax.lengths.VERDICTS`` by index."""
        return rules.verdict(lengths, self.min_tokens, self.max_tokens)

    def cost(
        self, lengths: Int[np.ndarray, " B"], truncated: Bool[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        """What the stages subtract from the reward, controllers where they start."""
        total = np.zeros(len(lengths), np.float32)
        for cost in self.costs.values():
            total = total + cost(lengths, truncated)
        return total


def read_policy(path: Path) -> LengthPolicy:
    """The policy of a YAML config, or of the folder of a run.

    Raises ``UserError`` if there is none, or one that training would refuse too.
    """
    file = path / "config.yaml" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{path} is no run folder: it holds no config.yaml")
    try:
        return policy_of(read_config_file(file, []))
    except UserError as error:
        text = str(error)
        raise UserError(text if str(file) in text else f"{file}: {text}") from error


def policy_of(tree: Mapping[str, Any]) -> LengthPolicy:
    """The policy of a config's tree. Raises ``UserError`` as ``read_policy``."""
    band = tree.get("length")
    if not isinstance(band, Mapping):
        raise UserError(
            "the config has no length policy: length: {min_tokens: 30, max_tokens: 80} is needed"
        )
    given = _keywords(_band, band, {}, "length")
    rules.check_band(**given)
    sampling = tree.get("sampling")
    known = given | (
        {"budget_tokens": _number(sampling["max_tokens"], "sampling.max_tokens", whole=True)}
        if isinstance(sampling, Mapping) and sampling.get("max_tokens") is not None
        else {}
    )
    costs, left_out = {}, {}
    shaping = tree.get("shaping")
    for stage, node in (shaping if isinstance(shaping, Mapping) else {}).items():
        if node is None or node is False:
            continue
        found = _stage(node, known, f"shaping.{stage}")
        (left_out if isinstance(found, str) else costs)[stage] = found
    return LengthPolicy(**given, costs=costs, left_out=left_out)


def _band(min_tokens: int, max_tokens: int) -> None:
    """The keywords of a config's ``length``."""


def length_band(
    min_tokens: int,
    max_tokens: float,
    weight: float = 0.3,
    *,
    scale_tokens: float | None = None,
    cap: float | None = 1.0,
) -> Cost:
    scale = rules.band_scale(min_tokens, max_tokens, scale_tokens, cap)
    if weight < 0:
        raise UserError(f"a coefficient must not be negative; got {weight}")
    return lambda lengths, truncated: rules.band_cost(
        lengths, min_tokens, max_tokens, np.float32(weight), scale_tokens=scale, cap=cap
    )


def soft_overlong(
    budget_tokens: int, buffer_tokens: int | None = None, *, penalty: float = 1.0
) -> Cost:
    buffer = rules.overlong_buffer(budget_tokens, buffer_tokens, penalty)
    return lambda lengths, truncated: rules.overlong_cost(lengths, budget_tokens, buffer, penalty)


def missing_eos(penalty: float = 1.0) -> Cost:
    if penalty <= 0:
        raise UserError(f"missing_eos: penalty must be positive; got {penalty}")
    return lambda lengths, truncated: np.where(truncated, np.float32(penalty), np.float32(0))


STAGES = {stage.__name__: stage for stage in (length_band, soft_overlong, missing_eos)}


def _stage(node: Any, known: Mapping[str, Any], where: str) -> Cost | str:
    """The cost that a shaping stage takes; or, in words, what it needs beside a length."""
    name, given = (node, {}) if isinstance(node, str) else (None, node)
    if isinstance(node, Mapping):
        name, given = node.get("fn"), {key: node[key] for key in node if key != "fn"}
    if not isinstance(name, str):
        raise UserError(f"{where}: expected a function's name or {{fn: name, ...}}, got {node!r}")
    if name not in STAGES:
        return f"{name} needs more than a response's length"
    for key, needed in NEEDS_MORE.items():
        if given.get(key) not in (None, False):
            return f"{key} needs to know {needed}"
    given = {key: value for key, value in given.items() if key not in NEEDS_MORE}
    for key, value in given.items():
        if isinstance(value, Mapping):
            start = value.get(STARTS.get(value.get("fn"), ""))
            if start is None:
                return f"{key} is a controller that does not say where it starts"
            given[key] = start
    return STAGES[name](**_keywords(STAGES[name], given, known, where))


def _keywords(
    fn: Callable, given: Mapping[str, Any], known: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Numbers for the keywords of ``fn``: those given, and from ``known`` those without default."""
    parameters = inspect.signature(fn).parameters
    found = {}
    for key, value in given.items():
        if key not in parameters:
            raise UserError(f'{where}: unknown key "{key}"; {nearest(key, parameters)}')
        kind = parameters[key].annotation
        kinds = get_args(kind) or (kind,)
        if value is None and type(None) in kinds:
            found[key] = None
        else:
            found[key] = _number(value, f"{where}.{key}", whole=float not in kinds)
    for key, parameter in parameters.items():
        if key not in found and parameter.default is parameter.empty:
            if key not in known:
                raise UserError(f'{where}: the key "{key}" is missing')
            found[key] = known[key]
    return found


def _number(value: Any, where: str, *, whole: bool) -> float:
    try:
        number = float(value)  # YAML may have it as text
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or (whole and not number.is_integer()):
        needed = "a whole number" if whole else "a number"
        raise UserError(f"{where}: {needed} is needed, got {value!r}")
    return int(number) if whole else number
