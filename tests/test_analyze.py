"""The command: what it says and writes, its exit codes, and that it does without JAX."""

import json
import os
import subprocess
import sys

import pytest
from recorded import figures, healthy, write_run

from rljax import analyze, cli


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command, and returns its code, its lines by event, and its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = analyze.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        return code, {line["event"]: line for line in lines}, err

    return run


def test_the_seeds_command(command, tmp_path):
    healthy(tmp_path / "logs" / "with", length_penalty_mean=0.1)
    healthy(tmp_path / "logs" / "without")
    metrics = "length_mean,length_penalty_mean,reward_mean"
    code, told, err = command("--log-dir", "./logs/", "--metric", metrics)
    assert (code, err) == (0, "")
    names = ["length_mean.png", "length_penalty_mean.png", "reward_mean.png", "report.html"]
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == sorted(names)
    assert told["written"]["report"] == "analysis/report.html"
    assert told["metric"]["run"] == "without"
    assert told["metric"]["last"] == pytest.approx(0.68)  # the mean of steps 16 to 20


def test_one_sheet_somewhere_else(command, tmp_path):
    healthy(tmp_path / "run")
    assert command("run", "--sheet", "--out", "some/where")[0] == 0
    written = {path.name for path in (tmp_path / "some" / "where").iterdir()}
    assert written == {"sheet.png", "report.html"}


def test_check_is_told_by_the_code(command, tmp_path):
    healthy(tmp_path / "good")
    healthy(tmp_path / "bad", length=50.0)
    assert command("good", "--check")[0] == 0
    code, told, _ = command("good", "bad", "--check")
    assert code == 1
    assert told["verdict"]["wrong"][0].startswith("response_length_p95: the longest responses")
    wider = ("bad", "--check", "--min-tokens", "20", "--max-tokens", "60")
    assert command(*wider)[0] == 0
    assert command("good", "--check", "--threshold", "reward_mean=0.9:")[0] == 1
    assert not (tmp_path / "analysis").exists()
    assert command("good", "--check", "--out", "out")[0] == 0
    assert (tmp_path / "out" / "report.html").exists()


def test_compare(command, tmp_path):
    healthy(tmp_path / "a")
    healthy(tmp_path / "b", length=50.0)
    code, told, _ = command("a", "b", "--compare")
    assert code == 0
    assert told["difference"]["second"] == "b"
    assert "reward_mean" in told["metrics"]["names"]
    healthy(tmp_path / "c")
    assert "identical" in command("a", "c", "--compare")[1]


def test_a_run_without_records_fails_the_check_of_all(command, tmp_path):
    healthy(tmp_path / "logs" / "good")
    write_run(tmp_path / "logs" / "begun", "")
    code, told, err = command("logs", "--check")
    assert (code, told["verdict"]["run"]) == (1, "good")
    assert "logs/begun has no record that can be read; it is left out" in err
    assert command("logs")[0] == 0


@pytest.mark.parametrize(
    "records",
    [
        [figures(1)],
        [{"step": 1, "reward_mean": None}],
        [{"step": step, "reward_mean": float("nan")} for step in range(12)],
        [figures(1), {"step": 2}, figures(9)],
        [{"step": 1, "reward_mean": 1e308}, {"step": 2, "reward_mean": -1e308}],
    ],
)
def test_few_and_strange_records_are_shown(records, command, tmp_path):
    write_run(tmp_path / "run", records, [{"step": 0}])
    healthy(tmp_path / "other")
    assert command("run", "other", "--metric", "reward_mean", "--sheet")[0] == 0
    assert command("run", "other", "--compare")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which runs?"),
        (["nowhere"], "nowhere is not there"),
        (["empty"], "empty holds no records"),
        (["begun"], "no record can be read in begun"),
        (["damaged"], "no record can be read in damaged"),
        (["run", "--metric", "reward_maen"], 'did you mean "reward_mean"'),
        (["run", "--smooth", "1"], "--smooth: a weight from 0 up to but not 1"),
        (["run", "--smooth", "nan"], "--smooth: a weight from 0 up to but not 1"),
        (["run", "--last", "0"], "--last: a share above 0"),
        (["run", "--compare"], "--compare needs two runs"),
        (["run", "run", "--compare"], "--compare needs two runs"),
        (["run", "--min-tokens", "3"], "belong together"),
        (["run", "--min-tokens", "3", "--max-tokens", "2"], "min_tokens <= max_tokens"),
        (["run", "--threshold", "x"], "METRIC=LOW:HIGH"),
        (["run", "--out", "run/config.yaml"], "--out: cannot make the folder run/config.yaml"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(arguments, words, command, tmp_path):
    healthy(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "begun", "")
    write_run(tmp_path / "damaged", "{\n[]\n\n\0\n")
    code, told, err = command(*arguments)
    assert (code, told) == (2, {})
    last = err.splitlines()[-1]
    assert last.startswith("rljax: error: ")
    assert words in last


def test_a_reader_that_leaves_gets_no_traceback_and_no_verdict(tmp_path):
    healthy(tmp_path / "run")
    code = "import sys; from rljax import cli; sys.exit(cli.main())"
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-c", code, "analyze", str(tmp_path / "run"), "--check"],
        stdout=writes,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (cli.UNREAD, "")


def test_it_imports_no_jax(tmp_path):
    write_run(
        *(tmp_path / "run", [figures(step) for step in range(1, 12)], [{"step": 0}]),
        responses=[("text", 30)],
    )
    script = (
        "import sys; from rljax import cli; sys.argv[1:] = sys.argv[2:]; assert cli.main() == 0;"
        "sys.exit(','.join(m for m in ('jax', 'transformers', 'datasets') if m in sys.modules))"
    )
    command = [sys.executable, "-c", script, "-", "analyze", "run", "--sheet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "written" in done.stdout
    assert "analyze" in cli.COMMANDS
