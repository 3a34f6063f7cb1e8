"""The files, folders and hub data sets that people have, and what is wrong with them."""

import csv
import json

import datasets
import pyarrow as pa
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rljax.data import Rows, read_rows
from rljax.errors import UserError

ROWS = [{"prompt": "1+1=", "level": 1}, {"prompt": "é", "level": 2}]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        parquet.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "second"),
    [
        ("a.jsonl", lines(ROWS), "a.jsonl:2"),
        ("a.ndjson", "\n  \n" + lines(ROWS), "a.ndjson:4"),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n").encode(), "a.jsonl:2"),
        ("a.json", json.dumps(ROWS), "a.json: row 2"),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "a.json: row 2"),
        ("a.json", lines(ROWS), "a.json:2"),
        ("a.JSON", json.dumps(ROWS, indent=2), "a.JSON: row 2"),
        ("a.csv", "prompt,level\r\n1+1=,1\r\né,2\r\n", "a.csv:3"),
        ("a.csv", b"\xef\xbb\xbfprompt, level\n\n1+1=,1\n\xc3\xa9,2", "a.csv:4"),
        ("a.parquet", pa.Table.from_pylist(ROWS), "a.parquet: row 2"),
    ],
)
def test_every_format_gives_the_same_rows_and_their_places(tmp_path, name, content, second):
    rows = read_rows(written(tmp_path, name, content))
    assert rows.rows == ROWS
    assert rows.where(1) == str(tmp_path / second)


def test_json_with_one_object_in_one_line_is_a_row(tmp_path):
    assert read_rows(written(tmp_path, "a.json", '{"prompt": "a"}\n')).rows == [{"prompt": "a"}]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c"])
def test_only_a_newline_ends_a_line(tmp_path, separator):
    """JSON allows a raw U+2028 inside a string, and ``ensure_ascii=False`` writes it so."""
    row = {"prompt": f"a{separator}b"}
    text = json.dumps(row, ensure_ascii=False).replace("\\f", "\x0c")
    if separator == "\x0c":  # a control character that JSON wants escaped
        with pytest.raises(UserError, match=r"a\.jsonl:1: not valid JSON: Invalid control"):
            read_rows(written(tmp_path, "a.jsonl", text))
    else:
        assert read_rows(written(tmp_path, "a.jsonl", text + "\r\n")).rows == [row]


