"""Where rows come from: files, folders, and data sets of the Hugging Face hub."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from rljax.data.formats import READERS, one_line, read_file
from rljax.data.rows import Rows
from rljax.errors import UserError, nearest

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What the hub and `datasets` write beside data.
NO_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")


def read_rows(
    source: str, *, folder: Path | None = None, split: str = "train", subset: str | None = None
) -> Rows:
    """The rows of a file, of a folder, or of a data set of the Hugging Face hub.

    - a file: ``.jsonl``, ``.ndjson``, ``.json`` (a list of objects, ``{"data": [...]}``, or an
      object per line), ``.parquet``, ``.csv``
    - a folder: a data set that ``datasets`` has saved, or data files of one kind. Where their names
      tell of splits (``train-00000-of-00002.parquet``), those of ``split`` are read.
    - else, a hub id such as ``openai/gsm8k``, with its ``subset``

    A column of a CSV becomes numbers where all of it is written as Python writes them (12, 0.5; but
    not 007 or 3.10), and booleans where all of it is true or false; an empty cell in it is None.
    Prompts, responses and answers (``formats.TEXT_COLUMNS``) stay text.

    Args:
      source: looked for in the working directory, then in ``folder``.

    Raises ``UserError`` for whatever is missing or malformed.
    """
    places = [Path(os.path.expanduser(source))]
    if folder is not None and not places[0].is_absolute():
        places.append(folder / source)
    path = next((place for place in places if os.path.exists(place)), None)
    if path is None:
        if HUB_ID.fullmatch(source) and places[0].suffix not in READERS:
            return _from_hub(source, split, subset, _missing(source, places))
        raise UserError(_missing(source, places))
    if subset is not None:
        raise UserError(f'{path}: the subset "{subset}" is of hub data sets; this is none')
    return _from_folder(path, split) if path.is_dir() else read_file(path)


def _missing(source: str, places: Sequence[Path]) -> str:
    found: list[str] = []
    for place in places:
        if os.path.isdir(place.parent):
            names = [p.name for p in place.parent.iterdir() if not p.name.startswith(".")]
            close = difflib.get_close_matches(place.name, names, n=1)
            found += [str(place.with_name(name)) for name in close]
    hint = f'; did you mean "{found[0]}"?' if found else ""
    others = f", nor in {places[1].parent}" if len(places) > 1 else ""
    return f"{source}: no such file or folder{others}{hint}"


def _from_folder(path: Path, split: str) -> Rows:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path, split)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in READERS
        and file.is_file()
        and file.name not in NO_DATA
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(f"{path}: a folder without data files ({', '.join(sorted(READERS))})")

    def splits_of(file: Path) -> set[str]:
        name = str(file.relative_to(path)).replace("_", "-")
        words = {*SPLITS, split}
        return {w for w in words if re.search(rf"(?i)\b{re.escape(w.replace('_', '-'))}\b", name)}

    there = set().union(*(splits_of(file) for file in files))
    if there:
        files = [file for file in files if split in splits_of(file)]
        if not files:
            raise UserError(f'{path}: no files of the split "{split}"; {nearest(split, there)}')
    kinds = {READERS[file.suffix.lower()]: file.suffix for file in files}
    if len(kinds) > 1:
        raise UserError(f"{path}: has files of {' and '.join(sorted(kinds.values()))}; name one")
    parts = [read_file(file) for file in files]
    rows = [row for part in parts for row in part.rows]
    places = [part.where(index) for part in parts for index in range(len(part.rows))]
    return Rows(rows, str(path), places=places)


def _saved(path: Path, split: str) -> Rows:
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path}: the saved data set cannot be read: {one_line(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f'{path}: no split "{split}"; {nearest(split, data)}')
        data = data[split]
    return _of_dataset(data, str(path))


def _from_hub(source: str, split: str, subset: str | None, missing: str) -> Rows:
    import datasets

    name = source if subset is None else f"{source} ({subset})"
    try:
        data = datasets.load_dataset(source, subset, split=split)
    except Exception as error:  # the hub, the network, a data set's own code
        raise UserError(
            f'{missing}; nor can the split "{split}" of {name} be loaded from the Hugging Face '
            f"hub: {one_line(error)}"
        ) from error
    return _of_dataset(data, source)


def _of_dataset(data, name: str) -> Rows:
    if not len(data):
        raise UserError(f"{name}: no rows")
    return Rows(data.to_list(), name)
