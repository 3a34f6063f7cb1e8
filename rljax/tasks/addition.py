"""The embedded task: three-digit addition, column by column, learned from a sloppy teacher.

A prompt is ``283+759=``. The demonstrations add column by column, from the right, and often forget
a carry the first time; adding twice is how they get it right. They teach that rambling pays, which
is the tension that length-aware shaping resolves. Nothing is downloaded: all is generated, seeded.
"""

import random
import string
import zlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rljax.errors import UserError

MOST = 10_000_000  # rows; there are 810,000 problems
FIRST_FORGETS = 0.85  # probability that a first chain forgets a carry
SECOND_FORGETS = 0.05
MISCOUNTS = 0.01  # probability that any one column is off by one
KINDS = {"bare": 0.3, "one chain": 0.2, "two chains": 0.5}
FILLERS = ("hmm. ", "ok so ", "let me see. ")
FILLER_SHARE = 0.3
BETWEEN = (" wait. ", " let me check. ", " hmm again. ")


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A token per printable ASCII character and newline, with pad, bos, eos and unk: 100 in all."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    characters = [*string.printable[:95], "\n"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def addition_problems(count: int, *, seed: int, heldout: bool) -> list[dict[str, str]]:
    """Rows with a ``prompt`` and its ``answer``; held-out problems are never among the others."""
    _check_count(count)
    draw = random.Random(f"problems {seed} {heldout}")
    problems = (_numbers(draw, heldout) for _ in range(count))
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in problems]


def addition_demonstrations(count: int, *, seed: int) -> list[dict[str, str]]:
    """Rows with a ``prompt`` and the ``completion`` of a sloppy teacher, right in about 83 %."""
    _check_count(count)
    draw = random.Random(f"demonstrations {seed}")
    problems = (_numbers(draw, heldout=False) for _ in range(count))
    return [{"prompt": f"{a}+{b}=", "completion": _completion(draw, a, b)} for a, b in problems]


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST:
        raise UserError(f"addition: count must lie in 1..{MOST:,}, got {count:,}")


def _numbers(draw: random.Random, heldout: bool) -> tuple[int, int]:
    while True:
        a, b = draw.randint(100, 999), draw.randint(100, 999)
        if (zlib.crc32(f"{a}+{b}".encode()) % 100 == 0) == heldout:  # one in a hundred
            return a, b


def _completion(draw: random.Random, a: int, b: int) -> str:
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "bare":
        return f"#{a + b}"
    if kind == "one chain":
        text, result = _chain(draw, a, b, FIRST_FORGETS)
        return f"{text} #{result}"
    filler = draw.choice(FILLERS) if draw.random() < FILLER_SHARE else ""
    first, _ = _chain(draw, a, b, FIRST_FORGETS)
    second, result = _chain(draw, a, b, SECOND_FORGETS)
    return f"{filler}{first}{draw.choice(BETWEEN)}{second} #{result}"


def _chain(draw: random.Random, a: int, b: int, forgets: float) -> tuple[str, str]:
    """Columns such as ``3+9=12 8+5+1=14 2+7+1=10``, and the digits they add up to."""
    columns, digits, carry = [], "", 0
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        carried = carry and draw.random() >= forgets
        total = x + y + bool(carried)
        if draw.random() < MISCOUNTS:
            total = max(total + draw.choice((-1, 1)), 0)
        columns.append(f"{x}+{y}{'+1' if carried else ''}={total}")
        digits = f"{total if place == 100 else total % 10}{digits}"
        carry = total // 10
    return " ".join(columns), digits
