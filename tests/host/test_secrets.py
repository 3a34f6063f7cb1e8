"""What is taken out of a text, however it is written there, and what stays."""

import io
import json
import subprocess
import sys
import threading
import urllib.parse

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rljax.host import secrets
from rljax.host.metrics import Records, read_records
from rljax.host.secrets import redact, redacted, say
from rljax.host.terminal import Parser, Terminal

VALUE = "can4ry-in-the-mine"


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_SERVICE_PASSWORD"),
        *("client_secret", "MySql_Passwd", "GOOGLE_CREDENTIALS", "SOME_CREDENTIAL"),
    ],
)
def test_a_variable_is_known_by_its_name(name):
    assert redact(f"no access with {VALUE}!", {name: VALUE}) == f"no access with [{name}]!"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HOME", VALUE), ("TOKENIZERS_PARALLELISM", VALUE), ("PIN_PASSWORD", "1234567")],
)
def test_what_is_no_secret_stays(name, value):
    assert redact(f"see {value}", {name: value}) == f"see {value}"


def test_of_two_that_begin_alike_the_longer_one_is_found():
    environment = {"A_KEY": "abcdefgh", "B_KEY": "abcdefgh-and-more"}
    assert redact("abcdefgh-and-more, abcdefgh", environment) == "[B_KEY], [A_KEY]"


SECRETS = st.text(st.characters(codec="utf-8"), min_size=8).filter(
    lambda text: len(text.strip()) >= 8 and text.strip() not in "[THE_KEY]"
)


@given(SECRETS)
def test_a_secret_is_found_as_python_json_yaml_and_urls_write_it(value):
    environment = {"THE_KEY": value}
    value = value.strip()
    for written in (value, repr(value), json.dumps(value), " ".join(value.split())):
        assert "[THE_KEY]" in redact(f"with {written} at", environment)
    assert "[THE_KEY]" in redact(urllib.parse.quote(value, safe=""), environment)
    assert redacted({"key": value}, environment) == {"key": "[THE_KEY]"}


@given(st.text())
def test_to_redact_again_changes_nothing(text):
    environment = {"THE_KEY": VALUE}
    once = redact(f"{text}{VALUE}{text}", environment)
    assert redact(once, environment) == once
    assert VALUE not in once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pa:ss@w@host:80/x y@z", "https://me:[password]@host:80/x y@z"),
        ("https://host/x?user=me&api_key=abc&y=1", "https://host/x?user=me&api_key=[secret]&y=1"),
        ("https://b/x?X-Amz-Signature=0f0f", "https://b/x?X-Amz-Signature=[secret]"),
        ("Authorization: Bearer abcdef0123456789abc", "Authorization: Bearer [secret]"),
        ("hf_" + "aB3" * 12, "[secret]"),
        ("see ghp_" + "aB3" * 12 + ".", "see [secret]."),
        ("sk-proj-" + "aB3_" * 12, "[secret]"),
        ("AKIAABCDEFGHIJKLMNOP", "[secret]"),
        (
            "x -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- y",
            "x [RSA PRIVATE KEY] y",
        ),
    ],
)
def test_what_looks_like_a_secret(text, expected):
    assert redact(text, {}) == expected
    assert redact(expected, {}) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("http://localhost:8476/x", "https://host/path?tokens=3&max_tokens=4", "me@host:22"),
        *("sk-learn-experiments-with-grpo-2", "hf_hub", "the bearer of thisverylongmessage"),
        *("hf_internal-testing_tiny-random-LlamaForCausalLM", "https://host/a?b=c"),
        *("runs/0001", "bearer token", "task-0123456789abcdefABCDEF"),
    ],
)
def test_what_looks_like_nothing_of_the_kind_stays(text):
    assert redact(text, {}) == text


def test_a_tree_keeps_its_form():
    environment = {"THE_KEY": "12345678"}
    tree = {"a": [12345678, 12345679, 0.5, True, None], "12345678": ("x 12345678",)}
    assert redacted(tree, environment) == {
        "a": ["[THE_KEY]", 12345679, 0.5, True, None],
        "[THE_KEY]": ["x [THE_KEY]"],
    }
    assert yaml.safe_load(yaml.safe_dump(redacted(tree, environment))) == redacted(
        tree, environment
    )


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", VALUE)


def test_lines_and_records_and_command_lines(environment, capsys, tmp_path):
    say(f"error: no access with {VALUE}")
    assert capsys.readouterr().err == "rljax: error: no access with [MY_TOKEN]\n"
    Terminal().say("news", "", key=VALUE, nested={VALUE: 1})
    assert json.loads(capsys.readouterr().out)["nested"] == {"[MY_TOKEN]": 1}
    records = Records(tmp_path / "metrics.jsonl")
    data = "https://me:12345@host/x"  # a record may be of it, which is kept as it is
    records.write({"step": 1, f"rewards/{VALUE}": 0.5, "prompt": data})
    records.close()
    assert read_records(tmp_path / "metrics.jsonl") == [
        {"step": 1, "rewards/[MY_TOKEN]": 0.5, "prompt": data}
    ]
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["--key", VALUE])
    assert capsys.readouterr().err.endswith("unrecognized arguments: --key [MY_TOKEN]\n")


def test_tables(environment):
    terminal = Terminal()
    terminal.console, terminal.rich = Console(file=io.StringIO(), width=80), True
    sample = {"length_tokens": 1, "length_verdict": "in band", "truncated": False}
    sample |= {"correct": True, "reward_raw": 1.0, "shaping": 0.0, "reward_shaped": 1.0}
    terminal.say("news", f"with {VALUE}")
    terminal.samples([{"prompt": VALUE, "response": VALUE, **sample}], VALUE)
    terminal.figures({VALUE: 1.0}, VALUE)
    terminal.before_after({VALUE: 1.0}, {})
    shown = terminal.console.file.getvalue()
    assert VALUE not in shown
    assert shown.count("[MY_TOKEN]") == 7


def test_exceptions_that_nobody_catches(environment, monkeypatch, capsys):
    script = (
        "from rljax.host.secrets import guard_tracebacks; import os; guard_tracebacks();"
        "raise ValueError(os.environ['MY_TOKEN'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.endswith("\nValueError: [MY_TOKEN]\n")

    def fail():
        raise ValueError(VALUE)

    for hook in ("sys.excepthook", "threading.excepthook"):
        monkeypatch.setattr(hook, None)
    secrets.guard_tracebacks()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "ValueError: [MY_TOKEN]\n" in capsys.readouterr().err
