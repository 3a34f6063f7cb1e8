"""Data files and model folders with whatever is wrong with them: rows, or one line that says where.

``RLJAX_FUZZ=3000 pytest tests/data/test_fuzz_files.py`` tries thousands of them.
"""

import copy
import csv
import functools
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from folders import TURNS, write_folder
from fuzzing import HOSTILE, at, mutated_bytes, places, refusal, refused, tries
from hypothesis import given
from hypothesis import strategies as st

from rljax import doctor
from rljax.data import (
    Limits,
    PromptTable,
    Rows,
    arrange,
    demonstration_table,
    labelled_table,
    pair_table,
    read_rows,
)
from rljax.host.pretrained import eos_ids_of, load_tokenizer, pretrained, settle_special_tokens
from rljax.tasks import character_tokenizer, sampled_labels, sampled_pairs

CHAT = [{"role": "user", "content": "1+1="}]
ANSWER = [{"role": "assistant", "content": "2"}]
OTHER = [{"role": "assistant", "content": "3", "weight": 1}]
ROWS = {  # by layout
    "prompts": [
        {"prompt": "1+1=", "answer": "2", "level": 1, "share": 0.5, "easy": True},
        {"prompt": CHAT, "reward_model": {"ground_truth": "2"}, "data_source": "x"},
    ],
    "demonstrations": [
        {"prompt": "1+1=", "completion": "2", "weight": 0.5},
        {"prompt": CHAT, "response": ANSWER},
        {"messages": [*CHAT, *ANSWER, *CHAT, *OTHER], "weight": 1},
    ],
    "pairs": [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 0.5},
        {"chosen": [*CHAT, *ANSWER], "rejected": [*CHAT, *OTHER]},
    ],
    "labelled": [
        {"prompt": "1+1=", "completion": "2", "label": True},
        {"prompt": CHAT, "completion": ANSWER, "label": 0},
    ],
}
SAMPLE = {"prompt_index": 1, "prompt": "1+1=", "response": "2", "greedy": False}
SAMPLE |= {"truncated": False, "correct": True}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {},
    "qwen3_moe": MOE,
    "phi3": {"pad_token_id": 0},
}
DAMAGED = [
    f"{name}.json" for name in ("config", "tokenizer", "tokenizer_config", "generation_config")
]
DAMAGED += ["chat_template.jinja"]
KINDS = [(layout, row) for layout, rows in ROWS.items() for row in rows]


@functools.cache
def tokenizer():
    found = character_tokenizer()
    found.chat_template = TURNS
    return found


def learn(path: Path, layout: str, columns: dict[str, str]) -> None:
    """Reads a file to the arrays of a layout, as a run does."""
    rows, _ = arrange(read_rows(str(path)), layout, columns)
    limits = Limits(max_prompt_tokens=16, max_tokens=32, overlong="truncate")
    match layout:
        case "prompts":
            table = PromptTable([rows], tokenizer(), limits)
        case "demonstrations":
            table = demonstration_table([rows], tokenizer(), limits)
        case "pairs":
            table = pair_table([rows], tokenizer(), limits)
        case "labelled":
            table = labelled_table([rows], tokenizer(), limits, mismatched=False)
    assert len(table)
    table.take([0])
    assert table.fingerprint