# A surrogate that stands alone, as JSON.
HALF = r'{"prompt": "a", "meta": {"tags": ["\ud83d"]}}'
MALFORMED = {  # content and what is said of it, behind the folder's name
    "broken": ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', r"a\.jsonl:3: not valid JSON: Exp"),
    "cut off": ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b', r"a\.jsonl:2: not valid JSON: Unter"),
    "empty": ("a.jsonl", "", r"a\.jsonl: no rows"),
    "blank": ("a.jsonl", "\n \n", r"a\.jsonl: no rows"),
    "a list": ("a.jsonl", '{"p": 1}\n["b"]\n', r'a\.jsonl:2: expected a JSON object, got \["b"\]'),
    "null": ("a.jsonl", "null\n", r"a\.jsonl:1: expected a JSON object, got null"),
    "long": ("a.jsonl", f'"{"x" * 99}"', r'a\.jsonl:1: expected a JSON object, got "x{39}…'),
    "not UTF-8": (
        *("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}'),
        r"a\.jsonl:2: not UTF-8 text: byte 0xff at 28",
    ),
    "not UTF-8 behind a mark": (
        *("a.csv", b"\xef\xbb\xbfprompt\n\xe9t\xe9\n"),
        r"a\.csv:2: not UTF-8 text: byte 0xe9 at 10",
    ),
    "UTF-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a\.jsonl:1: not UTF-8 text: byte 0xff at"),
    "NUL": ("a.jsonl", '{"a": 1}\n{"a": "\0"}', r"a\.jsonl:2: a NUL byte"),
    "NUL in CSV": ("a.csv", "a,b\n1,\0\n", r"a\.csv:2: a NUL byte"),
    "twice": ("a.jsonl", '{"p": 1, "q": 2, "p": 3}', r'a\.jsonl:1: the key "p" is there twice'),
    "twice, inside": (
        *("a.json", '[{"p": 1},\n {"p": [{"q": 1, "q": 1}]}]'),
        r'a\.json: row 2: the key "q" is there twice',
    ),
    "twice, above": ("a.json", '{"data": [], "data": []}', r'a\.json: the key "data" is there tw'),
    "NaN": ("a.jsonl", '{"p": 1}\n{"m": {"p": NaN}}', r'a\.jsonl:2: "m\.p" is nan, no finite'),
    "infinity": ("a.json", '[{"p": [0, -Infinity]}]', r'a\.json: row 1: "p\.1" is -inf, no fin'),
    "overflow": ("a.jsonl", '{"p": 1e999}', r'a\.jsonl:1: "p" is inf, no finite number'),
    "half": ("a.jsonl", HALF, r'a\.jsonl:1: "meta\.tags\.0" has half of a surrogate pair'),
    "digits": ("a.jsonl", f'{{"p": {"1" * 5000}}}', r"a\.jsonl:1: cannot be read as JSON: Exceeds"),
    "brackets": ("a.jsonl", "[" * 99999, r"a\.jsonl:1: cannot be read as JSON: maximum recursion"),
    "deep": ("a.json", "[" * 99999, r"a\.json: cannot be read as JSON: maximum recursion"),
    "JSON": ("a.json", '[{"p": 1},\n {"p": }]', r"a\.json:2: not valid JSON: Expecting value"),
    "JSON, lines": ("a.json", '{"p": 1}\n{"p": }\n', r"a\.json:2: not valid JSON: Expecting value"),
    "JSON, rows": ("a.json", '[{"p": 1}, 7]', r"a\.json: row 2: expected a JSON object, got 7"),
    "JSON, empty": ("a.json", "\n", r"a\.json: no rows"),
    "JSON, no rows": ("a.json", "[]", r"a\.json: no rows"),
    "JSON, text": ("a.json", '"abc"', r'a\.json: expected a list .*, got "abc"'),
    "JSON, columns": ("a.json", '{\n"p": [1]}', r"a\.json: expected a list of objects, \{"),
    "CSV, empty": ("a.csv", "", r"a\.csv: no rows"),
    "CSV, header": ("a.csv", "prompt,answer\n", r"a\.csv: no rows"),
    "CSV, twice": ("a.csv", "p,q,p\n1,2,3\n", r'a\.csv:1: the column "p" is there twice'),
    "CSV, nameless": ("a.csv", "\np,,q\n1,2,3\n", r"a\.csv:2: column 2 has no name"),
    "CSV, short": ("a.csv", 'p,q\n"1\n",2\n3\n', r"a\.csv:4: 1 values for 2 columns"),
    "CSV, long": ("a.csv", "p,q\n1,2,3\n", r"a\.csv:2: 3 values for 2 columns"),
    "CSV, quote": ("a.csv", 'p,q\n1,2\n3,"4\n5', r"a\.csv:3: not valid CSV: unexpected end of dat"),
    "CSV, quotes": ("a.csv", 'p,q\n1,"2"3\n', r"a\.csv:2: not valid CSV: ',' expected after '\"'"),
    "parquet, empty": ("a.parquet", b"", r"a\.parquet: not a parquet file, or a damaged one: "),
    "parquet, text": ("a.parquet", b"PAR1 and so on", r"a\.parquet: not a parquet file, or a dam"),
    "parquet, no rows": ("a.parquet", pa.table({"p": []}), r"a\.parquet: no rows"),
    "parquet, twice": (
        *("a.parquet", pa.Table.from_arrays([pa.array([1])] * 2, names=["p", "p"])),
        r'a\.parquet: the column "p" is there twice',
    ),
    "suffix": (
        "a.jsnl",
        "",
        r'a\.jsnl: "\.jsnl" is not the suffix of a .*; did you mean "\.jsonl"',
    ),
    "no suffix": ("a", "", r'a: "" is not the suffix of a data file; \(valid: \.csv, \.json, '),
}


