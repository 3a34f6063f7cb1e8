"""What must not leave the process: tokens and passwords, in whatever is printed or written.

They come in through the environment, which says by the name of a variable that its value is one,
and through URLs and texts that look like it.
"""

import functools
import json
import os
import re
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rljax.errors import UserError

LEAST_CHARACTERS = 8  # of a secret; what is shorter stands everywhere by chance
NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHAPES = (  # what is a secret by its looks, and what takes its place
    (r"(?<=://)([^\s/:@]*):[^\s/]+@", r"\1:[password]@"),
    (r"([?&][\w-]*(?i:token|key|secret|password|signature|sig)=)[^&#\s\"'\[]+", r"\1[secret]"),
    (r"\b(Bearer\s+)(?=[^\s\"']*\d)[\w.~+/=-]{16,}", r"\1[secret]"),
    (r"\b(?:hf_|gh[opsur]_)[A-Za-z0-9]{30,}", "[secret]"),
    (r"\b(?:github_pat_|glpat-|xox[abeoprs]-|AIza)[\w-]{20,}", "[secret]"),
    (r"\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}", "[secret]"),
    (r"\bA[KS]IA[A-Z0-9]{16}\b", "[secret]"),
    (r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", r"[\1]"),
)
_SHAPES = tuple((re.compile(pattern, re.DOTALL), given) for pattern, given in SHAPES)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with ``[NAME]`` in place of what variables hold whose names say that it is secret,
    and of what looks like a password in a URL, a token or a private key.

    >>> redact("no access with s3cr3t-s3cr3t", {"MY_TOKEN": "s3cr3t-s3cr3t"})
    'no access with [MY_TOKEN]'
    >>> redact("https://me:12345@host/x", {})
    'https://me:[password]@host/x'
    """
    return _hider(environment)(text)


def redacted(
    tree: Any, environment: Mapping[str, str] = os.environ, *, by_looks: bool = True
) -> Any:
    """A tree of plain data, such as a resolved config, with every text in it redacted, the names
    of its keys included, and every number that a variable holds.

    Args:
      by_looks: also what only looks like a secret, which prompts and responses may well hold.

    >>> redacted({"key": [1, "s3cr3t-s3cr3t"]}, {"MY_TOKEN": "s3cr3t-s3cr3t"})
    {'key': [1, '[MY_TOKEN]']}
    """
    hide = _hider(environment, by_looks)

    def walk(node: Any) -> Any:
        if isinstance(node, str):
            return hide(node)
        if isinstance(node, Mapping):
            return {walk(name): walk(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value) for value in node]
        if isinstance(node, int | float):
            hidden = hide(str(node))
            return hidden if hidden.startswith("[") else node  # all of it, and no digits by chance
        return node

    return walk(tree)


def refuse_placeholders(tree: Any) -> None:
    """Raises ``UserError`` if a config that was read from the folder of a run has a placeholder in
    the place of a secret that was kept out of it."""
    text = json.dumps(tree)
    for name in re.findall(r"\[([A-Z][A-Z0-9_]*|secret|password)\]", text):
        if NAMES.search(name):
            raise UserError(
                f"the run's config has [{name}] in the place of a value that was kept out of its "
                f"files; give that setting again, as some.key=${name}, or the config file"
            )


def say(text: str) -> None:
    """A line on standard error, redacted."""
    print(f"rljax: {redact(text)}", file=sys.stderr, flush=True)


def guard_tracebacks() -> None:
    """Has Python print exceptions that nobody catches redacted, those of threads too."""
    sys.excepthook = print_traceback
    threading.excepthook = lambda told: print_traceback(
        told.exc_type, told.exc_value, told.exc_traceback
    )


def print_traceback(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """As Python does, redacted."""
    lines = traceback.format_exception(kind, error, trace)
    print(redact("".join(lines)), file=sys.stderr, end="", flush=True)


def _hider(environment: Mapping[str, str], by_looks: bool = True) -> Callable[[str], str]:
    """What redacts by an environment as it is now."""
    pairs = ((name, value.strip()) for name, value in environment.items() if NAMES.search(name))
    found = tuple(pair for pair in pairs if len(pair[1]) >= LEAST_CHARACTERS)
    return functools.partial(_hide, found, _SHAPES if by_looks else ())


def _hide(found: tuple[tuple[str, str], ...], shapes: Iterable, text: str) -> str:
    if found:
        pattern, names = _pattern(found)
        text = pattern.sub(lambda match: f"[{names[match[0]]}]", text)
    for pattern, given in shapes:
        text = pattern.sub(given, text)
    return text


@functools.lru_cache(maxsize=4)
def _pattern(found: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds values in any way that a message may write them, and whose each is."""
    names = {written: name for name, value in found for written in _written(value)}
    # Of two secrets one may begin with the other.
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), names


def _written(value: str) -> set[str]:
    """A value as it is, on one line, and as Python, JSON and a URL write it."""
    return {
        value,
        " ".join(value.split()),
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        urllib.parse.quote(value, safe=""),
    }
