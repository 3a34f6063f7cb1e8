"""From the columns that people have to those that a layout needs."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rljax.data.rows import Rows
from rljax.data.values import Row, RowError, Turns, number, said, truth, turns
from rljax.errors import UserError, nearest
from rljax.types import Layout

# Where verl and TRL have what an answer is compared with.
GROUND_TRUTHS = ("reward_model.ground_truth", "ground_truth", "solution")
TEXT = ("prompt", "completion", "response", "chosen", "rejected", "answer")


def arrange(rows: Rows, layout: Layout, columns: Mapping[str, str]) -> tuple[Rows, str]:
    """Rows with the columns of a layout, and which were recognised, for the log.

    - ``prompts``: ``prompt``, text or chat messages. All other columns stay. Unless there is an
      ``answer``, it is verl's ``reward_model.ground_truth``, or ``ground_truth``, or ``solution``:
      the first that every row has.
    - ``demonstrations``: ``prompt`` and ``completion`` (or ``response``), or whole conversations as
      ``messages``; perhaps a ``weight`` of the row in the loss.
    - ``pairs``: ``prompt``, ``chosen`` and ``rejected``, or the last two as whole conversations,
      whose common beginning is the prompt; perhaps a ``margin``. Pairs of equal answers say nothing
      and are left out.
    - ``labelled``: ``prompt``, ``completion`` (or ``response``) and ``label``, true or 1 where the
      response is desirable; or pairs, each of which becomes two rows.

    A chat message has a ``role``, text as its ``content`` and perhaps, as in OpenAI's format, a
    ``weight`` of 0 or 1.

    Args:
      columns: our name -> theirs; a path such as ``solution.final`` leads into a column. A number
        becomes text where it is mapped to a column of text.

    Raises ``UserError`` for a column that is missing, and, by the row's place, for a value that is
    missing or of the wrong type.
    """
    if not rows.rows:
        raise UserError(f"{rows.name}: no rows")
    rows = _mapped(rows, layout, columns)
    there = {name for row in rows.rows for name, value in row.items() if value is not None}
    form = _form(rows, layout, there)
    optional = [name for name in form.takes if name in there]
    truth_path = _ground_truth(rows, there) if layout == "prompts" else None
    arranged: list[Row] = []
    origin: list[int] = []
    for index, row in enumerate(rows.rows):
        try:
            for name in (*form.needs, *optional):
                if row.get(name) is None:
                    raise RowError(f'"{columns.get(name, name)}" is missing or null')
            read = form.read({name: x for name, x in row.items() if x is not None or form.keeps})
            if arranged and read and _is_chat(read[0]) != _is_chat(arranged[0]):
                raise RowError('"prompt" is text in some rows, and chat messages in others')
        except RowError as fault:
            raise UserError(f"{rows.where(index)}: {fault}") from None
        if truth_path is not None:
            read = [{**new, "answer": find(row, truth_path)} for new in read]
        arranged += read
        origin += [index] * len(read)
    if not arranged:
        raise UserError(f'{rows.name}: "chosen" and "rejected" are the same in every row')
    phrase = _phrase(form, optional, columns, there, truth_path)
    if equal := len(rows.rows) - len(set(origin)):
        phrase += f"; {equal:,} pairs of equal answers left out"
    if origin == list(range(len(rows.rows))):
        return rows._replace(rows=arranged), phrase
    return Rows(arranged, rows.name, places=[rows.where(index) for index in origin]), phrase


def offers(rows: Rows, layout: Layout, columns: Mapping[str, str]) -> bool:
    """Whether the rows have the columns of a layout, whatever is in them."""
    there = {name for row in rows.rows for name, value in row.items() if value is not None}
    there |= {ours for ours, theirs in columns.items() if find(rows.rows[0], theirs) is not None}
    return any(there.issuperset(form.needs) for form in FORMS[layout])


def find(row: Row, path: str) -> Any:
    """A column by its name, or by a path such as ``reward_model.ground_truth``; None if absent."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


