"""One run on several processes over loopback: as on one, and whatever becomes of them."""

import ipaddress
import json
import re
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest
from commands import pod, records

from rljax.build import build
from rljax.config import load_config
from rljax.folder import open_folder
from rljax.host.samples import read_samples, sampled_steps
from rljax.host.stopping import Stopping
from rljax.host.terminal import Terminal
from rljax.launch import DEFAULT_CONFIG, builtin_config
from rljax.run import Run

STEPS = 12
SETTINGS = [
    "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 16, rope_base: 100}",
    "warm_start=null",
    "algorithm={fn: grpo, kl_coef: 0.1}",
    "sampling={max_tokens: 6, group_size: 2}",
    "optimizer={policy: {learning_rate: 1.0e-3}}",
    "shaping={}",
    "rewards={spread: {fn: 'pod_reward:spread'}}",
    f"steps={STEPS}",
    "data.train.count=64",
    "data.prompts_per_step=8",
    "length={min_tokens: 2, max_tokens: 4}",
    "evaluation={prompts: 4, samples: 1, every_steps: 6}",
    "checkpoint={every_steps: 5, keep: 100}",
]
REWARD = """
def spread(rollout):
    return (rollout.tokens * rollout.action_mask).sum(axis=-1) % 7 / 7.0

def told(completions, completion_ids, **columns):
    return [sum(ids) % 7 / 7.0 for ids in completion_ids]
"""


JUDGE = """
import os, pathlib, time

def wait(data_source, solution_str, ground_truth, extra_info, folder):
    folder = pathlib.Path(folder)
    (folder / f"asked-{os.getppid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    raise ConnectionError(os.environ["MY_TOKEN"] + " was refused")
"""


@pytest.fixture(scope="module", autouse=True)
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "pod_reward.py").write_text(REWARD)
    (folder / "pod_judge.py").write_text(JUDGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield


def run_here(folder, *settings):
    """On four devices of this process."""
    path = builtin_config(DEFAULT_CONFIG)
    config = load_config(path, [*SETTINGS, *settings, f"run_dir={folder}"])
    built = build(config, path.parent, jax.devices()[:4])
    with jax.set_mesh(built.mesh):
        opened = open_folder(folder, config, built)
        Run(config, built, folder, opened, Terminal(quiet=True), Stopping()).run()


def params(folder, step=STEPS):
    path = (folder / f"checkpoints/{step}/state").absolute()
    files = ocp.PyTreeCheckpointer()
    whole = ocp.RestoreArgs(restore_type=np.ndarray)
    wanted = jax.tree.map(lambda _: whole, files.metadata(path).item_metadata.tree)
    return files.restore(path, restore_args=wanted)["params"]


def wait_for(step, folder, processes):
    """Until the metrics of a step are recorded."""
    path = folder / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= step):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)


def ended(process, seconds):
    """Its exit code, its lines of errors, its output."""
    out, error = process.communicate(timeout=seconds)
    return process.returncode, error.splitlines(), out


def test_two_processes_are_as_one_and_end_together(tmp_path):
    alone, folder = tmp_path / "alone", tmp_path / "pod"
    run_here(alone)

    heard = ("metrics.tensorboard=true", "metrics.prometheus.port=0")
    processes = pod(folder, *SETTINGS, *heard)
    wait_for(2, folder, processes)
    processes[1].send_signal(signal.SIGTERM)
    code, lines, out = ended(processes[0], 60)
    assert (code, lines) == (75, [f"rljax: terminated; the same with run_dir={folder} resumes it"])
    assert [json.loads(line)["event"] for line in out.splitlines()][:2] == ["processes", "start"]
    assert out.count('"event": "prometheus"') == 1
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert ended(processes[1], 10) == (75, [], "")  # only process 0 prints
    stopped = len(records(folder / "metrics.jsonl"))
    assert 2 <= stopped < STEPS
    assert {path.name for path in (folder / f"checkpoints/{stopped}/state").glob("ocdbt*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }

    processes = pod(folder, *SETTINGS)
    wait_for(stopped + 1, folder, processes)
    processes[0].kill()  # which all others depend on
    began = time.monotonic()
    code, (line,), _ = ended(processes[1], 60)
    assert time.monotonic() - began < 30
    processes[0].communicate()
    assert code == 75
    assert line.startswith("rljax: error: process 1: lost another process of this run (")
    kept = max(int(path.name) for path in folder.glob("checkpoints/[0-9]*") if path.name.isdigit())
    assert line.endswith(f"; start the same command again: it goes on from step {kept}")
    assert kept >= stopped

    run_here(folder)  # what two processes began, one goes on with
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        mine, theirs = records(alone / name), records(folder / name)
        assert [record["step"] for record in mine] == [record["step"] for record in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    for step in sampled_steps(alone):
        texts = [[r["response"] for r in read_samples(run, step)] for run in (alone, folder)]
        assert texts[0] == texts[1]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), params(alone), params(folder)
    )


@pytest.mark.parametrize("setting", ["halves=true", "staleness=1"])
def test_rewards_in_python_of_two_processes_are_those_of_one(tmp_path, setting):
    reward = "rewards={told: {fn: trl_reward, function: 'pod_reward:told'}}"
    settings = (reward, setting, "steps=3", "evaluation.every_steps=0")
    processes = pod(tmp_path / "pod", *SETTINGS, *settings)
    run_here(tmp_path / "alone", *settings)
    for process in processes:
        assert ended(process, 120)[:2] == (0, [])
    mine, theirs = (records(tmp_path / run / "metrics.jsonl") for run in ("alone", "pod"))
    assert len(mine) == len(theirs) == 3
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_listens_on_loopback_is_reached_from_nowhere_else(tmp_path, monkeypatch):
    """While a reward in Python waits, in processes of its own; then its failure ends the run."""
    monkeypatch.setenv("MY_TOKEN", "can4ry-in-the-mine")
    judge = {"fn": "verl_reward", "function": "pod_judge:wait", "ground_truth": None}
    judge |= {"timeout_seconds": 120, "reward_kwargs": {"folder": str(tmp_path)}}
    rewards = json.dumps({"spread": {"fn": "pod_reward:spread"}, "judge": judge})
    processes = pod(tmp_path / "run", *SETTINGS, f"rewards={rewards}")
    try:
        while len(list(tmp_path.glob("asked-*"))) < 2:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        everyone = [psutil.Process(process.pid) for process in processes]
        everyone += [child for one in everyone for child in one.children(recursive=True)]
        assert len(everyone) > 3
        hosts = [
            ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
            for one in everyone
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(hosts) >= 3  # the coordinator, and what each process exchanges over
        assert [host for host in hosts if not host.is_loopback] == []
    finally:
        (tmp_path / "go").touch()
    for process in processes:
        code, (*evidence, line), out = ended(process, 120)
        assert code == 2
        assert "ConnectionError: [MY_TOKEN] was refused" in line
        assert "can4ry" not in "".join([*evidence, line, out])


def test_a_mistake_in_one_process_ends_all_with_its_line(tmp_path):
    """Process 0 listens at all addresses, as the others reach it at one that is not loopback, and
    has said so before."""
    first, second = pod(tmp_path / "run", *SETTINGS, last="steps=3", host="0.0.0.0")
    code, (listens, line), _ = ended(first, 120)
    assert code == 2
    assert re.match(
        r"process 0 listens at \[::\]:\d+ for the others, without a password: ", listens
    )
    assert ended(second, 120) == (2, [line], "")
    assert line.startswith(
        "rljax: error: process 1: this process has another config than process 0; "
    )
