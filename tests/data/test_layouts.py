"""Columns as verl, TRL and others have them, to those of a layout."""

import json

import numpy as np
import pyarrow as pa
import pytest
from folders import TURNS
from pyarrow import parquet

from rljax.data import (
    Limits,
    PromptTable,
    Rows,
    arrange,
    demonstration_table,
    offers,
    read_rows,
)
from rljax.errors import UserError
from rljax.tasks import character_tokenizer

LAYOUTS = ["prompts", "demonstrations", "pairs", "labelled"]
USER = [{"role": "user", "content": "1+1="}]
TWO = [{"role": "assistant", "content": "2"}]
ELEVEN = [{"role": "assistant", "content": "11"}]


def arranged(layout, *rows, **columns):
    """The rows and the phrase, of rows that stand in a file from line 5 on."""
    given = Rows(list(rows), "a.jsonl", list(range(5, 5 + len(rows))))
    rows, phrase = arrange(given, layout, columns)
    return rows, phrase


def only(layout, *rows, **columns):
    return arranged(layout, *rows, **columns)[0].rows


@pytest.mark.parametrize(
    ("row", "columns", "expected", "phrase"),
    [
        (
            {"prompt": "1+1=", "answer": "2", "level": 3, "ground_truth": "?"},
            {},
            {"prompt": "1+1=", "answer": "2", "level": 3, "ground_truth": "?"},
            "columns: prompt, answer",
        ),
        ({"prompt": "1+1="}, {}, {"prompt": "1+1="}, "columns: prompt"),
        (
            {
                "data_source": "sums",
                "prompt": [{**USER[0], "name": None}],
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {"index": 7},
            },
            {},
            {
                "data_source": "sums",
                "prompt": USER,
                "reward_model": {"style": "rule", "ground_truth": "2"},
                "extra_info": {"index": 7},
                "answer": "2",
            },
            "verl's columns: prompt, data_source, reward_model.ground_truth as answer",
        ),
        (
            {"prompt": USER, "solution": "2"},
            {},
            {"prompt": USER, "solution": "2", "answer": "2"},
            "columns: prompt, solution as answer",
        ),
        (
            {"prompt": "a", "data_source": "sums", "answer": None, "solution": "2"},
            {},
            {"prompt": "a", "data_source": "sums", "answer": "2", "solution": "2"},
            "verl's columns: prompt, data_source, solution as answer",
        ),
        (
            {"prompt": "a", "reward_model": {"ground_truth": "2"}},
            {},
            {"prompt": "a", "reward_model": {"ground_truth": "2"}, "answer": "2"},
            "verl's columns: prompt, reward_model.ground_truth as answer",
        ),
        (
            {"prompt": USER, "ground_truth": 2, "solution": "1+1"},
            {},
            {"prompt": USER, "ground_truth": 2, "solution": "1+1", "answer": 2},
            "columns: prompt, ground_truth as answer",
        ),
        (
            {"question": "1+1=", "solution": {"final": {"value": 2}}, "meta": {"level": 3}},
            {"prompt": "question", "answer": "solution.final.value", "level": "meta.level"},
            {
                "question": "1+1=",
                "solution": {"final": {"value": 2}},
                "meta": {"level": 3},
                "prompt": "1+1=",
                "answer": "2",
                "level": 3,
            },
            "columns: question as prompt, solution.final.value as answer, meta.level as level",
        ),
        (
            {"a.b": "1+1=", "a": {"b": "other"}},
            {"prompt": "a.b"},
            {"a.b": "1+1=", "a": {"b": "other"}, "prompt": "1+1="},
            "columns: a.b as prompt",
        ),
    ],
)
def test_prompts(row, columns, expected, phrase):
    rows, said = arranged("prompts", row, **columns)
    assert rows.rows == [expected]
    assert said == phrase
    assert rows.where(0) == "a.jsonl:5"


def test_an_answer_that_some_rows_lack_is_none():
    """A reward in Python may know another; one that needs it will say so."""
    first, second = {"prompt": "a", "solution": "2"}, {"prompt": "b", "solution": None}
    rows, phrase = arranged("prompts", first, second)
    assert (rows.rows, phrase) == ([first, second], "columns: prompt")