def checked(path: Path, action) -> None:
    """Rows, or one line that names the file, and the line or the row in it if there is one."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):  # no number is made infinite
        said = refusal(action)
    if said is not None:
        assert path.name in said or said.startswith(("data.columns", "tokenizer: ")), said


def lines_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def csv_of(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows([str(value) for value in row.values()] for row in rows)
    return text.getvalue().encode()


def parquet_of(rows: list[dict]) -> bytes:
    with io.BytesIO() as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue()


SNIPPETS = [
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\r\n",
        b"\r",
        b"\n",
        b"\xe2\x80\xa8",
        b"\x0c",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b"null", b"true"),
    *(
        b'"\\ud800"',
        b'"',
        b"'",
        b"\\",
        b",",
        b", ,",
        b":",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"[]\n",
        b"1\n",
    ),
    *(
        b'"prompt": 1, ',
        b'"__row": 1, ',
        b"x" * 10**5,
        b"\x1f\x8b\x08\x00",
        b"\x28\xb5\x2f\xfd\x00",
    ),
]
WRITERS = {
    ".jsonl": lines_of,
    ".json": lambda rows: json.dumps(rows).encode("utf-8", "surrogatepass"),
}
WRITERS |= {".csv": csv_of, ".parquet": parquet_of}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def mutated_value(draw, value):
    """A value, or another in the place of a part of it."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(HOSTILE)
    value = value.copy()
    if isinstance(value, list):
        value = dict(enumerate(value))
    name = draw(st.sampled_from(sorted(value)))
    what = draw(st.sampled_from(["within", "within", "delete", "rename"]))
    if what == "within":
        value[name] = draw(mutated_value(value[name]))
    else:
        old = value.pop(name)
        if what == "rename":
            value[draw(st.text(max_size=9))] = old
    return value if isinstance(name, str) else list(value.values())


@st.composite
def mutated_rows(draw, row: dict) -> list:
    """Rows like one, of which some hold something else."""
    rows = [row] * draw(st.integers(1, 3))
    changed = [draw(mutated_value(row)) for _ in range(draw(st.integers(1, 2)))]
    return draw(st.sampled_from([[*rows, *changed], [*changed, *rows], changed, changed * 2]))


PLAIN = {"prompt": "answer"}
NESTED = [{"answer": "reward_model.ground_truth"}, {"label": "x.y"}, {"completion": "prompt"}]
COLUMNS = st.sampled_from([{}, {}, {}, PLAIN, *NESTED])


@given(data=st.data())
@tries(150)
def test_mutated_rows_are_read_or_refused(folder, data):
    layout, row = data.draw(st.sampled_from(KINDS))
    suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv"]))
    path = folder / f"rows{suffix}"
    rows = data.draw(mutated_rows(row))
    if suffix == ".csv":
        rows = [row for row in rows if isinstance(row, dict)] or [{}]
        write = csv_of
    else:
        write = WRITERS[suffix]
    try:
        path.write_bytes(write(rows))
    except ValueError:  # a number of thousands of digits, or no text
        return
    columns = data.draw(COLUMNS)
    checked(path, lambda: learn(path, layout, columns))


@given(data=st.data())
@tries(60)
def test_mutated_tables_are_read_or_refused(folder, data):
    """Of parquet, whose columns have types."""
    layout, row = data.draw(st.sampled_from(KINDS))
    path = folder / "rows.parquet"
    rows = [row for row in data.draw(mutated_rows(row)) if isinstance(row, dict)]
    try:
        path.write_bytes(parquet_of(rows))
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, IndexError):
        return  # no column can hold these
    columns = data.draw(COLUMNS)
    checked(path, lambda: learn(path, layout, columns))


