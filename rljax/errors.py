"""The one exception for what a user can put right, and the words that such messages share."""

import difflib
from collections.abc import Iterable

LONGEST = 1_500  # characters of a message


class UserError(ValueError):
    """A mistake in a config, a file, or a user's function. Commands print it as one line.

    It is one whatever the message quotes: what would end the line, or steer the terminal, is
    written as an escape, and of a message that is too long the middle is left out.

    >>> print(UserError('unknown key "a\\nb"'))
    unknown key "a\\nb"
    """

    def __init__(self, message: str):
        super().__init__(_shortened(_escaped(_shortened(message))))


def _shortened(text: str) -> str:
    tail = LONGEST // 4
    return text if len(text) <= LONGEST else f"{text[: LONGEST - tail - 3]} … {text[-tail:]}"


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the closest valid one if there is any, then all of them.

    >>> nearest("lenght", ["length", "kl"])
    'did you mean "length"? (valid: kl, length)'
    """
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}(valid: {', '.join(valid)})"


def reason(error: Exception) -> str:
    """Why a user's function failed while it was traced, in one line."""
    import jax  # only here: what has no part in training does without

    value_read = (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
    )
    if isinstance(error, value_read):
        return (
            "reads the values of arrays in Python (float(), if, tokenizer.decode, ...); it is "
            "compiled into the step, so write it with jax.numpy"
        )
    return f"raised {type(error).__name__}: {' '.join(str(error).split())}"


def multiples(count: int, divisor: int) -> str:
    """The multiples of ``divisor`` next to ``count``, as text.

    >>> multiples(12, 8), multiples(5, 8)
    ('8 or 16', '8')
    """
    less = count // divisor * divisor
    return " or ".join(str(n) for n in sorted({less or divisor, less + divisor}))