def test_the_same_rows_in_verls_and_in_trls_layout_make_the_same_table(tmp_path):
    questions = [("1+1=", "2"), ("20+3=", "23"), ("4+5=", "9")]
    verl = [
        {
            "data_source": "sums",
            "prompt": [
                {"role": "system", "content": "Add.", "name": "adder"},
                {"role": "user", "content": question},
            ],
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index},
        }
        for index, (question, truth) in enumerate(questions)
    ]
    parquet.write_table(pa.Table.from_pylist(verl), tmp_path / "a.parquet")
    trl = [
        {"prompt": row["prompt"], "solution": row["reward_model"]["ground_truth"]} for row in verl
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trl))
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TURNS
    tables = []
    for name in ("a.parquet", "a.jsonl"):
        rows, _ = arrange(read_rows(str(tmp_path / name)), "prompts", {})
        tables.append(PromptTable([rows], tokenizer, Limits()))
    verl, trl = tables
    np.testing.assert_array_equal(verl.tokens, trl.tokens)
    np.testing.assert_array_equal(verl.mask, trl.mask)
    np.testing.assert_array_equal(verl.extras["answer"], trl.extras["answer"])
    assert [row["prompt"] for row in verl.rows] == [row["prompt"] for row in trl.rows]
    assert verl.rows[1]["extra_info"] == {"index": 1}  # what verl_reward reads stays
    assert trl.rows[1]["solution"] == "23"


@pytest.mark.parametrize(
    ("row", "columns", "expected", "phrase"),
    [
        (
            {"prompt": "1+1=", "completion": "2", "id": 7},
            {},
            {"prompt": "1+1=", "completion": "2"},
            "columns: prompt, completion",
        ),
        (
            {"prompt": "1+1=", "response": "11", "completion": "2", "weight": 0},
            {},
            {"prompt": "1+1=", "completion": "2", "weight": 0.0},
            "columns: prompt, completion, weight",
        ),
        (
            {"prompt": USER, "response": "2", "weight": "0.5"},
            {},
            {"prompt": USER, "completion": "2", "weight": 0.5},
            "columns: prompt, response as completion, weight",
        ),
        (
            {"prompt": USER, "completion": TWO},
            {},
            {"prompt": USER, "completion": TWO},
            "columns: prompt, completion",
        ),
        (
            {"prompt": USER, "completion": USER + TWO},
            {},
            {"prompt": USER, "completion": TWO},
            "columns: prompt, completion",
        ),
        (
            {"prompt": "x", "messages": [*USER, {**TWO[0], "weight": 0, "tool_calls": None}, *TWO]},
            {},
            {"messages": [*USER, {**TWO[0], "weight": 0}, *TWO]},
            "columns: messages",
        ),
        (
            {"q": 7, "a": 49.5, "w": {"x": 2}},
            {"prompt": "q", "completion": "a", "weight": "w.x"},
            {"prompt": "7", "completion": "49.5", "weight": 2.0},
            "columns: q as prompt, a as completion, w.x as weight",
        ),
        (
            {"prompt": "1+1=", "completion": "2", "weight": None, "messages": None},
            {},
            {"prompt": "1+1=", "completion": "2"},
            "columns: prompt, completion",
        ),
    ],
)
def test_demonstrations(row, columns, expected, phrase):
    rows, said = arranged("demonstrations", row, **columns)
    assert rows.rows == [expected]
    assert said == phrase


CONVERSATION = [*USER, {"role": "assistant", "content": "?"}, {"role": "user", "content": "so?"}]


@pytest.mark.parametrize(
    ("row", "expected", "note"),
    [
        (
            {"prompt": "1+1=", "chosen": "2", "rejected": "11", "margin": 1},
            {"prompt": "1+1=", "chosen": "2", "rejected": "11", "margin": 1.0},
            "prompt, chosen, rejected, margin",
        ),
        (
            {"prompt": USER, "chosen": TWO, "rejected": ELEVEN},
            {"prompt": USER, "chosen": TWO, "rejected": ELEVEN},
            "prompt, chosen, rejected",
        ),
        (
            {"prompt": USER, "chosen": USER + TWO, "rejected": USER + ELEVEN},
            {"prompt": USER, "chosen": TWO, "rejected": ELEVEN},
            "prompt, chosen, rejected",
        ),
        (  # UltraFeedback's
            {"prompt": "1+1=", "chosen": USER + TWO, "rejected": USER + ELEVEN},
            {"prompt": USER, "chosen": TWO, "rejected": ELEVEN},
            "prompt, chosen, rejected",
        ),
        (
            {"chosen": CONVERSATION + TWO, "rejected": CONVERSATION + ELEVEN},
            {"prompt": CONVERSATION, "chosen": TWO, "rejected": ELEVEN},
            "chosen, rejected; the prompt is the common beginning of chosen and rejected",
        ),
    ],
)
def test_pairs_and_what_they_are_as_labelled_rows(row, expected, note):
    rows, said = arranged("pairs", row)
    assert rows.rows == [expected]
    assert said == f"columns: {note}"
    labelled, said = arranged("labelled", {"prompt": None, **row}, row)
    both = [
        {"prompt": expected["prompt"], "completion": expected[name], "label": name == "chosen"}
        for name in ("chosen", "rejected")
    ]
    assert labelled.rows == both * 2
    assert said.endswith("; each pair becomes two rows")
    assert [labelled.where(i) for i in range(4)] == ["a.jsonl:5"] * 2 + ["a.jsonl:6"] * 2
    assert "margin" not in said


