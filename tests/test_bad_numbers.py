"""Whole runs in which numbers go bad: what is recorded, when they stop, where they go back to."""

import contextlib
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import records
from tiny import begin_training

from rljax.build import build
from rljax.config import load_config
from rljax.errors import UserError
from rljax.evaluator import Evaluator
from rljax.folder import open_folder
from rljax.host.stopping import Stopping
from rljax.host.terminal import Terminal
from rljax.launch import DEFAULT_CONFIG, builtin_config
from rljax.run import Run

SETTINGS = [
    "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 16, rope_base: 100}",
    "warm_start=null",
    "algorithm={fn: grpo, scale: none}",
    "sampling={max_tokens: 6, group_size: 2}",
    "optimizer={policy: {learning_rate: 1.0e-3}}",
    "shaping={}",
    "data.train.count=16",
    "data.prompts_per_step=8",
    "length={min_tokens: 2, max_tokens: 4}",
    "evaluation={prompts: 4, samples: 1, every_steps: 3}",
    "checkpoint={every_steps: 2, keep: 100}",
]
REWARD = """
import jax.numpy as jnp

def earned(rollout):
    return (rollout.tokens * rollout.action_mask).sum(axis=-1) % 7 / 7.0

def at_row_5(rollout):  # of the data; held-out prompts have no row of it
    return jnp.where(rollout.extras["row_index"] == 5, jnp.nan, earned(rollout))

def partly(rollout):
    return jnp.where(earned(rollout) > 0.5, jnp.nan, earned(rollout))

def wild(rollout):
    return earned(rollout) * jnp.where(rollout.extras["row_index"] == 5, 1e6, 1.0)
"""
NAN = "rewards={spread: {fn: 'reward_of_bad_numbers:at_row_5'}}"
PARTLY = "rewards={spread: {fn: 'reward_of_bad_numbers:partly'}}"
WILD = "rewards={spread: {fn: 'reward_of_bad_numbers:wild'}}"


@pytest.fixture(scope="module", autouse=True)
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "reward_of_bad_numbers.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def build_of(folder, *settings: str):
    """For one device of this process."""
    path = builtin_config(DEFAULT_CONFIG)
    config = load_config(path, [*SETTINGS, *settings, f"run_dir={folder}"])
    return build(config, path.parent, jax.devices()[:1]), config


def run(folder, *settings: str) -> None:
    built, config = build_of(folder, *settings)
    with jax.set_mesh(built.mesh):
        opened = open_folder(folder, config, built)
        Run(config, built, folder, opened, Terminal(), Stopping()).run()


def saved(folder, step: int) -> dict:
    tree = ocp.StandardCheckpointer().restore((folder / f"checkpoints/{step}/state").absolute())
    return jax.tree.map(np.asarray, {name: tree[name] for name in ("params", "opt_state")})


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def strict(path):
    """A file of JSON lines, without what JSON has not: NaN."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_run_goes_on_past_bad_rewards_and_keeps_the_evidence(tmp_path, capsys):
    run(tmp_path, NAN, "steps=4")  # two epochs of two steps: the row comes twice
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    metrics = strict(tmp_path / "metrics.jsonl")
    bad = [record["step"] for record in metrics if record["guard/skipped_updates"]]
    assert len(bad) == 2
    for record in metrics:
        assert (record["reward_mean"] is None) == (record["step"] in bad)
        assert record["guard/bad_rewards"] == 2 * (record["step"] in bad)  # its two responses
    files = sorted(tmp_path.glob("bad_steps/*"))
    assert [file.name for file in files] == [f"{step:06d}.json" for step in bad]
    for file in files:
        told = json.loads(file.read_text())
        assert told["why"] == "a reward is not finite in 2 row(s)"
        assert [(row["data_row"], row["bad"]) for row in told["rows"]] == [(5, ["reward"])] * 2
        assert {row["rewards/spread"] for row in told["rows"]} == {"nan"}
    events = [(e["step"], e["file"]) for e in said if e["event"] == "skipped"]
    assert events == [(step, str(file)) for step, file in zip(bad, files, strict=True)]
    warnings = [e["text"] for e in said if e["event"] == "warning"]
    assert not any("null" in text for text in warnings)  # what follows from it is not said apart
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert np.isfinite(summary["after"]["reward_mean"])
    assert (tmp_path / "curves.png").exists()


def test_bad_steps_in_a_row_stop_a_run_and_its_resumption(tmp_path):
    always = (NAN, "steps=5", "data.train.count=8")  # the row is in every step
    with pytest.raises(UserError) as error:
        run(tmp_path, *always, "guard.max_skipped=2")
    assert "stopped at step 2, with the state saved: in 2 step(s) in a row" in str(error.value)
    assert str(error.value).endswith(f"; see {tmp_path}/bad_steps/000002.json")
    assert_equal(saved(tmp_path, 2), saved(tmp_path, 0))
    with pytest.raises(UserError, match=r"stopped at step 3, .* in 3 step\(s\) in a row"):
        run(tmp_path, *always, "guard.max_skipped=2")
    run(tmp_path, *always, "guard.max_skipped=null")  # the guard may change
    assert [r["guard/skipped_in_a_row"] for r in records(tmp_path / "metrics.jsonl")] == [
        *(1, 2, 3, 4, 5)
    ]
    assert_equal(saved(tmp_path, 5)["params"], saved(tmp_path, 0)["params"])


def test_a_run_that_diverges_goes_back_and_is_resumed_as_the_same_run(tmp_path):
    settings = (WILD, "steps=6", "guard={max_grad_norm: 1000.0, on_divergence: roll_back}")
    whole = tmp_path / "whole"
    run(whole, *settings)
    metrics = records(whole / "metrics.jsonl")
    bad = [record["step"] for record in metrics if record.get("guard/rolled_back")]
    assert len(bad) >= 2  # of three epochs
    for step in bad:
        before = (step - 1) // 2 * 2  # the last that was due
        assert_equal(saved(whole, step), saved(whole, before))
    assert any(
        not np.array_equal(x, y)
        for x, y in zip(*(jax.tree.leaves(saved(whole, step)) for step in (0, 6)), strict=True)
    )
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    for kept in (resumed / "checkpoints").iterdir():
        if kept.name.isdigit() and int(kept.name) > 2:
            shutil.rmtree(kept)
    run(resumed, *settings)
    assert_equal(saved(resumed, 6), saved(whole, 6))
    assert records(resumed / "metrics.jsonl") == metrics


def test_held_out_responses_without_a_finite_reward_count_as_failed(tmp_path):
    """But for the first evaluation: a reward that is broken is to be heard of at once."""
    built, config = build_of(tmp_path, PARTLY)
    evaluator = Evaluator(config, built, lambda what: contextlib.nullcontext())
    heard = []
    with jax.set_mesh(built.mesh):
        state, _ = begin_training(built)
        figures, samples = evaluator(state, heard.append)
        said = r'reward "spread" gave \d+ non-finite value\(s\) on .*; the first: prompt .\d+\+'
        with pytest.raises(UserError, match=said):
            evaluator(state)
    failed = [sample for sample in samples if sample["reward_raw"] is None]
    assert 0 < len(failed) < len(samples)
    assert figures["failed_ratio"] == len(failed) / len(samples)
    assert all(np.isfinite(value) for value in figures.values())
    assert heard == [
        f"{len(failed)} held-out response(s) have no finite reward, and enter no figure of it"
    ]
