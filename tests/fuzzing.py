"""How hard mutated inputs are tried, and what must become of every one of them.

``RLJAX_FUZZ=5000`` tries that many of each kind, other ones every time; without it a few are
tried, the same every time.
"""

import contextlib
import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from rljax.errors import UserError

EXAMPLES = int(os.environ.get("RLJAX_FUZZ", "0"))
SECONDS = 60  # that one input may take, on a busy machine
BYTES = 3 * 2**30  # that one input may take beyond what the tests hold
LONGEST = 2_000  # characters of a message
STATM = Path("/proc/self/statm")  # the pages that this process holds, on Linux

# What does not belong where it is put, of every type and size.
SCALARS = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 2**63, -(2**63), 2**70, 10**400),
    *(0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "1", "1e3", "nan", "null", "x" * 10**5),
    *("é…😀", "a\nb", "\0", "\ud800", "\x1b[2J"),
    *(".", "..", "/", "~", "~nobody-is-called-so", "a/b", "/dev/null", "x.jsonl"),
    *("a:b", ":", "a.b"),
]
HOSTILE = st.one_of(
    st.sampled_from(SCALARS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([[], {}, [[]], [{}], [None], {"": 1}, {1: 2}, {None: 1}]),
    st.sampled_from([{"fn": None}, {"fn": []}, {"fn": "x"}, {"source": "x"}, {"source": {}}]),
    st.recursive(
        st.sampled_from(SCALARS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
)


class TooSlow(BaseException):
    """One input took longer than it may; nothing that catches exceptions catches this."""


def tries(few: int, share: float = 1.0) -> hypothesis.settings:
    """How many inputs are tried: ``few``, or of those that are asked for a ``share``."""
    return hypothesis.settings(
        max_examples=max(int(EXAMPLES * share), 1) if EXAMPLES else few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What happens within must not take long, nor much memory."""

    def stop(*_):
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    if STATM.exists():
        held = int(STATM.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refusal(action: Callable[[], Any]) -> str | None:
    """What an action is refused with, in one line; None if it is not. Anything else fails."""
    try:
        with bounded():
            action()
    except UserError as error:
        return one_clear_line(str(error))
    return None


def refused(command: Callable[[list[str]], int], *arguments: str) -> str | None:
    """What a command says in its one line on stderr before it exits with 2; None if it succeeds."""
    err = io.StringIO()
    with bounded(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = command(list(arguments))
    said = err.getvalue()
    if code == 0:
        assert said == ""
        return None
    assert code == 2
    assert said.startswith("rljax: error: "), said
    assert said.endswith("\n"), said
    return one_clear_line(said[:-1])


def one_clear_line(text: str) -> str:
    assert text.isprintable(), "more than one line, or characters that are none"
    assert 0 < len(text) <= LONGEST, f"{len(text)} characters"
    return text


def mutated_bytes(whole: bytes, snippets: list[bytes]) -> st.SearchStrategy[bytes]:
    """A file with bytes changed, cut out, doubled, put in, or with its end missing."""

    @st.composite
    def mutate(draw):
        data = whole
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(data)))
            end = min(len(data), at + draw(st.sampled_from([0, 1, 1, 2, 8, 100])))
            new = draw(
                st.one_of(
                    st.just(b""),
                    st.binary(min_size=1, max_size=3),
                    st.sampled_from(snippets),
                    st.just(data[at:end] * 2),
                )
            )
            data = data[:at] + new + data[end:]
        if draw(st.integers(0, 9)) == 0:
            data = data[: draw(st.integers(0, len(data)))]
        return data

    return mutate()


def places(tree: Any, above: tuple = ()) -> list[tuple]:
    """The paths to all that a tree holds."""
    items = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    found = []
    for name, value in items:
        found += [(*above, name), *places(value, (*above, name))]
    return found


def at(tree: Any, path: tuple) -> Any:
    for name in path:
        tree = tree[name]
    return tree
