"""``rljax list [ROOM] [NAME] [--json]``: whatever a config can name, built in and plugged in."""

import importlib
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rljax import __version__, plugins
from rljax.config_file import builtin_configs
from rljax.errors import UserError, nearest
from rljax.host.metrics import json_text
from rljax.host.secrets import redact, redacted, say
from rljax.host.terminal import Parser, Terminal, reader_left
from rljax.rewards import PythonReward
from rljax.types import Algorithm, Controller, Transform
from rljax.yaml_text import read_yaml

# By what a function returns.
KINDS = {
    PythonReward: "reward in Python",
    Transform: "stage",
    Controller: "controller",
    Algorithm: "algorithm",
}
USUAL = {"rewards": "reward", "shaping": "stage", "algorithms": "algorithm"}
ROOMS = (*USUAL, "families", "recipes")
# What a run knows by itself, and fills in for a keyword that has no default.
KNOWN_TO_A_RUN = (
    *("tokenizer", "vocab_size", "seed", "budget_tokens", "min_tokens", "max_tokens"),
    "train_prompts",
)
HOW_TO_NAME = {
    "rewards": "rewards: {my_name: {fn: NAME, keyword: value}}",
    "shaping": "shaping: {my_name: {fn: NAME, keyword: value}}; controllers for numbers in it",
    "algorithms": "algorithm: {fn: NAME, keyword: value}",
    "families": "models: {policy: FOLDER}, or {fn: llama, …}, or {fn: fresh, model_type: NAME, …}",
    "recipes": "rljax launch configs/NAME.yaml [key=value ...]",
}


class Keyword(NamedTuple):
    """One that a function takes beside its name."""

    name: str
    type: str
    default: Any = None
    given_by: typing.Literal["default", "run", "user"] = "default"

    def __str__(self) -> str:
        mark = {"run": " (run)", "user": " (needed)"}
        return f"{self.name}{mark.get(self.given_by) or f': {yaml_text(self.default)}'}"