@given(data=st.data())
@tries(150)
def test_mutated_files_are_read_or_refused(folder, data):
    layout, row = data.draw(st.sampled_from(KINDS))
    suffix = data.draw(st.sampled_from([".jsonl", ".ndjson", ".json", ".csv", ".parquet"]))
    written = WRITERS[".jsonl" if suffix == ".ndjson" else suffix]([row] * 2)
    path = folder / f"file{suffix}"
    path.write_bytes(data.draw(mutated_bytes(written, SNIPPETS)))
    checked(path, lambda: learn(path, layout, {}))


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".parquet"])
def test_what_is_no_file_of_rows_is_refused(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    (tmp_path / "folder").with_suffix(suffix).mkdir()
    (tmp_path / "loop").with_suffix(suffix).symlink_to(f"loop{suffix}")
    (tmp_path / "pipe").with_suffix(suffix).symlink_to("/dev/zero")
    for name in ("folder", "loop", "pipe"):
        there = (tmp_path / name).with_suffix(suffix)
        assert there.name in refusal(lambda there=there: read_rows(str(there)))
    for data in (b"", b"\n", b"\xef\xbb\xbf", b"\0" * 99, gzip.compress(lines_of(ROWS["pairs"]))):
        path.write_bytes(data)
        assert path.name in refusal(lambda: read_rows(str(path)))


@given(data=st.data())
@tries(30, share=0.3)
def test_mutated_samples_are_read_or_refused(folder, data):
    path = folder / "samples.jsonl"
    rows = data.draw(mutated_rows(SAMPLE))
    try:
        path.write_bytes(lines_of([SAMPLE, SAMPLE | {"correct": False}, *rows]))
    except ValueError:
        return
    for task in (sampled_pairs, sampled_labels):
        for heldout in (True, False):
            checked(path, lambda task=task, heldout=heldout: task(str(path), heldout=heldout))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model folders, of a family of each kind."""
    parent = tmp_path_factory.mktemp("models")
    for name, keys in FAMILIES.items():
        write_folder(parent / name, name, tokenizer=tokenizer(), **keys)
    write_folder(parent / "value", head="value", tokenizer=tokenizer())
    return parent


def damage(draw, path: Path) -> None:
    """Changes a value of a JSON file, or its bytes."""
    if path.suffix == ".json" and draw(st.booleans()):
        tree = json.loads(path.read_text())
        for _ in range(draw(st.integers(1, 2))):
            *above, name = draw(st.sampled_from(places(tree)[:2000]))
            parent = at(tree, tuple(above))
            what = draw(st.sampled_from(["value", "value", "delete"]))
            if what == "value":
                parent[name] = copy.deepcopy(draw(HOSTILE))
            else:
                del parent[name]
            if not tree:
                break
        try:
            text = json.dumps(tree)
        except (ValueError, TypeError):
            return
        path.write_text(text)
    else:
        new = draw(mutated_bytes(path.read_bytes(), SNIPPETS))
        path.write_bytes(new)


def use(folder: Path) -> None:
    """What a run does with a folder before it begins."""
    found = pretrained(folder)
    found_tokenizer = load_tokenizer(folder)
    settle_special_tokens(found_tokenizer, eos_ids_of(found_tokenizer, folder))
    rows, _ = arrange(Rows([{"prompt": CHAT}], str(folder)), "prompts", {})
    if found_tokenizer.chat_template is not None:
        PromptTable([rows], found_tokenizer, Limits())
    PromptTable([Rows([{"prompt": "1+1="}], str(folder))], found_tokenizer, Limits())
    return found


@given(data=st.data())
@tries(20, share=0.5)
def test_a_damaged_model_is_used_or_refused(folder, models, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in models.iterdir())))
    copied = folder / "model"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(models / name, copied)
    which = data.draw(
        st.sampled_from([path.name for path in sorted(copied.iterdir()) if path.name in DAMAGED])
    )
    damage(data.draw, copied / which)
    checked(copied, lambda: use(copied))
    refused(doctor.main, str(copied))


@given(data=st.data())
@tries(20, share=0.5)
def test_damaged_weights_are_refused(folder, models, data):
    name = data.draw(st.sampled_from(sorted(path.name for path in models.iterdir())))
    copied = folder / "weights"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(models / name, copied)
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    new = data.draw(mutated_bytes(whole[:header], SNIPPETS))
    tail = whole[header:]
    if data.draw(st.booleans()):
        tail = tail[: data.draw(st.integers(0, len(tail)))]
    if data.draw(st.booleans()):  # its length is told as it is
        new = len(new[8:]).to_bytes(8, "little") + new[8:]
    path.write_bytes(new + tail)
    refused(doctor.main, str(copied))
