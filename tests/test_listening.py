"""A run with everything that can listen to it, and what each heard."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
from commands import records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import CONFIG, SETTINGS

from rljax import launch
from rljax.config import load_config
from rljax.host import listeners
from rljax.listening import check_listening, open_listeners

RUN = [*SETTINGS, "warm_start=null", "checkpoint.every_steps=2", "checkpoint.keep=9"]
RUN += ["evaluation={prompts: 8, samples: 2, every_steps: 2}"]
CODE = """
import json
import urllib.request
from pathlib import Path

def write(run_dir, **record):
    with Path("heard.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\\\\n")

def on_step(step, metrics, *, run_dir):
    write(run_dir, on_step=step, reward=metrics["reward_mean"], count=len(metrics))
    metrics.clear()

def on_eval(step, figures, samples, *, run_dir):
    address = Path(run_dir, "events.jsonl").read_text().rpartition('"address": "')[2].split('"')[0]
    with urllib.request.urlopen(address) as answer:
        served = answer.read().decode()
    write(run_dir, on_eval=step, samples=len(samples), served=served)

def on_save(step, path, *, run_dir):
    write(run_dir, on_save=step, there=path.is_dir(), path=str(path))

def fail(step, metrics, key):
    raise ValueError(f"cannot reach it with {key}")
""".replace("\\\\n", "\\n")
SECRET = "listening-canary-0001"


def settings(mlruns: Path) -> list[str]:
    """Everything that listens."""
    fail = {"fn": "own_callbacks:fail", "key": SECRET}
    functions = {kind: f"own_callbacks:{kind}" for kind in ("on_step", "on_eval", "on_save")}
    functions["on_step"] = ["own_callbacks:on_step", fail]
    metrics = {
        "tensorboard": True,
        "wandb": {"project": "sums", "mode": "offline"},
        "mlflow": {"experiment": "sums", "tracking_uri": mlruns.as_uri()},
        "prometheus": {"port": 0},
    }
    return [f"metrics={json.dumps(metrics)}", f"callbacks={json.dumps(functions)}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a run was made that lost its last checkpoint, and went on from the second step."""
    there = tmp_path_factory.mktemp("listening")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("MY_TOKEN", SECRET)
        patch.setattr(listeners, "END_SECONDS", 120)  # services start slowly on a busy machine
        Path("own_callbacks.py").write_text(CODE)
        heard = [*RUN, "run_dir=heard", *settings(there / "mlruns")]
        assert launch.main(heard) == 0
        shutil.rmtree("heard/checkpoints/4")
        assert launch.main(heard) == 0
    return there


def calls(folder, kind) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "heard.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in line]


def test_callbacks_hear_of_steps_evaluations_and_checkpoints(folder):
    steps = calls(folder, "on_step")
    assert [call["on_step"] for call in steps] == [1, 2, 3, 4, 3, 4]
    rewards = [record["reward_mean"] for record in records(folder / "heard/metrics.jsonl")]
    assert [call["reward"] for call in steps[:2] + steps[4:]] == rewards
    assert [call["on_eval"] for call in calls(folder, "on_eval")] == [0, 2, 4, 4]
    assert {call["samples"] for call in calls(folder, "on_eval")} == {16}
    saved = calls(folder, "on_save")
    assert [call["on_save"] for call in saved] == [0, 2, 4, 4]
    assert all(call["there"] for call in saved)
    assert saved[1]["path"] == "heard/checkpoints/2"


def test_prometheus_is_served_while_the_run_evaluates(folder):
    served = [call["served"] for call in calls(folder, "on_eval")]
    labels = '{run="heard",source="training"}'
    assert f"rljax_length_band_min_tokens{labels} 4.0" in served[0]
    assert f"rljax_step{labels} 0.0" in served[0]
    assert f"rljax_eval_accuracy_greedy{labels}" in served[-1]