@pytest.mark.parametrize(("name", "content", "said"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_told_in_one_line(tmp_path, name, content, said):
    with pytest.raises(UserError, match=rf"^\S*/{said}") as error:
        read_rows(written(tmp_path, name, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_parquet_file_that_was_cut_off_is_told_in_one_line(tmp_path, cut):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS * 50), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file, or a damaged.*") as error:
        read_rows(str(path))
    assert "\n" not in str(error.value)


def test_a_damaged_page_of_a_parquet_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS * 50), path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file, or a damaged.*") as error:
        read_rows(str(path))
    assert "\n" not in str(error.value)


def test_a_file_is_looked_for_here_and_then_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "configs/a.jsonl", '{"at": "folder"}')
    folder = tmp_path / "configs"
    assert read_rows("a.jsonl", folder=folder).rows == [{"at": "folder"}]
    written(tmp_path, "a.jsonl", '{"at": "here"}')
    rows = read_rows("a.jsonl", folder=folder)
    assert (rows.rows, rows.where(0)) == ([{"at": "here"}], "a.jsonl:1")


def test_a_missing_file_is_told_with_the_nearest_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^trian\.jsonl: no such file or folder$"):
        read_rows("trian.jsonl")
    written(tmp_path, "configs/train.jsonl", "")
    said = (
        r'^trian\.jsonl: no such .*, nor in \S*configs; did you mean "\S*configs/train\.jsonl"\?$'
    )
    with pytest.raises(UserError, match=said):
        read_rows("trian.jsonl", folder=tmp_path / "configs")
    with pytest.raises(UserError, match=r'^configs/trian\.jsonl: .*"configs/train\.jsonl"\?$'):
        read_rows("configs/trian.jsonl")  # a suffix of data: no hub id


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = written(tmp_path, "a.jsonl", "{}")
    monkeypatch.setattr("pathlib.Path.read_bytes", _denied)
    with pytest.raises(UserError, match=r"^cannot read the data file \S*a\.jsonl: not yours$"):
        read_rows(path)


def _denied(path):
    raise PermissionError(13, "not yours")


def test_a_column_of_csv_is_what_all_of_it_reads_as(tmp_path):
    names = ["answer", "n", "x", "code", "price", "flag", "some", "mixed", "none", "inf"]
    cells = [
        ["12", "1", "0.5", "007", "3.10", "true", "", "1", "", "inf"],
        ["-3", "-2", "1e-05", "12", "0.5", "False", "3", "a", "", "1"],
    ]
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *cells])
    first, second = read_rows(str(path)).rows
    expected = ["12", 1, 0.5, "007", "3.10", True, None, "1", "", "inf"]
    assert list(first.values()) == expected
    assert list(second.values()) == ["-3", -2, 1e-05, "12", "0.5", False, 3, "a", "", "1"]
    assert [type(x) for x in first.values()] == [type(x) for x in expected]


@few
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_text_comes_back_from_a_csv(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [["prompt"], ["first"], *([text] for text in texts)]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    assert [row["prompt"] for row in read_rows(str(path)).rows] == ["first", *texts]


def test_a_csv_field_may_be_long(tmp_path):
    """And the limit, which is the whole process's, is afterwards what it was."""
    path = written(tmp_path, "a.csv", f"prompt\n{'x' * 200_000}\n")
    before = csv.field_size_limit(100_000)
    assert len(read_rows(path).rows[0]["prompt"]) == 200_000
    assert csv.field_size_limit(before) == 100_000


# Folders.


def test_a_folder_is_its_files_in_order_each_row_named_by_its_own(tmp_path):
    written(tmp_path, "b.jsonl", '\n{"n": 2}\n')
    written(tmp_path, "a.jsonl", '{"n": 0}\n{"n": 1}\n')
    written(tmp_path, "README.md", "")
    written(tmp_path, ".cache/c.jsonl", '{"n": 9}')
    rows = read_rows(str(tmp_path))
    assert [row["n"] for row in rows.rows] == [0, 1, 2]
    assert [rows.where(i) for i in range(3)] == [
        str(tmp_path / place) for place in ("a.jsonl:1", "a.jsonl:2", "b.jsonl:2")
    ]


def test_the_files_of_a_split_are_those_that_bear_its_name(tmp_path):
    for split, n in (("train", 1), ("test", 2), ("train_sft", 3)):
        table = pa.Table.from_pylist([{"n": n}])
        written(tmp_path, f"data/{split}-00000-of-00001.parquet", table)
    written(tmp_path, "dataset_infos.json", "{}")
    assert read_rows(str(tmp_path), split="test").rows == [{"n": 2}]
    assert read_rows(str(tmp_path), split="train_sft").rows == [{"n": 3}]
    assert read_rows(str(tmp_path)).rows == [{"n": 1}, {"n": 3}]
    with pytest.raises(UserError, match=r'no files of the split "tset"; did you mean "test"\?'):
        read_rows(str(tmp_path), split="tset")


def test_files_of_the_test_split_are_never_trained_on(tmp_path):
    written(tmp_path, "test.jsonl", '{"n": 0}')
    with pytest.raises(UserError, match=r'no files of the split "train"; \(valid: test\)'):
        read_rows(str(tmp_path))


def test_what_the_hub_writes_beside_data_is_no_data(tmp_path):
    written(tmp_path, "a.json", '[{"n": 1}]')
    written(tmp_path, "dataset_infos.json", '{"default": {}}')
    assert read_rows(str(tmp_path)).rows == [{"n": 1}]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"a folder without data files \(\.csv, "),
        (["README.md", "state.jsonl.gz"], "a folder without data files"),
        (["a.csv", "b.jsonl"], r"has files of \.csv and \.jsonl; name one"),
    ],
)
def test_a_folder_without_data_or_of_several_kinds_is_refused(tmp_path, files, said):
    for name in files:
        written(tmp_path, name, "")
    with pytest.raises(UserError, match=rf"^{tmp_path}: {said}"):
        read_rows(str(tmp_path))


