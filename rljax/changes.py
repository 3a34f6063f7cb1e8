"""What of a run's config may change when it goes on."""

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from rljax.config import is_function
from rljax.config_file import flatten
from rljax.errors import UserError

# Keys that do not change what is learned, but for rounding. The rows of the data are compared
# themselves, wherever they are read from.
HARMLESS = (
    *("run_dir", "mesh.*", "guard.*", "evaluation.*", "checkpoint.*", "time_limit"),
    *("metrics.*", "callbacks.*"),
    *("update.microbatches", "update.buckets", "halves"),
    *("sampling.slots", "sampling.prompt_lookup"),
    *("data.train", "data.train.fn", "data.eval*", "warm_start.data", "warm_start.data.fn"),
    *("models.*.remat", "models.*.attention", "models.*.vocab_at_once", "models.*.offload"),
    *("rewards.*.timeout_seconds", "rewards.*.memory_gib", "rewards.*.retries"),
    "rewards.*.max_failed_share",
)
# Keys of what a checkpoint holds parameters, moments or tokens of.
HELD = ("models.*", "tokenizer*", "optimizer.*.mu_dtype", "staleness")
NOT_HELD = ("models.*.dtype",)  # of the arithmetic


class Changes(NamedTuple):
    """Of a config, each as "key before -> now"."""

    harmless: list[str]
    learned: list[str]  # that change what is learned from now on
    held: list[str]  # that what was saved does not fit


def changes(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """How a resolved config differs from the one that a run was begun with."""
    before, now = flatten(old), flatten(new)
    found = Changes([], [], [])
    for name in sorted(before.keys() | now.keys()):
        then, since = before.get(name), now.get(name)
        if then == since:
            continue
        text = f"{name} {_shown(then)} -> {_shown(since)}"
        if _is_one_of(name, HARMLESS):
            found.harmless.append(text)
        elif _is_one_of(name, HELD) and not (_is_one_of(name, NOT_HELD) or _moved(then, since)):
            found.held.append(text)
        else:
            found.learned.append(text)
    return found


def check_same_run(
    old: dict[str, Any], new: dict[str, Any], folder, *, allowed: bool = False
) -> list[str]:
    """The changes of a resumed run's config, as words.

    Raises ``UserError`` for those that what was saved does not fit, and, unless they are
    ``allowed``, for those that change what is learned.
    """
    found = changes(old, new)
    if found.held:
        raise UserError(
            f"{folder} holds a run with another model, tokenizer, optimizer state or staleness "
            f"({'; '.join(found.held)}); use that run's config, or another run_dir"
        )
    if found.learned and not allowed:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(found.learned)}); use that "
            "run's config, or another run_dir, or go on with these by --allow-config-change"
        )
    return found.learned + found.harmless


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _moved(then: Any, since: Any) -> bool:
    """Whether a model's folder may only have moved: its shapes are compared with what was saved."""
    names = [then, since]
    return all(isinstance(name, str) and "/" in name and not is_function(name) for name in names)


def _shown(value: Any, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]} …"
