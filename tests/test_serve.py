"""``rljax serve``: what it finds to serve, and the command."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import urllib.request
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from endpoints import write_model
from folders import edit_json, write_folder
from tiny import CONFIG, SETTINGS, draw_starts, tiny_build

from rljax import export, serve
from rljax.config import load_config, resolved
from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.sharding import make_mesh
from rljax.train import place
from rljax.trees import by_path

LORA = "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 32, lora: {rank: 2}}"
CHANGES = ["warm_start=null", "shaping=off", "sampling.temperature=0.5"]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run at step 3 has left, whose policy has adapters."""
    folder = tmp_path_factory.mktemp("serve") / "adding"
    folder.mkdir()
    built = tiny_build(*CHANGES, LORA)
    roles = {"axes": built.train.axes, "optimizers": built.train.optimizers, "mesh": built.mesh}
    with jax.set_mesh(built.mesh):
        state = place(
            lambda key: built.train.begin(draw_starts(built, key)), jax.random.key(0), **roles
        )
        state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
        with contextlib.closing(Checkpoints(folder / "checkpoints", every_steps=1, keep=1)) as kept:
            kept.save(3, state, {}, force=True)
    config = load_config(CONFIG, [*SETTINGS, *CHANGES, LORA])
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved(config)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("serve") / "talker")


def test_a_run_is_served_as_it_is_exported(run, mesh, tmp_path):
    found = serve.find_policy(str(run), mesh)
    assert export.main([str(run), "--to", str(tmp_path / "merged"), "--merge"]) == 0
    merged = serve.find_policy(str(tmp_path / "merged"), mesh)
    assert (found.name, merged.name) == ("adding", "merged")
    assert found.eos_ids == merged.eos_ids
    assert found.sampling == merged.sampling == serve.NO_LIMITS | {"temperature": 0.5}
    assert (found.max_prompt_tokens, found.max_tokens) == (8, 12)
    theirs = by_path(merged.params)
    for name, array in by_path(found.params).items():
        np.testing.assert_array_equal(array, theirs[name])
    with pytest.raises(UserError, match="3"):
        serve.find_policy(str(run), mesh, step=2)


def test_limits(folder, mesh):
    def limits(*given):
        policy, serving = serve.limited(serve.find_policy(str(folder), mesh), mesh, *given)
        assert policy.max_tokens == serving.max_tokens
        return serving.max_prompt_tokens, serving.max_tokens

    assert limits(None, None) == (32, 32)  # of 64 positions
    assert limits(None, 10) == (54, 10)
    assert limits(5, 10) == (5, 10)
    with pytest.raises(UserError, match="more than the 64 positions that the model knows"):
        limits(60, 10)
    with pytest.raises(UserError, match="--max-tokens: at least 1, got 0"):
        limits(None, 0)


def test_the_generation_config_has_the_defaults(tmp_path, mesh):
    write_folder(tmp_path / "m")
    edit_json(tmp_path / "m/generation_config.json", temperature=0.3, top_k=None, top_p=0.8)
    found = serve.find_policy(str(tmp_path / "m"), mesh)
    assert found.sampling == {"temperature": 0.3, "top_k": 0, "top_p": 0.8, "min_p": 0.0}
    edit_json(tmp_path / "m/generation_config.json", top_p="high")
    with pytest.raises(UserError, match="top_p: a number is needed, got 'high'"):
        serve.find_policy(str(tmp_path / "m"), mesh)


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
