"""Each sink really: what it wrote, read back with its own tools."""

import json
import socket
import sys
import urllib.request
from pathlib import Path

import pytest
import wandb
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from rljax.errors import UserError
from rljax.host.sinks import (
    check_wandb,
    mlflow_sink,
    needed,
    prometheus_sink,
    tensorboard_sink,
    wandb_sink,
)

NAN = float("nan")
CONFIG = {"steps": 4, "algorithm": {"fn": "ppo", "lam": 0.99}}


def two_starts(make):
    """A run of four steps that is killed after the third, and goes on from the second."""
    first = make()
    first.begin(0, {}, {})
    for step in (1, 2, 3):
        first.on_step(step, {"reward_mean": step / 4, "policy/loss": NAN})
        if step != 1:
            first.on_eval(step, {"pass@2": step / 8}, [])
    first.close()
    second = make()
    second.begin(2, {"reward_mean": 0.5, "policy/loss": NAN}, {"pass@2": 0.25})
    for step in (3, 4):
        second.on_step(step, {"reward_mean": step / 4, "policy/loss": NAN})
        second.on_eval(step, {"pass@2": step / 8}, [])
    second.close()


def test_tensorboard_reads_every_step_once(tmp_path):
    two_starts(lambda: tensorboard_sink(tmp_path))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    read = EventAccumulator(str(tmp_path)).Reload()
    assert read.Tags()["scalars"] == ["reward_mean", "policy/loss", "eval/pass@2"]
    rewards = [(event.step, event.value) for event in read.Scalars("reward_mean")]
    assert rewards == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    figures = [(event.step, event.value) for event in read.Scalars("eval/pass@2")]
    assert figures == [(2, 0.25), (3, 0.375), (4, 0.5)]


def test_an_evaluation_that_is_not_known_is_read_once(tmp_path):
    """It was killed after the evaluation of the step that it goes on from."""
    first, second = tensorboard_sink(tmp_path), tensorboard_sink(tmp_path)
    first.begin(0, {}, {})
    first.on_step(1, {"reward_mean": 0.5})
    first.on_eval(1, {"accuracy_greedy": 0.5}, [])
    first.close()
    second.begin(1, {"reward_mean": 0.5}, {})
    second.on_eval(1, {"accuracy_greedy": 0.5}, [])
    second.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in read.Scalars("reward_mean")] == [1]
    assert [event.step for event in read.Scalars("eval/accuracy_greedy")] == [1]


def logged(data: bytes):
    """The records of a file of wandb's: LevelDB's log format, behind a header of seven bytes."""
    at, block, parts = 7, 1 << 15, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little room for a head
            at += block - at % block
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(folder: Path) -> list[dict]:
    """The rows of offline runs."""
    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in logged(path.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
                )
    return rows


def test_wandb_has_every_step_once_in_one_run(tmp_path):
    keywords = check_wandb({"project": "mine", "tags": ["a"], "mode": "offline"})
    own = sys.excepthook, sys.exit
    two_starts(lambda: wandb_sink(tmp_path, CONFIG, keywords))
    assert (sys.excepthook, sys.exit) == own  # which redact what is printed
    wandb.teardown()  # its process writes on for a moment
    rows = history(tmp_path)
    assert [(row["_step"], row["reward_mean"]) for row in rows] == [
        (step, step / 4) for step in (1, 2, 3, 4)
    ]
    assert [row.get("eval/pass@2") for row in rows] == [None, 0.25, 0.375, 0.5]
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.name for file in files} == {f"run-{identity}.wandb"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"projct": "x"}, 'metrics.wandb: unknown key "projct"; did you mean "project"'),
        ({"id": "x"}, r"metrics.wandb.id: a run sets it by itself"),
        ({"tags": 3}, "metrics.wandb.tags: "),
        ({"project": "x"}, "nobody is logged in; wandb login, or metrics.wandb.mode=offline"),
    ],
)
def test_what_wandb_does_not_take_is_refused(given, said, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=said):
        check_wandb(given)


def test_mlflow_has_every_step_once_in_one_run(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = {"experiment": "sums", "tracking_uri": (tmp_path / "mlruns").as_uri()}
    (tmp_path / "run").mkdir()
    two_starts(lambda: mlflow_sink(tmp_path / "run", CONFIG, run_name="mine", **where))
    client = MlflowClient(tracking_uri=where["tracking_uri"])
    experiment = client.get_experiment_by_name("sums")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "4", "algorithm/fn": "ppo", "algorithm/lam": "0.99"}

    def logged(name):
        return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]

    assert logged("reward_mean") == [(step, step / 4) for step in (1, 2, 3, 4)]
    assert logged("eval/pass_at_2") == [(2, 0.25), (3, 0.375), (4, 0.5)]


