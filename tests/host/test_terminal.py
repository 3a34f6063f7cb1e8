"""What is shown on a terminal."""

import io

import pytest
from rich.console import Console

from rljax.host.terminal import Terminal


@pytest.fixture
def shown():
    """A terminal of 80 columns, and a function that returns its lines."""
    terminal = Terminal()
    terminal.console, terminal.rich = Console(file=io.StringIO(), width=80), True
    return terminal, lambda: terminal.console.file.getvalue().splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_figure_that_was_not_measured_is_empty_and_not_0(shown):
    terminal, lines = shown
    terminal.before_after({"reward": 0.0, "early": 0.5}, {"reward": 0.25, "late": None})
    rows = [cells(line) for line in lines() if "│" in line]
    assert rows == [["reward", "0.00", "0.25"], ["early", "0.50", ""], ["late", "", ""]]


def test_a_line_is_json_also_where_a_number_is_not_finite(capsys):
    with Terminal().phase("train", 1, 0) as bar:
        bar.step(1, {"reward": float("nan")})
    assert capsys.readouterr().out.endswith('"of": 1, "reward": null}\n')


def test_a_long_name_of_a_source_is_shown_in_full_and_no_markup(shown):
    terminal, lines = shown
    name = f"team/{'mathematics' * 8}[algebra]/accuracy_sampled"
    terminal.before_after({name: 0.5}, {name: 1.0})
    rows = [cells(line) for line in lines() if "│" in line]
    assert "".join(row[0] for row in rows) == name
    assert rows[0][1:] == ["0.50", "1.00"]


def test_a_table_shows_numbers_to_the_right_and_markup_as_it_is(shown, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-0001")
    terminal, lines = shown
    terminal.table("[b]t", ("name", "value"), [("[red]a", "1.5"), ("canary-0001", "-20")])
    assert lines()[0].strip() == "[b]t"
    assert [line.strip("│") for line in lines() if "│" in line] == [
        " [red]a     │   1.5 ",
        " [MY_TOKEN] │   -20 ",
    ]


def test_a_terminal_obeys_nothing_that_a_response_holds(shown):
    terminal, lines = shown
    terminal.table("t", ("response",), [("a\x1b[2J\r\x07b\x9b1A",)])
    (row,) = (line for line in lines() if "│" in line)
    assert row.strip("│").strip() == "a␛[2J␍␇b␡1A"


def test_a_table_that_is_wide_breaks_no_name(shown):
    terminal, lines = shown
    rows = [("reward_shaping_ratio", *["-0.12"] * 6), ("length_mean", *["27.05"] * 6)]
    heads = ("", "first", "last", "best", "at step", "held out: before", "after")
    terminal.table("t", heads, rows)
    assert all(len(line) <= 80 for line in lines())
    for row in rows:
        assert any(line.split() == list(row) for line in lines())