def test_pairs_of_equal_answers_are_left_out_and_counted():
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "11"}
    equal = {"prompt": "1+1=", "chosen": "2", "rejected": "2"}
    rows, phrase = arranged("pairs", equal, row, equal, row)
    assert rows.rows == [row, row]
    assert [rows.where(0), rows.where(1)] == ["a.jsonl:6", "a.jsonl:8"]
    assert phrase == "columns: prompt, chosen, rejected; 2 pairs of equal answers left out"
    with pytest.raises(
        UserError, match=r'^a\.jsonl: "chosen" and "rejected" are the same in every'
    ):
        arranged("labelled", equal)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(True, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)],
)
def test_labels(label, expected):
    row = {"prompt": "1+1=", "response": "2", "label": label}
    (new,), phrase = only("labelled", row), arranged("labelled", row)[1]
    assert new == {"prompt": "1+1=", "completion": "2", "label": expected}
    assert type(new["label"]) is bool
    assert phrase == "columns: prompt, response as completion, label"


def test_columns_that_change_places():
    row = {"prompt": "1+1=", "chosen": "11", "rejected": "2"}
    (new,) = only("pairs", row, chosen="rejected", rejected="chosen")
    assert new == {"prompt": "1+1=", "chosen": "2", "rejected": "11"}


def message(**turn):
    return {"prompt": [USER[0], {"role": "user", "content": "x"} | turn]}