def test_a_callback_that_fails_is_told_once_with_its_trace_and_no_secret(folder):
    events = [json.loads(line) for line in (folder / "heard/events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "traceback"]
    assert len(told) == 2  # once in each start
    said = "callbacks.on_step own_callbacks:fail failed in on_step: ValueError: cannot reach it "
    assert told[0]["text"] == f"{said}with [MY_TOKEN]; the run goes on"
    assert "in fail\\n    raise" in told[0]["trace"].replace("\n", "\\n")
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    assert warnings.count(told[0]["text"]) == 2
    assert "callbacks.on_step own_callbacks:fail failed in 4 of 4 calls" in warnings


def test_tensorboard_has_every_step_once(folder):
    read = EventAccumulator(str(folder / "heard/tensorboard")).Reload()
    rewards = [(event.step, event.value) for event in read.Scalars("reward_mean")]
    recorded = records(folder / "heard/metrics.jsonl")
    assert rewards == [(r["step"], pytest.approx(r["reward_mean"])) for r in recorded]
    assert [event.step for event in read.Scalars("eval/accuracy_greedy")] == [0, 2, 4]


def test_no_sink_is_told_a_secret(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("mlruns" in path.parts for path in files)
    assert any(path.suffix == ".wandb" for path in files)
    told = [path for path in files if SECRET.encode() in path.read_bytes()]
    assert told == []


def refused(capsys, *given) -> str:
    assert launch.main([*RUN, *given, "run_dir=run"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("rljax: error: ")
    assert printed.count("\n") == 1
    assert not Path("run").exists()
    return printed


def test_a_run_with_a_taken_port_or_a_missing_package_does_not_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, f"metrics.prometheus.port={port}")
    assert f"metrics.prometheus: cannot listen at 127.0.0.1:{port}: Address already in use" in said
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = refused(capsys, "metrics.tensorboard=true")
    assert "pip install 'rljax[tensorboard]'" in said
    said = refused(capsys, "callbacks.on_step=no_such_module:fn")
    assert "callbacks.on_step: cannot import" in said


# Every key of the two sections has an effect, or is refused.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("metrics.tensorbord=true", 'unknown key "metrics.tensorbord"; did you mean "tensorboard"'),
        ("metrics.tensorboard={a: 1}", "metrics.tensorboard: true is expected, or a folder, got"),
        ("callbacks.on_step=true", "callbacks.on_step: expected a name or {fn: name, ...}, got Tr"),
        ("metrics.prometheus.prot=1", 'unknown key "metrics.prometheus.prot"; did you mean "port"'),
        ("metrics.prometheus.port=65536", "metrics.prometheus.port: input should be less than"),
        ("metrics.prometheus=9400", "metrics.prometheus: expected keys with values, got 9400"),
        ("metrics.mlflow.uri=x", 'unknown key "metrics.mlflow.uri"'),
        ("metrics.mlflow.tracking_uri=nowhere://x", "metrics.mlflow: name a server, as metrics"),
        ("metrics.wandb.projct=x", 'unknown key "projct"; did you mean "project"'),
        ("callbacks.on_stp=a:b", 'unknown key "callbacks.on_stp"; did you mean "on_step"'),
        (
            "callbacks.on_step=[3]",
            'expected a function as my_module:my_function, got "3"',
        ),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(setting, said):
    with pytest.raises(launch.UserError) as error:
        check_listening(load_config(CONFIG, [setting]))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("metrics.tensorboard=true", "metrics.tensorboard"),
        ("metrics.wandb={mode: offline}", "metrics.wandb"),
        ("metrics.mlflow.tracking_uri=http://127.0.0.1:9", "metrics.mlflow"),
        ("metrics.prometheus={port: 0}", "metrics.prometheus"),
        ("callbacks.on_step=builtins:print", "callbacks.on_step builtins:print"),
        ("callbacks.on_eval=builtins:print", "callbacks.on_eval builtins:print"),
        ("callbacks.on_save=builtins:print", "callbacks.on_save builtins:print"),
    ],
)
def test_every_key_brings_its_listener(setting, name, tmp_path):
    said = []
    config = load_config(CONFIG, [setting])
    check_listening(config)
    opened = open_listeners(config, tmp_path, lambda *_, **fields: said.append(fields), said.append)
    assert [feed._names() for feed in opened._feeds] == [name]
    opened.close()


def test_tensorboards_folder_of_several_runs_has_one_for_each(tmp_path):
    config = load_config(CONFIG, [f"metrics.tensorboard={tmp_path / 'all'}"])
    with open_listeners(config, tmp_path / "runs/0007", print, print) as opened:
        opened.begin(0, {}, {})
    assert len(list((tmp_path / "all/0007").iterdir())) == 1


def test_an_endpoint_for_other_hosts_is_told_to_be_open(tmp_path):
    said = []
    config = load_config(CONFIG, ["metrics.prometheus={port: 0, host: 0.0.0.0}"])
    open_listeners(
        config, tmp_path, lambda event, text, /, **fields: said.append(text), print
    ).close()
    assert "without a password: keep that port within a network that you trust" in said[0]


def test_nobody_listens_unless_told_to(tmp_path):
    opened = open_listeners(load_config(CONFIG, []), tmp_path, print, print)
    assert opened._feeds == []
    opened.close()