def test_a_saved_data_set_and_its_splits(tmp_path):
    train = datasets.Dataset.from_list(ROWS)
    train.save_to_disk(str(tmp_path / "one"))
    splits = datasets.DatasetDict(train=train, test=train.select([1]))
    splits.save_to_disk(str(tmp_path / "splits"))
    assert read_rows(str(tmp_path / "one")).rows == ROWS
    assert read_rows(str(tmp_path / "splits")).rows == ROWS
    rows = read_rows(str(tmp_path / "splits"), split="test")
    assert (rows.rows, rows.where(0)) == (ROWS[1:], f"{tmp_path}/splits: row 1")
    with pytest.raises(UserError, match=r'splits: no split "tests"; did you mean "test"\?'):
        read_rows(str(tmp_path / "splits"), split="tests")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="one: the saved data set cannot be read: ") as error:
        read_rows(str(tmp_path / "one"))
    assert "\n" not in str(error.value)


# The hub.


def test_a_hub_id_is_loaded_with_its_subset_and_split(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(*given, **keywords):
        asked.append((given, keywords))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows("openai/gsm8k", split="test", subset="main")
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert (rows.rows, rows.where(1)) == (ROWS, "openai/gsm8k: row 2")


def test_whatever_the_hub_raises_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def load(*given, **keywords):
        raise ConnectionError("cannot\nreach " + "x" * 999)

    monkeypatch.setattr(datasets, "load_dataset", load)
    said = (
        r'^openai/gsm8k: no such file or folder; nor can the split "train" of openai/gsm8k '
        r"\(main\) be loaded from the Hugging Face hub: cannot reach x{286}…$"
    )
    with pytest.raises(UserError, match=said):
        read_rows("openai/gsm8k", subset="main")


def test_a_hub_data_set_without_rows_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    empty = datasets.Dataset.from_dict({"prompt": []})
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **keywords: empty)
    with pytest.raises(UserError, match=r"^a/b: no rows$"):
        read_rows("a/b")


def test_a_subset_of_a_file_is_refused(tmp_path):
    path = written(tmp_path, "a.jsonl", "{}")
    with pytest.raises(UserError, match=r'a\.jsonl: the subset "main" is of hub data sets'):
        read_rows(path, subset="main")


def test_rows_of_a_function_are_named_by_their_number():
    assert Rows([{}, {}], "data.train").where(1) == "data.train: row 2"


def test_a_parquet_file_with_nested_columns_gives_dicts_and_lists(tmp_path):
    row = {"prompt": [{"role": "user", "content": "a"}], "reward_model": {"ground_truth": "7"}}
    path = written(tmp_path, "a.parquet", pa.Table.from_pylist([row]))
    assert read_rows(path).rows == [row]