class _Form(NamedTuple):
    """Columns that make up a layout."""

    needs: tuple[str, ...]
    read: Callable[[Row], list[Row]]  # what a row becomes
    takes: tuple[str, ...] = ()  # columns that may be there too
    note: str = ""
    keeps: bool = False  # all other columns


def _prompt(row: Row) -> list[Row]:
    return [{**row, "prompt": said(row, "prompt")}]


def _demonstration(row: Row) -> list[Row]:
    prompt = said(row, "prompt")
    completion = _answer(row, "completion" if "completion" in row else "response", prompt)
    return [{"prompt": prompt, "completion": completion} | _weight(row)]


def _conversation(row: Row) -> list[Row]:
    messages = turns(row, "messages")
    if not any(turn["role"] == "assistant" for turn in messages[1:]):
        raise RowError('"messages": the assistant answers no message, so nothing to learn')
    return [{"messages": messages} | _weight(row)]


def _pair(row: Row) -> list[Row]:
    chosen, rejected = said(row, "chosen"), said(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError('one of "chosen" and "rejected" is text, the other chat messages')
    if chosen == rejected:
        return []
    prompt = said(row, "prompt") if "prompt" in row else None
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        prompt, chosen, rejected = _parted(chosen, rejected)
    if prompt is None:
        raise RowError('"chosen" and "rejected" are text, so that a "prompt" is needed')
    answers = {"chosen": chosen, "rejected": rejected}
    pair = {"prompt": prompt} | {name: _answer(answers, name, prompt) for name in answers}
    return [pair | ({"margin": number(row, "margin")} if "margin" in row else {})]


def _labelled(row: Row) -> list[Row]:
    (demonstration,) = _demonstration(row)
    return [demonstration | {"label": truth(row, "label")}]


def _both(row: Row) -> list[Row]:
    return [
        {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
        for pair in _pair(row)
        for name in ("chosen", "rejected")
    ]


def _weight(row: Row) -> Row:
    return {"weight": number(row, "weight", minimum=0)} if "weight" in row else {}


def _answer(row: Row, column: str, prompt: str | Turns) -> str | Turns:
    """An answer to a prompt: text, or, to chat messages, messages of the assistant's."""
    answer = said(row, column)
    if isinstance(answer, list):
        if isinstance(prompt, str):
            raise RowError(f'"{column}": chat messages, while "prompt" is text')
        if answer[: len(prompt)] == prompt:  # a whole conversation
            answer = answer[len(prompt) :]
        if not answer or any(turn["role"] != "assistant" for turn in answer):
            raise RowError(
                f'"{column}": what follows the prompt must be messages of the assistant\'s; whole '
                'conversations are demonstrations as "messages"'
            )
    return answer


def _parted(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """The common beginning of two conversations, and what follows it."""
    common = 0
    for ours, theirs in zip(chosen, rejected, strict=False):
        if ours != theirs:
            break
        common += 1
    if not common:
        raise RowError(
            '"chosen" and "rejected" have no beginning in common, and there is no "prompt"'
        )
    return chosen[:common], chosen[common:], rejected[common:]


_CONVERSATIONS = "; the prompt is the common beginning of chosen and rejected"
FORMS: dict[Layout, tuple[_Form, ...]] = {
    "prompts": (_Form(("prompt",), _prompt, keeps=True),),
    "demonstrations": (
        _Form(("prompt", "completion"), _demonstration, ("weight",)),
        _Form(("prompt", "response"), _demonstration, ("weight",)),
        _Form(("messages",), _conversation, ("weight",)),
    ),
    "pairs": (
        _Form(("prompt", "chosen", "rejected"), _pair, ("margin",)),
        _Form(("chosen", "rejected"), _pair, ("margin",), _CONVERSATIONS),
    ),
    "labelled": (
        _Form(("prompt", "completion", "label"), _labelled),
        _Form(("prompt", "response", "label"), _labelled),
        _Form(("prompt", "chosen", "rejected"), _both, note="; each pair becomes two rows"),
        _Form(("chosen", "rejected"), _both, note=f"{_CONVERSATIONS}; each pair becomes two rows"),
    ),
}


def _form(rows: Rows, layout: Layout, there: set[str]) -> _Form:
    form = next((form for form in FORMS[layout] if there.issuperset(form.needs)), None)
    if form is None:
        near = max(FORMS[layout], key=lambda form: len(there & set(form.needs)))
        lacking = next(name for name in near.needs if name not in there)
        close = difflib.get_close_matches(lacking, there, n=1)
        others = [
            name
            for name, forms in FORMS.items()
            if name != "prompts" and any(there.issuperset(form.needs) for form in forms)
        ]
        needed = "; or ".join(", ".join(form.needs) for form in FORMS[layout])
        hint = f"name it, such as data.columns={{{lacking}: {close[0] if close else 'its_name'}}}"
        if others and not close:
            hint = f"these are {' or '.join(others)}, which other algorithms learn from"
        raise UserError(
            f"{rows.name}: {layout} need the columns {needed}; there is no "
            f'"{lacking}" among {", ".join(sorted(there))}; {hint}'
        )
    return form


def _mapped(rows: Rows, layout: Layout, columns: Mapping[str, str]) -> Rows:
    """Rows with the columns that ``data.columns`` names: those of this layout, and only where they
    are not called so already."""
    valid = {name for form in FORMS[layout] for name in (*form.needs, *form.takes)}
    others = {name for forms in FORMS.values() for f in forms for name in (*f.needs, *f.takes)}
    others = (others | {"answer"}) - valid
    if layout == "prompts":
        others.discard("answer")  # nor is any other column refused, which a reward may read
    chosen = {}
    for ours, theirs in columns.items():
        if ours in others:
            continue
        if layout != "prompts" and ours not in valid:
            raise UserError(
                f'data.columns: {layout} have no column "{ours}"; {nearest(ours, valid)}'
            )
        if any(find(row, theirs) is not None for row in rows.rows):
            chosen[ours] = theirs
        elif not any(row.get(ours) is not None for row in rows.rows):
            raise UserError(
                f'data.columns.{ours}: {rows.name} has no column "{theirs}"; '
                f"{nearest(theirs, _paths(rows.rows[0]))}"
            )

    def mapped(row: Row) -> Row:
        new = {ours: find(row, theirs) for ours, theirs in chosen.items()}
        for name, value in new.items():
            if name in TEXT and isinstance(value, int | float) and not isinstance(value, bool):
                new[name] = str(value)
        return {**row, **new}

    return rows._replace(rows=[mapped(row) for row in rows.rows]) if chosen else rows


def _paths(row: Row, above: str = "") -> list[str]:
    """The columns of a row, and the paths into them."""
    paths = []
    for name, value in row.items():
        paths.append(above + name)
        if isinstance(value, dict):
            paths += _paths(value, f"{above}{name}.")
    return paths


def _ground_truth(rows: Rows, there: set[str]) -> str | None:
    """The first column in place of ``answer`` that every row has."""
    if "answer" in there:
        return None
    return next(
        (p for p in GROUND_TRUTHS if all(find(row, p) is not None for row in rows.rows)), None
    )


def _is_chat(row: Row) -> bool:
    return not isinstance(row.get("prompt"), str)


def _phrase(
    form: _Form,
    optional: list[str],
    columns: Mapping[str, str],
    there: set[str],
    truth_path: str | None,
) -> str:
    names = [*form.needs, *optional]
    if form.keeps:
        names += [name for name in ("data_source", "answer") if name in there]
        names += [name for name in columns if name not in names]
    words = []
    for name in names:
        ours, theirs = ("completion" if name == "response" else name), columns.get(name, name)
        words.append(ours if ours == theirs else f"{theirs} as {ours}")
    words += [f"{truth_path} as answer"] if truth_path else []
    is_verl = form.keeps and ("data_source" in there or truth_path == GROUND_TRUTHS[0])
    whose = "verl's " if is_verl else ""
    return f"{whose}columns: {', '.join(words)}{form.note}"
