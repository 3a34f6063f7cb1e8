"""``rljax samples``: which rows it shows, and how it follows a run."""

import io
import json
import os
import socket
import subprocess
import sys

import pytest
from rich.console import Console

from rljax import samples
from rljax.host.samples import table_path, write_samples
from rljax.host.terminal import Terminal


def row(prompt: int, length: int, *, correct: bool | None = True, greedy: bool = False) -> dict:
    """A response to one of the prompts, of a band of 3 to 5 tokens and a budget of 8."""
    verdict = "short" if length < 3 else "long" if length > 5 else "in band"
    raw = None if correct is None else float(correct)
    return {
        "prompt_index": prompt,
        "prompt": f"{prompt}+1=",
        "response": f"[b]#{prompt}",
        "greedy": greedy,
        "length_tokens": length,
        "length_verdict": verdict,
        "truncated": length == 8,
        "correct": correct,
        "reward/correct": raw,
        "reward/style": None,
        "reward_raw": raw,
        "shaping": None if raw is None else -0.25,
        "reward_shaped": None if raw is None else raw - 0.25,
    }


ROWS = [
    row(0, 4, greedy=True),
    row(0, 8, correct=False),
    row(1, 2, greedy=True, correct=False),
    row(1, 6, correct=None),
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write_samples(folder, 0, ROWS[:2])
    write_samples(folder, 20, ROWS)
    return folder


@pytest.fixture
def on_a_terminal(monkeypatch):
    """The command's output as it is on a terminal of so many columns."""
    written = io.StringIO()

    def terminal():
        made = Terminal()
        made.console, made.rich = Console(file=written, width=90), True
        return made

    monkeypatch.setattr(samples, "Terminal", terminal)
    return written.getvalue


def told(capsys, *arguments) -> list[dict]:
    assert samples.main([*map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_elsewhere_every_row_is_a_line(run, capsys):
    rows = told(capsys, run)
    assert rows == [{"event": "sample", "step": 20, **row} for row in ROWS]
    assert [row["step"] for row in told(capsys, run, "--step", "0")] == [0, 0]
    assert len(told(capsys, run, "-n", "3")) == 3


@pytest.mark.parametrize(
    ("arguments", "lengths"),
    [
        (["--wrong"], [8, 2]),  # what was not judged is not wrong
        (["--verdict", "long"], [8, 6]),
        (["--verdict", "short"], [2]),
        (["--verdict", "in band"], [4]),
        (["--verdict", "truncated"], [8]),
        (["--greedy"], [4, 2]),
        (["--sampled", "--wrong"], [8]),
        (["--prompt", "1+1"], [2, 6]),
        (["--prompt", "1+1", "--verdict", "in band"], []),
    ],
)
def test_what_is_asked_for_is_shown(run, capsys, arguments, lengths):
    assert [row["length_tokens"] for row in told(capsys, run, *arguments)] == lengths


def test_on_a_terminal_it_is_a_table(run, on_a_terminal):
    assert samples.main([str(run)]) == 0
    shown = on_a_terminal()
    first, *lines = shown.splitlines()
    assert first.startswith(
        "step 20: 4 of 4 responses; 33.3% correct, 5.0 tokens (p95 8), 25.0% in"
    )
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells[0] == ["0+1=", "[b]#0", "✓", "4", "1.00", "", "1.00", "-0.25", "0.75"]
    assert [line[3] for line in cells] == ["4", "8 long, cut", "2 short", "6 long"]
    assert cells[3][4:] == [""] * 5
    assert samples.main([str(run), "-n", "1", "--wrong"]) == 0
    assert "step 20: 1 of 2 of 4 responses; 0.0% correct" in on_a_terminal()
    assert samples.main([str(run), "--prompt", "none"]) == 0
    assert on_a_terminal().endswith("step 20: 0 of 4 responses\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}/nowhere"], "nowhere: no such folder; name that of a run"),
        (["{run}/samples"], "holds no samples: it has answered no held-out prompts yet"),
        (["{run}", "--step", "3"], "holds no samples of step 3; of 0, 20"),
        (["{run}", "-n", "0"], "--number: at least 1, got 0"),
    ],
)
def test_a_mistake_ends_in_one_line(run, capsys, arguments, says):
    assert samples.main([argument.format(run=run) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rljax: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_damaged_table_ends_in_one_line(run, capsys):
    table_path(run, 20).write_bytes(b"PAR1")
    assert samples.main([str(run)]) == 2
    assert "00000020.parquet: " in capsys.readouterr().err


# ---- following


def event(run, name: str, **fields) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": name, **fields}) + "\n")


@pytest.fixture
def polls(monkeypatch):
    """What happens between two looks, one after another."""

    def happen(*moments):
        left = list(moments)

        def sleep(seconds):
            assert seconds == 1.0
            left.pop(0)()

        monkeypatch.setattr(samples.time, "sleep", sleep)

    return happen


def test_following_shows_each_new_evaluation_until_the_end(tmp_path, polls, capsys):
    run = tmp_path / "run"
    run.mkdir()

    def partly():
        write_samples(run, 20, ROWS)
        table_path(run, 40).write_bytes(b"PAR1")  # as another host may see it

    def last():
        write_samples(run, 40, ROWS[:1])
        event(run, "done", summary={})

    polls(
        lambda: event(run, "start", host=socket.gethostname(), pid=os.getpid()),
        lambda: write_samples(run, 0, ROWS[:2]),
        partly,
        lambda: None,
        lambda: (run / "events.jsonl").open("a").write('{"event": "do'),
        lambda: (run / "events.jsonl").open("a").write('ne?"}\n'),
        last,
    )
    lines = told(capsys, run, "--follow", "--greedy")
    assert [line["event"] for line in lines] == ["waiting", *["sample"] * 4, "ended"]
    assert [line["step"] for line in lines[1:-1]] == [0, 20, 20, 40]
    assert lines[-1]["text"] == "done"


def test_following_begins_with_the_newest_and_ends_as_the_run_did(run, polls, capsys):
    event(run, "done")
    event(run, "start", host="another", pid=1)
    polls(lambda: event(run, "stopped", text="out of time"))
    lines = told(capsys, run, "--follow", "-n", "1")
    assert [line.get("step") for line in lines] == [20, None]
    assert lines[-1]["text"] == "stopped: out of time"


def test_following_ends_when_the_process_of_the_run_is_gone(run, polls, capsys):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    event(run, "start", host="another", pid=child.pid)
    polls(lambda: event(run, "start", host=socket.gethostname(), pid=child.pid))
    assert told(capsys, run, "--follow")[-1]["text"] == f"its process {child.pid} is gone"


def test_ctrl_c_ends_it_without_a_word(run, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples.time, "sleep", interrupt)
    assert samples.main([str(run), "--follow"]) == 130
    assert capsys.readouterr().err == ""


def test_it_imports_no_jax_and_stands_who_reads_no_further(run):
    script = (
        "import sys\nfrom rljax import cli\n"
        f"sys.argv[1:] = ['samples', {str(run)!r}]\n"
        "code = cli.main()\n"
        "assert 'jax' not in sys.modules and 'transformers' not in sys.modules\n"
        "sys.exit(code)"
    )
    read, write = os.pipe()
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(read)
    os.close(write)
    _, error = command.communicate(timeout=60)
    assert (command.returncode, error) == (0, "")