DEMONSTRATION = {"prompt": "a", "completion": "b"}
CHAT = {"prompt": USER, "completion": TWO}
TALK = [{"role": "user", "content": "so?"}]
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LABELLED = DEMONSTRATION | {"label": True}
WRONG = [  # layout, the good row before, the row, what is said of line 6
    ("prompts", {"prompt": "a"}, {"prompt": ""}, "\"prompt\": expected text or chat .*, got ''"),
    ("prompts", {"prompt": "a"}, {"prompt": 7}, '"prompt": expected text or chat .*, got 7'),
    ("prompts", {"prompt": "a"}, {"prompt": None}, '"prompt" is missing or null'),
    ("prompts", {"prompt": "a"}, {}, '"prompt" is missing or null'),
    ("prompts", {"prompt": "a"}, {"prompt": {"role": "user"}}, '"prompt": expected text or'),
    ("prompts", {"prompt": "a"}, {"prompt": USER}, '"prompt" is text in some rows, and chat mess'),
    ("prompts", {"prompt": USER}, {"prompt": "a"}, '"prompt" is text in some rows, and chat mess'),
    ("prompts", {"prompt": USER}, {"prompt": []}, '"prompt": an empty conversation'),
    ("prompts", {"prompt": USER}, {"prompt": ["a"]}, '"prompt", message 1: expected a role and a'),
    ("prompts", {"prompt": USER}, message(role=None), '"prompt", message 2: no role'),
    (
        *("prompts", {"prompt": USER}, message(role="asistant")),
        '"prompt", message 2: unknown role \'asistant\'; did you mean "assistant"',
    ),
    ("prompts", {"prompt": USER}, message(role=["user"]), '"prompt", message 2: unknown role'),
    ("prompts", {"prompt": USER}, message(content=None), '"prompt", message 2: no content'),
    (
        *("prompts", {"prompt": USER}, message(content=[{"type": "text", "text": "x"}])),
        '"prompt", message 2: expected text as content, got ',
    ),
    (
        "prompts",
        {"prompt": USER},
        message(weight=0.5),
        '"prompt", message 2: .* is 0 or 1, got 0.5',
    ),
    ("demonstrations", DEMONSTRATION, DEMONSTRATION | {"completion": None}, '"completion" is miss'),
    ("demonstrations", DEMONSTRATION, DEMONSTRATION | {"completion": 5}, '"completion": expected'),
    ("demonstrations", DEMONSTRATION | {"weight": 1}, DEMONSTRATION, '"weight" is missing or null'),
    ("demonstrations", DEMONSTRATION, {"messages": USER + TWO}, '"prompt" is missing or null'),
    (
        *("demonstrations", DEMONSTRATION | {"weight": 1}, DEMONSTRATION | {"weight": -1}),
        '"weight": expected a number of at least 0, got -1',
    ),
    (
        *("demonstrations", DEMONSTRATION | {"weight": "1"}, DEMONSTRATION | {"weight": "much"}),
        "\"weight\": expected a number of at least 0, got 'much'",
    ),
    (
        *("demonstrations", DEMONSTRATION | {"weight": 1}, DEMONSTRATION | {"weight": True}),
        '"weight": expected a number of at least 0, got True',
    ),
    (
        *("demonstrations", DEMONSTRATION | {"weight": 1}, DEMONSTRATION | {"weight": 10**400}),
        '"weight": expected a number of at least 0, got 1',
    ),
    (
        *("demonstrations", DEMONSTRATION, DEMONSTRATION | {"completion": TWO}),
        '"completion": chat messages, while "prompt" is text',
    ),
    (
        *("demonstrations", CHAT, CHAT | {"completion": TWO + USER}),
        '"completion": what follows the prompt must be messages of the assistant\'s',
    ),
    (
        *("demonstrations", {"messages": USER + TWO}, {"messages": USER}),
        '"messages": the assistant answers no message, so nothing to learn',
    ),
    (
        *("demonstrations", {"messages": USER + TWO}, {"messages": TWO + USER}),
        '"messages": the assistant answers no message, so nothing to learn',
    ),
    (
        *("demonstrations", {"messages": USER + TWO}, {"messages": "abc"}),
        "\"messages\": expected chat messages, got 'abc'",
    ),
    ("pairs", PAIR | {"margin": 1}, PAIR | {"margin": "nan"}, '"margin": expected a number, got'),
    ("pairs", PAIR | {"margin": 1}, PAIR | {"margin": 1e39}, '"margin": expected .*, got 1e\\+39'),
    ("pairs", PAIR | {"margin": 1}, PAIR | {"margin": 1e999}, '"margin": expected .*, got inf'),
    ("pairs", PAIR, PAIR | {"chosen": TWO}, 'one of "chosen" and "rejected" is text, the other'),
    ("pairs", PAIR, PAIR | {"chosen": ""}, '"chosen": expected text or chat messages, got '),
    ("pairs", PAIR, {**PAIR, "chosen": TWO, "rejected": ELEVEN}, ".* have no beginning in common"),
    (
        *("pairs", {"chosen": USER + TWO, "rejected": USER + ELEVEN}),
        *({"chosen": "a b", "rejected": "a c"}, '.*are text, so that a "prompt" is needed'),
    ),
    (
        *("pairs", {"chosen": USER + TWO, "rejected": USER + ELEVEN}),
        *({"chosen": USER + TWO, "rejected": USER + TALK}, '"rejected": what follows the prompt'),
    ),
    (
        *("pairs", {"chosen": USER + TWO, "rejected": USER + ELEVEN}),
        *({"chosen": USER + TWO, "rejected": USER}, '"rejected": an empty conversation'),
    ),
    ("labelled", LABELLED, LABELLED | {"label": 2}, '"label": expected true .* or 1 or 0, got 2'),
    ("labelled", LABELLED, LABELLED | {"label": "yes"}, "\"label\": expected true .*, got 'yes'"),
    ("labelled", LABELLED, LABELLED | {"label": [1]}, r'"label": expected true .*, got \[1\]'),
    ("labelled", LABELLED, LABELLED | {"label": None}, '"label" is missing or null'),
]


@pytest.mark.parametrize(("layout", "good", "bad", "said"), WRONG)
def test_a_value_of_the_wrong_type_is_named_by_line_and_column(layout, good, bad, said):
    only(layout, good)
    with pytest.raises(UserError, match=rf"^a\.jsonl:6: {said}") as error:
        arranged(layout, good, bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layout", "needed"),
    [
        ("prompts", "prompt"),
        ("demonstrations", "prompt, completion; or prompt, response; or messages"),
        ("pairs", "prompt, chosen, rejected; or chosen, rejected"),
        (
            "labelled",
            "prompt, completion, label; or prompt, response, label; or prompt, chosen, rejected; "
            "or chosen, rejected",
        ),
    ],
)
def test_missing_columns_are_told_with_what_is_there_and_how_to_name_it(layout, needed):
    with pytest.raises(UserError) as error:
        arranged(layout, {"question": "a", "solution": "b"}, {"question": "c"})
    first = needed.split(",")[0]
    assert str(error.value) == (
        f'a.jsonl: {layout} need the columns {needed}; there is no "{first}" among question, '
        f"solution; name it, such as data.columns={{{first}: its_name}}"
    )