def test_another_server_of_mlflow_gets_a_run_of_its_own(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step, name in enumerate(("one", "other")):
        uri = (tmp_path / name).as_uri()
        sink = mlflow_sink(tmp_path, {}, experiment="sums", tracking_uri=uri, run_name=None)
        sink.begin(step, {}, {})
        sink.on_step(1, {"reward_mean": 0.5})
        sink.close()
        client = MlflowClient(tracking_uri=uri)
        (run,) = client.search_runs([client.get_experiment_by_name("sums").experiment_id])
        assert run.data.metrics == {"reward_mean": 0.5}


def scrape(address: str) -> dict[tuple, float]:
    """Every series by its name and labels, read as Prometheus reads it."""
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def endpoint(tmp_path):
    band = {"min_tokens": 20, "max_tokens": 40}
    listener, address = prometheus_sink(tmp_path / "r1", port=0, host="127.0.0.1", band=band)
    yield listener, address
    listener.close()


RUN = (("run", "r1"), ("source", "training"))


def test_prometheus_scrapes_the_newest_values(endpoint):
    listener, address = endpoint
    listener.begin(2, {"length_mean": 30.0}, {"accuracy_greedy": 0.5})
    assert scrape(address)["rljax_step", *RUN] == 2
    assert scrape(address)["rljax_length_mean", *RUN] == 30.0
    metrics = {
        "length_penalty_mean": 0.25,
        "rewards/correct/mean": 0.5,
        "rewards/form/mean": 1.0,
        "policy/loss": NAN,
        "guard/skipped_updates": 2.0,
        "my/own": 1.0,
        "my own": 7.0,
    }
    listener.on_step(3, metrics)
    listener.on_step(4, metrics)
    listener.on_eval(4, {"pass@4": 0.75, "gsm8k/accuracy_greedy": 0.5}, [])
    found = scrape(address)
    assert found["rljax_step", *RUN] == 4
    assert found["rljax_last_step_timestamp_seconds", *RUN] > 1.7e9
    assert found["rljax_length_penalty_mean", *RUN] == 0.25
    assert found["rljax_rewards_mean", ("reward", "correct"), *RUN] == 0.5
    assert found["rljax_rewards_mean", ("reward", "form"), *RUN] == 1.0
    assert found["rljax_eval_pass_at_k", ("k", "4"), *RUN] == 0.75
    by_source = ("rljax_eval_by_source_accuracy_greedy", ("data_source", "gsm8k"), *RUN)
    assert found[by_source] == 0.5
    assert found["rljax_length_band_min_tokens", *RUN] == 20
    assert found["rljax_length_band_max_tokens", *RUN] == 40
    assert found["rljax_skipped_updates_total", *RUN] == 4
    assert found["rljax_my_own", *RUN] == 1.0  # one of the two: a series twice is no answer
    assert found["rljax_policy_loss", *RUN] != found["rljax_policy_loss", *RUN]
    assert ("rljax_length_mean", *RUN) not in found  # of an earlier step


def test_prometheus_is_told_what_each_is(endpoint):
    listener, address = endpoint
    listener.on_step(1, {"length_mean": 30.0, "my/own": 1.0})
    with urllib.request.urlopen(address) as answer:
        lines = answer.read().decode().splitlines()
    assert "# HELP rljax_length_mean mean, EOS included (tokens)" in lines
    assert "# TYPE rljax_length_mean gauge" in lines
    assert "# TYPE rljax_skipped_updates_total counter" in lines
    assert "# HELP rljax_my_own my/own, a metric of the run's own" in lines


def test_a_port_that_is_taken_is_refused_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            prometheus_sink(tmp_path, port=port, host="127.0.0.1", band={})
    said = str(error.value)
    assert said == f"metrics.prometheus: cannot listen at 127.0.0.1:{port}: Address already in use"


def test_it_no_longer_listens_once_it_is_closed(tmp_path):
    listener, address = prometheus_sink(tmp_path, port=0, host="127.0.0.1", band={})
    listener.close()
    with pytest.raises(OSError, match="refused"):
        scrape(address)


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'rljax\[tensorboard\]'"):
        needed("tensorboard")
