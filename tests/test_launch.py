"""The command, as a user meets it: runs, resumes, refuses."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest
import yaml
from commands import process, records, tables
from tiny import SETTINGS

from rljax import launch, score
from rljax.config import load_config
from rljax.host.samples import read_samples, sampled_steps
from rljax.scoring import make_judging, newest_state

RUN = [*SETTINGS, "steps=24", "warm_start.steps=24", "checkpoint.every_steps=3"]
# A controller and a running scale, so that adapting state is part of what must survive.
RUN += [
    "shaping.kl.coef={fn: adaptive_kl, start: 0.05, target: 0.1, horizon: 200}",
    "shaping.length.relative_to_reward=0.1",
    "shaping.length.max_tokens={fn: drift, start: 8, limit: 5, factor: 0.8}",
]


def final_state(run_dir: Path, step: int = 24) -> dict:
    """Every leaf of the last checkpoint as bytes, by its path."""
    tree = ocp.StandardCheckpointer().restore((run_dir / f"checkpoints/{step}/state").absolute())
    tree["key"] = jax.random.key_data(tree["key"])
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run = process(folder, *RUN)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return folder, out


def test_the_run_folder_is_complete(undisturbed):
    folder, _ = undisturbed
    summary = json.loads((folder / "summary.json").read_text())
    for moment in ("before", "after"):
        for name in ("accuracy_greedy", "accuracy_sampled", "in_band_ratio"):
            assert 0 <= summary[moment][name] <= 1
        assert 1 <= summary[moment]["length_mean"] <= 12
    assert summary["steps"] == 24
    assert summary["wall_seconds"] > summary["compile_seconds"] > 0
    metrics = records(folder / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, 25))
    for name in ("length_mean", "length_std", "length_penalty_mean", "response_length_p95"):
        assert all(np.isfinite(record[name]) for record in metrics)
    assert sampled_steps(folder) == [0, 24]
    for row in (row for step in (0, 24) for row in read_samples(folder, step)):
        assert row["prompt"].endswith("=")
        assert row["length_verdict"] == "short" or row["length_tokens"] >= 4
        assert row["reward/correct"] == row["reward_raw"] == row["correct"]
        assert row["shaping"] == pytest.approx(row["reward_shaped"] - row["reward_raw"])
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["algorithm"]["clip_low"] == 0.2  # a default, written out
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (folder / "policy" / name).stat().st_size > 0


def test_a_runs_own_samples_are_scored_as_the_run_did(undisturbed, capsys):
    """With what its controllers have learned; the price of the KL is left out."""
    folder, _ = undisturbed
    out = folder.parent / "scored.parquet"
    table = folder / "samples/00000024.parquet"
    assert score.main([str(table), "--config", str(folder), "--out", str(out)]) == 0
    assert f"shaping is that of {folder} at step 24" in capsys.readouterr().out
    judging = make_judging(load_config(folder / "config.yaml", []))
    leaves, _ = jax.tree_util.tree_flatten_with_path(newest_state(judging, folder)[0])
    expected = [
        leaf for path, leaf in final_state(folder).items() if "['shaping']['length']" in path
    ]
    assert len(leaves) > 3
    assert sorted(np.asarray(leaf).tobytes() for _, leaf in leaves) == sorted(expected)
    compared = 0
    for mine, theirs in zip(read_samples(folder, 24), pq.read_table(out).to_pylist(), strict=True):
        whole = len(mine["response"]) + (not mine["truncated"]) == mine["length_tokens"]
        for name in (*(("length_tokens", "length_verdict") if whole else ()), "truncated"):
            assert mine[name] == theirs[name]
        compared += whole
    assert compared > 3


def test_a_run_that_samples_needs_no_held_out_prompts(tmp_path):
    settings = ["data.eval=null", "evaluation={}", "warm_start=null", "steps=2"]
    run = process(tmp_path / "run", *SETTINGS, *settings)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["before"], summary["after"], summary["steps"]) == ({}, {}, 2)
    assert len(records(tmp_path / "run" / "metrics.jsonl")) == 2
    assert not (tmp_path / "run" / "samples").exists()


def test_output_that_is_no_terminal_is_json_lines(undisturbed):
    _, out = undisturbed
    events = [json.loads(line) for line in out.splitlines()]
    assert next(event["event"] for event in events) == "start"
    assert events[-1]["event"] == "done"
    assert events[-1]["summary"]["steps"] == 24
    compiled = {e["program"] for e in events if e["event"] == "compiled"}
    assert compiled == {"warm_start", "evaluation", "train"}
    assert len(out.splitlines()) < 60


def test_trl_3247_a_resumed_run_was_another_run(undisturbed, tmp_path):
    """SIGKILL in the warm start, between steps, and while a checkpoint is being written."""
    expected, _ = undisturbed

    def lines(name):
        path = tmp_path / name
        return path.read_text().count("\n") if path.exists() else 0

    def saving():
        return lines("metrics.jsonl") > 12 and any(tmp_path.glob("checkpoints/*tmp*"))

    moments = {
        "in the warm start": lambda: lines("warm_start/metrics.jsonl") >= 10,
        "in training": lambda: lines("metrics.jsonl") >= 5,
        "in a save": saving,
    }
    for name, reached in moments.items():
        run = process(tmp_path, *RUN)
        while not reached() and run.poll() is None:
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL, f"it ended before it could be killed {name}"
        assert not (tmp_path / "summary.json").exists()
    run = process(tmp_path, *RUN)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert '"event": "resume"' in out
    assert final_state(tmp_path) == final_state(expected)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(tmp_path / name) == records(expected / name)
    assert tables(tmp_path) == tables(expected)
    weights = "policy/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (expected / weights).read_bytes()


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    """In the warm start, and in training: one that schedulers send, and one that people do."""
    cases = [
        ("warm_start", signal.SIGTERM, 75, "terminated"),
        (".", signal.SIGINT, 130, "interrupted"),
    ]
    for phase, number, code, says in cases:
        run = process(tmp_path, *RUN, "steps=4000", "warm_start.steps=80", "checkpoint.keep=100")
        metrics = tmp_path / phase / "metrics.jsonl"
        while run.poll() is None and not (metrics.exists() and len(records(metrics)) > 4):
            time.sleep(0.01)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
        assert run.returncode == code
        assert err.endswith(f"rljax: {says}; the same with run_dir={tmp_path} resumes it\n")
        assert "Traceback" not in err
        step = records(metrics)[-1]["step"]  # the one that was under way
        assert (tmp_path / phase / "checkpoints" / str(step)).exists()


def test_a_finished_run_is_not_trained_again(undisturbed):
    folder, _ = undisturbed
    before = final_state(folder)
    run = process(folder, *RUN)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert '"event": "step"' not in out
    assert final_state(folder) == before


def refused(capsys, *settings: str) -> str:
    """The one line of a command that is refused."""
    assert launch.main([*SETTINGS, "data.prompts_per_step=16", *settings]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("rljax: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("stepz=3", 'unknown key "stepz"; did you mean "steps"?'),
        ("data.trian=x", 'unknown key "data.trian"; did you mean "train"?'),
        ("shaping.length.wieght=1", 'shaping.length: unknown key "wieght"; did you mean "weight"?'),
        ("models.policy.layers=two", "models.policy.layers: "),
        ("steps=many", "steps: "),
        ("shaping.length={fn: lenght_band}", 'did you mean "length_band"?'),
        ("mesh={data: 3}", "does not fit 8 device(s)"),
        ("length={min_tokens: 9, max_tokens: 8}", "min_tokens=9, max_tokens=8"),
        ("data.eval=nowhere.jsonl", "nowhere.jsonl"),
        ("data.prompts_per_step=12", "8 or 16 would"),
        ("update.minibatches=3", "micro-batches over 8 row shard(s); 24 would"),
        ("rewards.correct=absent_module:reward", 'cannot import "absent_module"'),
        ("reward_weights={corect: 1}", 'did you mean "correct"?'),
        ("optimizer.policy.learning_rate=0", "needs learning_rate > 0"),
        ("sampling.top_p=2", "top_p must lie in (0, 1]"),
        ("algorithm=sft", "data.prompts_per_step: sft does not read it"),
        ("tokenizer=character_tokenzier", 'did you mean "character_tokenizer"?'),
    ],
)
def test_bad_settings_end_in_one_line(capsys, setting, says):
    assert says in refused(capsys, setting, "--dry-run")


def test_bad_files_end_in_one_line(capsys, tmp_path):
    def says(text, name="data.jsonl"):
        path = tmp_path / name
        path.write_text(text)
        return refused(capsys, f"data.eval={path}", "--dry-run")

    good = '{"prompt": "1+1=", "answer": "2"}\n'
    assert "no rows" in says("")
    assert "data.jsonl:2: not valid JSON" in says(good + '{"prompt": "1+\n')
    assert 'data.jsonl:2: "prompt" is missing or null' in says(good + '{"answer": "2"}\n')
    assert "more than data.max_prompt_tokens=8" in says('{"prompt": "1111+11111="}\n')
    assert "cannot read the config" in refused_config(capsys, tmp_path / "absent.yaml")
    for name in ("grpo", "configs/grpo.yaml"):
        assert "the recipe of that name is" in refused_config(capsys, tmp_path / name)
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    assert "not valid YAML" in refused_config(capsys, tmp_path / "broken.yaml")


def refused_config(capsys, path: Path) -> str:
    assert launch.main([str(path), "--dry-run"]) == 2
    return capsys.readouterr().err


def test_bad_rewards_end_in_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "bad_rewards.py").write_text(
        "import jax.numpy as jnp\n"
        "def per_token(rollout): return rollout.logprobs\n"
        "def nan(rollout): return jnp.full(rollout.tokens.shape[0], jnp.nan)\n"
        "def raising(rollout): return rollout.absent\n"
        "def in_python(rollout): return [float(row[0]) for row in rollout.tokens]\n"
    )
    monkeypatch.chdir(tmp_path)

    def says(name):
        settings = ("warm_start=null", f"rewards.correct=bad_rewards:{name}")
        return refused(capsys, *settings)

    assert "one number per response, shape (16,); it returned shape (16, 20)" in says("per_token")
    assert "gave 32 non-finite value(s) on the held-out prompts" in says("nan")
    assert "raised AttributeError" in says("raising")
    assert "write it with jax.numpy" in says("in_python")
    assert 'marker "ab" must be one token' in refused(capsys, "rewards.correct.marker=ab")
    assert list((tmp_path / "runs").iterdir()) == []  # the next run is not another one's


def test_dry_run_prints_the_plan_and_starts_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [*SETTINGS, "mesh={data: 2, fsdp: 2, tensor: 2}", "--dry-run"]
    assert launch.main(settings) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out[: out.index("\ndevices ")])["update"]["microbatches"] == 1
    # 2 layers x (4 attention matrices of 16 x 16, 3 of 16 x 32, 2 norms) + embedding + norm
    count = 2 * (4 * 256 + 3 * 512 + 2 * 16) + 100 * 16 + 16
    assert f"policy {count:,}, value {count + 16:,}, reference {count:,}" in out
    assert "data=2 x fsdp=2 x tensor=2" in out
    assert "MiB per device" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", ["", "/elsewhere"])
def test_programs_are_kept_in_the_users_cache_folder(monkeypatch, said):
    """Unless the environment says where."""
    settings: dict[str, object] = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if said:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", said)
    launch.use_compilation_cache()
    kept = settings.get("jax_compilation_cache_dir")
    assert kept == (None if said else "/home/someone/cache/rljax/xla")