@pytest.mark.parametrize(
    ("layout", "columns", "said"),
    [
        (
            *("prompts", {"prompt": "qestion"}),
            r'^data\.columns\.prompt: a\.jsonl has no column "qestion"; did you mean "question"\?',
        ),
        (
            *("prompts", {"prompt": "question", "answer": "meta.finall"}),
            r'^data\.columns\.answer: .* no column "meta\.finall"; did you mean "meta\.final"\?',
        ),
        ("prompts", {"prompt": "question.text"}, r'has no column "question\.text"'),
        (
            *("demonstrations", {"complete": "question"}),
            r'^data\.columns: demonstrations have no column "complete"; did you mean "completion"',
        ),
        ("pairs", {"lable": "question"}, 'pairs have no column "lable"'),
    ],
)
def test_a_column_that_is_not_there_is_told_with_the_nearest(layout, columns, said):
    with pytest.raises(UserError, match=said):
        arranged(layout, {"question": "a", "meta": {"final": "b"}}, **columns)


def test_a_truth_is_no_text():
    with pytest.raises(UserError, match=r'^a\.jsonl:5: "prompt": expected text .*, got True$'):
        arranged("prompts", {"q": True}, prompt="q")


def test_a_mapped_column_that_one_row_lacks_is_named():
    with pytest.raises(UserError, match=r'^a\.jsonl:6: "q\.text" is missing or null$'):
        arranged("prompts", {"q": {"text": "a"}}, {"q": {}}, prompt="q.text")


@pytest.mark.parametrize(
    ("row", "columns", "layouts"),
    [
        ({"prompt": "a"}, {}, ["prompts"]),
        ({"prompt": "a", "completion": None}, {}, ["prompts"]),
        ({"prompt": "a", "response": "b"}, {}, ["prompts", "demonstrations"]),
        ({"messages": USER + TWO}, {}, ["demonstrations"]),
        ({"chosen": USER + TWO, "rejected": USER + ELEVEN}, {}, ["pairs", "labelled"]),
        ({"prompt": "a", "q": {"a": "b"}}, {"completion": "q.a"}, ["prompts", "demonstrations"]),
        ({"prompt": "a", "q": {"a": "b"}}, {"completion": "q.b"}, ["prompts"]),
        (LABELLED, {}, ["prompts", "demonstrations", "labelled"]),
    ],
)
def test_which_layouts_rows_offer(row, columns, layouts):
    rows = Rows([row], "a.jsonl")
    assert [layout for layout in LAYOUTS if offers(rows, layout, columns)] == layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rows_at_all_are_refused(layout):
    with pytest.raises(UserError, match=r"^a\.jsonl: no rows$"):
        arranged(layout)


def test_a_csv_with_weights_is_read_as_it_is_meant(tmp_path):
    """From the file to the table: text that reads as numbers, and numbers."""
    (tmp_path / "a.csv").write_text("prompt,response,weight\n1+1=,2,1\n2+2=,4,0.5\n")
    rows, _ = arrange(read_rows(str(tmp_path / "a.csv")), "demonstrations", {})
    table = demonstration_table([rows], character_tokenizer(), Limits())
    assert table.take([0, 1]).data_weights[:, -2:].tolist() == [[1.0, 1.0], [0.5, 0.5]]


def test_names_of_other_layouts_and_of_other_sources_are_passed_over():
    """One ``data.columns`` serves a source of pairs, and the held-out prompts beside it."""
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "answer": "final"}
    source = Rows([{"question": "1+1=", "good": "2", "bad": "3"}], "a")
    (pair,) = arrange(source, "pairs", columns)[0].rows
    assert pair == {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    held = Rows([{"prompt": "2+2=", "final": "4"}], "b")
    (prompt,) = arrange(held, "prompts", columns)[0].rows
    assert (prompt["prompt"], prompt["answer"]) == ("2+2=", "4")


def test_a_misspelt_column_and_another_layout_are_told():
    source = Rows([{"prompt": "1", "choosen": "2", "rejected": "3"}], "a.jsonl")
    with pytest.raises(UserError, match=r'no "chosen" among .*data\.columns=\{chosen: choosen\}'):
        arrange(source, "pairs", {})
    source = Rows([{"prompt": "1", "completion": "2", "label": True}], "a.jsonl")
    with pytest.raises(UserError, match="these are demonstrations or labelled, which other"):
        arrange(source, "pairs", {})