class Entry(NamedTuple):
    """Something that a config can name."""

    room: str
    kind: str
    name: str
    package: str
    version: str
    doc: str
    keywords: tuple[Keyword, ...] = ()
    path: str | None = None  # of a recipe
    fault: str | None = None  # why it cannot be used

    @property
    def summary(self) -> str:
        """The first paragraph of what is said about it."""
        return " ".join(self.doc.split("\n\n")[0].split())


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for a name that nothing has."""
    parser = Parser(
        prog="rljax list",
        usage=f"%(prog)s [{'|'.join(ROOMS)}] [NAME] [--json]",
        description="List whatever a config can name: that of rljax, and that of plug-ins, which "
        "are imported for it.",
        epilog="Example: rljax list shaping; rljax list length_band",
    )
    parser.add_argument("which", nargs="*", metavar="ROOM or NAME")
    parser.add_argument(
        "--json", action="store_true", help="JSON lines, as where the output is no terminal"
    )
    options = parser.parse_args(arguments)
    try:
        entries, in_full = chosen(options.which)
    except UserError as error:
        say(f"error: list: {error}")
        return 2
    if not options.json and Terminal().rich:
        parts = map(page, entries) if in_full else [tables(entries)]
        Console(highlight=False).print(*parts)
        return 0
    try:
        print("\n".join(json_text(redacted(as_json(entry))) for entry in entries), flush=True)
    except BrokenPipeError:
        reader_left()
    return 0


def chosen(which: list[str]) -> tuple[list[Entry], bool]:
    """The entries that ``[ROOM] [NAME]`` stands for, and whether they were named.

    Raises ``UserError`` if there are none.
    """
    rooms = [which[0]] if which and which[0] in ROOMS else list(ROOMS)
    names = which[len(rooms) == 1 :]
    if len(names) > 1:
        raise UserError(f"expected one name at most, got {' and '.join(names)}")
    entries = [entry for room in rooms for entry in entries_of(room)]
    if not names:
        return entries, False
    found = [entry for entry in entries if entry.name == names[0]]
    if not found:
        known = {entry.name for entry in entries} | (set(ROOMS) if len(rooms) > 1 else set())
        where = f" in {rooms[0]}" if len(rooms) == 1 else ""
        raise UserError(f'nothing is called "{names[0]}"{where}; {nearest(names[0], known)}')
    return found, True


def entries_of(room: str) -> list[Entry]:
    """All of a room, by name."""
    if room == "recipes":
        return [_recipe(path) for path in builtin_configs().values()]
    if room == "families":
        return [*_families()]
    module = importlib.import_module(f"rljax.{room}")
    entries = [*_built_in(module, room), *_plugged_in(module, room)]
    return sorted(entries, key=lambda entry: entry.name)


def keywords_of(fn: Callable, open_positionals: int = 0) -> tuple[Keyword, ...]:
    """The keywords of a function, behind the arguments that are no keywords."""
    try:
        hints = typing.get_type_hints(fn)
    except Exception:  # names for type checkers alone
        hints = {}
    found = []
    for name, parameter in list(inspect.signature(fn).parameters.items())[open_positionals:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        hint = type_text(hints.get(name, parameter.annotation))
        if parameter.default is not parameter.empty:
            found.append(Keyword(name, hint, parameter.default))
        else:
            found.append(Keyword(name, hint, None, "run" if name in KNOWN_TO_A_RUN else "user"))
    return tuple(found)


def type_text(hint: Any) -> str:
    """A type as a signature writes it, without the modules that its names are of.

    >>> type_text(float | Transform), type_text(inspect.Parameter.empty)
    ('float | Transform', '')
    """
    if hint is inspect.Parameter.empty or isinstance(hint, str):
        return hint if isinstance(hint, str) else ""
    return re.sub(r"\b(\w+\.)+(?=\w)", "", inspect.formatannotation(hint))


def yaml_text(value: Any) -> str:
    """A default as YAML has it.

    >>> yaml_text(None), yaml_text(0.3), yaml_text({}), yaml_text("k1"), yaml_text("#")
    ('null', '0.3', '{}', 'k1', '"#"')
    """
    if isinstance(value, str) and re.fullmatch(r"[\w/.-]+", value) and read_yaml(value) == value:
        return value
    return json_text(_plain(value))


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry for a machine."""
    keywords = [
        {**keyword._asdict(), "default": _plain(keyword.default)} for keyword in entry.keywords
    ]
    return {**entry._asdict(), "summary": entry.summary, "keywords": keywords}


def tables(entries: list[Entry]) -> Group:
    """A table for each room: names, what they are, their keywords."""
    parts: list[Any] = []
    for room in ROOMS:
        mine = [entry for entry in entries if entry.room == room]
        if not mine:
            continue
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for entry in mine:
            table.add_row(Text(redact(entry.name)), _cell(entry))
        parts += [Text(room, "bold underline"), Text(HOW_TO_NAME[room], "dim"), table, Text()]
    if any(keyword.given_by == "run" for entry in entries for keyword in entry.keywords):
        legend = "(run): the run fills it in. (needed): no default. rljax list NAME tells more."
        parts.append(Text(legend, "dim"))
    return Group(*parts)


def page(entry: Entry) -> Group:
    """All there is to say about one."""
    where = entry.path or f"{entry.package} {entry.version}"
    heading = Text.assemble((redact(entry.name), "bold"), redact(f"  {entry.kind}, {where}"))
    parts: list[Any] = [heading, Text(), *_reflowed(redact(entry.doc))]
    if entry.fault:
        parts.append(Padding(Text(redact(entry.fault), "red"), (0, 0, 1, 2)))
    if entry.keywords:
        table = Table("keyword", "type", "default", box=box.SIMPLE)
        told = {"run": "(the run fills it in)", "user": "(needed)"}
        for keyword in entry.keywords:
            default = told.get(keyword.given_by) or yaml_text(keyword.default)
            cells = (keyword.name, keyword.type, default)
            table.add_row(*(Text(redact(cell)) for cell in cells))
        parts.append(table)
    return Group(*parts)


