"""``rljax serve``: the command."""

import json
import os
import signal
import socket
import sys
import threading
import urllib.request
from types import SimpleNamespace

import pytest
from endpoints import write_model
from folders import write_folder

from rljax import serve
from rljax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("serve") / "talker")


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments) -> str:
        capsys.readouterr()
        assert serve.main([*map(str, arguments), "--port", "0"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("rljax: error: ")
        assert error.count("\n") == 1
        return error

    return refuse


def test_what_cannot_be_served(refused, folder, tmp_path):
    assert '"nothing" is no folder here, and no hub id' in refused("nothing")
    assert "--step and --best are of a run" in refused(folder, "--best")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("steps: 1\n")
    assert "holds no checkpoint yet, and no policy" in refused(tmp_path / "begun")
    write_folder(tmp_path / "scorer", head="value")
    assert "has no language-model head" in refused(tmp_path / "scorer")


def test_options_that_are_wrong(refused, folder):
    assert "--rows: at least 1, got 0" in refused(folder, "--rows", 0)
    assert 'unknown setting "mesh.tensors"; did you mean "mesh.tensor"?' in refused(
        *(folder, "mesh.tensors=2")
    )
    assert "mesh.tensor: a number is needed, got 'two'" in refused(folder, "mesh.tensor=two")
    assert "does not fit 8 device(s)" in refused(folder, "mesh.tensor=3", "mesh.data=3")
    assert "NO_KEY: there is no such variable" in refused(folder, "--api-key-env", "NO_KEY")
    assert "pkg.module.Class is needed, got 'Mine'" in refused(folder, "--middleware", "Mine")
    assert 'cannot import "no_such_module"' in refused(folder, "--middleware", "no_such_module.A")
    known = refused(folder, "--middleware", "rljax.host.terminal.Terminals")
    assert 'no class "Terminals" in rljax.host.terminal; did you mean "Terminal"?' in known
    assert "cannot listen there" in refused(folder, "--host", "192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot listen there: address already"):
            serve._listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--port: 0 to 65535, got 70000"):
        serve._listen("127.0.0.1", 70_000)


def test_a_middleware_is_found_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "around_it.py").write_text("class Around: pass\n")
    monkeypatch.chdir(tmp_path)
    assert serve.middleware_class("around_it.Around").__name__ == "Around"


def test_a_middleware_refuses_the_start(refused, folder, monkeypatch):
    monkeypatch.setenv("RLJAX_MONITOR_CONFIG", "nowhere.yaml")
    said = refused(folder, "--middleware", "rljax.monitor.LengthMonitor")
    assert "error: --middleware: the length monitor cannot judge: cannot read the config" in said


def test_without_the_extra_it_says_what_to_install(refused, folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "rljax.endpoint.app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    said = (
        "rljax: error: serving needs starlette, which is not installed: pip install 'rljax[serve]'"
    )
    assert refused(folder) == f"{said}\n"


@pytest.mark.parametrize(
    ("number", "code", "options"),
    [
        (signal.SIGINT, 130, ["mesh.tensor=2", "mesh.data=4", "--name", "mine"]),
        (signal.SIGTERM, 0, ["mesh.tensor=2", "mesh.data=4", "--host", "0.0.0.0"]),
    ],
)
def test_it_serves_until_a_signal(folder, number, code, options, monkeypatch, capsys):
    """On eight devices; what is told is what is there."""
    answers = []

    def say(event, text, **fields):
        if event == "serving":
            threading.Thread(target=ask, args=(fields,)).start()

    def ask(fields):
        try:
            url = fields["url"].replace("0.0.0.0", "127.0.0.1")
            body = json.dumps({"prompt": "1+2=", "max_tokens": 3, "model": fields["model"]})
            request = urllib.request.Request(
                f"{url}/completions", body.encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:
                answers.append(json.loads(reply.read()))
        finally:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(serve, "Terminal", lambda: SimpleNamespace(say=say))
    before = signal.getsignal(number)
    assert serve.main([str(folder), "--port", "0", "--max-tokens", "8", *options]) == code
    assert signal.getsignal(number) == before
    (answer,) = answers
    assert answer["model"] == ("mine" if "--name" in options else "talker")
    assert answer["usage"]["prompt_tokens"] == 4
    told = capsys.readouterr().err
    assert ("is open to whoever reaches it" in told) == ("0.0.0.0" in options)
    assert told.endswith("interrupted\n" if code else "terminated\n")
    assert "Traceback" not in told