def _reflowed(doc: str) -> Iterator[Padding]:
    """A docstring for a terminal of any width: its paragraphs and arguments, each with the indent
    that it has."""
    # A line goes on with the one above if it stands at the margin, or hangs from an argument.
    goes_on = r"(?m)(?<=\S)\n(?=\S)|^( +)(\S.*)\n\1 +(?=\S)"
    for text in doc.split("\n\n"):
        while ">>>" not in text and (joined := re.sub(goes_on, _join, text)) != text:
            text = joined
        for line in (*text.splitlines(), ""):
            indent = len(line) - len(line.lstrip())
            yield Padding(Text(line.strip()), (0, 0, 0, 2 + indent))


def _join(match: re.Match[str]) -> str:
    return " " if match[1] is None else f"{match[1]}{match[2]} "


def _cell(entry: Entry) -> Text:
    """What a table says of an entry."""
    notes = [] if entry.kind in (USUAL.get(entry.room), "family", "recipe") else [entry.kind]
    notes += [] if entry.package == "rljax" else [f"of {entry.package} {entry.version}"]
    text = Text(redact(entry.summary))
    if notes:
        text.append(f" ({', '.join(notes)})", "cyan")
    if entry.fault:
        text.append(f"\n{redact(entry.fault)}", "red")
    if entry.keywords and entry.kind != "family":
        text.append(f"\n{redact(', '.join(map(str, entry.keywords)))}", "dim")
    return text


def _built_in(module: ModuleType, room: str) -> Iterator[Entry]:
    for name in module.__all__:
        fn = getattr(module, name)
        kind = _kind(fn, room)
        if kind is not None:
            yield Entry(
                *(room, kind, name, "rljax", __version__),
                doc=inspect.getdoc(fn) or "",
                keywords=keywords_of(fn, open_positionals=kind == "reward"),
                fault=_ambiguous(name, module),
            )


def _plugged_in(module: ModuleType, room: str) -> Iterator[Entry]:
    for plugin in plugins.installed(module.__name__):
        entry = Entry(room, USUAL[room], plugin.name, plugin.package, plugin.version, doc="")
        try:
            fn = plugins.load(plugin)
            kind = _kind(fn, room) or USUAL[room]
            keywords = keywords_of(fn, open_positionals=kind == "reward")
        except (UserError, ValueError) as error:  # the latter for what is not written in Python
            yield entry._replace(fault=str(error))
            continue
        yield entry._replace(
            kind=kind,
            doc=inspect.getdoc(fn) or "",
            keywords=keywords,
            fault=_ambiguous(plugin.name, module),
        )


def _families() -> Iterator[Entry]:
    from rljax.models import families  # only here: it takes a second

    for name in families.__all__:
        fn = getattr(families, name)
        doc = inspect.getdoc(fn) or ""
        yield Entry("families", "model", name, "rljax", __version__, doc, keywords_of(fn))
    for name, fn in families.FAMILIES.items():
        keywords = tuple(
            Keyword(size.name, type_text(size.type), size.default)
            for size in families.sizes_of(name)
        )
        yield Entry("families", "family", name, "rljax", __version__, fn.__doc__ or "", keywords)


def _recipe(path: Path) -> Entry:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
    doc = "\n".join(line[1:].removeprefix(" ") for line in comments)
    return Entry("recipes", "recipe", path.stem, "rljax", __version__, doc, path=str(path))


def _kind(fn: Any, room: str) -> str | None:
    """What a function makes, by what it says to return; None for a helper that no config names."""
    try:
        hint = typing.get_type_hints(fn).get("return")
    except Exception:  # names for type checkers alone, or no plain function
        return None
    if room == "rewards" and inspect.isfunction(fn) and isinstance(hint, type):
        return KINDS.get(hint, "reward")
    return KINDS.get(hint)


def _ambiguous(name: str, module: ModuleType) -> str | None:
    """Why a name is refused that is there more than once."""
    try:
        plugins.find(name, module.__name__, built_in=name in module.__all__)
    except UserError as error:
        return str(error)
    return None


def _plain(value: Any) -> Any:
    """A default as JSON can write it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
