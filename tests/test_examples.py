"""What the README and the page of recipes show runs as it stands there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import write_folder
from tiny import SETTINGS

from rljax import algorithms, launch, rewards, shaping
from rljax.config import load_config
from rljax.host.samples import read_samples
from rljax.listening import open_listeners
from rljax.objective import check_groups, context_of, make_algorithm, make_shaper
from rljax.tasks import character_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "worked_columns.py"
ALERTS = ROOT / "examples" / "alert_on_length.py"
RECIPE = ROOT / "examples" / "best_of_group.py"
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
ALIGNMENT = (ROOT / "docs" / "alignment.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
GROUPS = ["sampling.group_size=2", "data.prompts_per_step=8", "optimizer.value=null"]


def test_the_readme_shows_the_example_and_it_is_short():
    code = EXAMPLE.read_text(encoding="utf-8").partition("\n\n")[2]
    assert code in README
    assert len(code.splitlines()) < 20


def test_the_readmes_config_runs_with_folders_in_its_place(tmp_path, monkeypatch, capsys):
    """As a dry run, on tiny models and two chats."""
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    write_folder(tmp_path / "policy", "qwen2", tokenizer=tokenizer, max_position_embeddings=1024)
    write_folder(tmp_path / "reward", "llama", head="value", max_position_embeddings=1024)
    text = text.replace("Qwen/Qwen2.5-0.5B-Instruct", "policy")
    text = text.replace("path/to/reward-model", "reward")
    (tmp_path / "mine.yaml").write_text(text)
    chat = {"prompt": [{"role": "user", "content": "1+1="}]}
    for name in ("prompts.jsonl", "heldout.jsonl"):
        (tmp_path / name).write_text(f"{json.dumps(chat)}\n" * 8)
    monkeypatch.chdir(tmp_path)
    assert launch.main(["mine.yaml", "update.minibatches=1", "--dry-run"]) == 0, capsys.readouterr()
    assert "reward_model" in capsys.readouterr().out


def test_own_reward_and_shaping_from_the_working_directory(tmp_path, monkeypatch, capsys):
    """The README's own command line, on the tiny network."""
    (command,) = [line for line in README.splitlines() if "worked_columns:shows_work" in line]
    own = shlex.split(command.removeprefix("python -m rljax.launch"))
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert launch.main([*SETTINGS, "warm_start=null", *own, "run_dir=run"]) == 0
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        expected = record["rewards/correct/mean"] + 0.1 * record["rewards/shown/mean"]
        np.testing.assert_allclose(record["reward_mean"], expected, atol=1e-6)
        np.testing.assert_allclose(
            record["token_cost_mean"], 0.005 * record["length_mean"], rtol=1e-5
        )
    capsys.readouterr()


def test_a_recipe_of_ones_own_from_the_working_directory(tmp_path, monkeypatch, capsys):
    assert RECIPE.read_text(encoding="utf-8").partition("\n\n")[2] in RECIPES
    assert len(RECIPE.read_text(encoding="utf-8").splitlines()) < 30
    (command,) = [line for line in RECIPES.splitlines() if "algorithm={fn: best_of_group:" in line]
    own = shlex.split(command.removeprefix("python -m rljax.launch ../configs/grpo.yaml"))
    shutil.copy(RECIPE, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert launch.main([*SETTINGS, *GROUPS, "warm_start=null", *own, "run_dir=run"]) == 0
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["policy/loss"]) for record in metrics)
    capsys.readouterr()


def nodes(heading: str, page: str = RECIPES) -> list[str]:
    """The first column of a section's table on a page, as YAML."""
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    table = section[section.index("|---|") :].partition("\n\n")[0]
    cells = re.findall(r"^\| `(.+?)`(?:, `\w+`)* \|", table, re.MULTILINE)
    assert len(cells) > 5
    return [cell.replace("\\|", "|") for cell in cells]


@pytest.mark.parametrize("node", nodes("Algorithms"))
def test_every_algorithm_of_the_page_builds(node):
    config = load_config(ROOT / "configs" / "addition.yaml", [f"algorithm={node}", *GROUPS])
    context = context_of(config, character_tokenizer())
    algorithm = make_algorithm(config, context)
    check_groups(config, algorithm, make_shaper(config, algorithm, context))


@pytest.mark.parametrize("node", nodes("Preferences", ALIGNMENT))
def test_every_preference_loss_of_the_page_builds(node):
    algorithm = make_algorithm(
        load_config(ROOT / "configs" / "dpo.yaml", [f"algorithm={node}"]), {}
    )
    assert algorithm.learns_from in ("pairs", "labelled")


@pytest.mark.parametrize("node", [n for n in nodes("Length methods") if "algorithm:" not in n])
def test_every_length_method_of_the_page_builds(node):
    config = load_config(
        ROOT / "configs" / "addition.yaml", [f"shaping={{length: {node}}}", *GROUPS]
    )
    context = context_of(config, character_tokenizer()) | {"train_prompts": 8}
    make_shaper(config, make_algorithm(config, context), context)


@pytest.mark.parametrize("module", [algorithms, shaping, rewards])
def test_the_pages_name_every_function(module):
    inner = {"chain", "fixed", "length_metrics", "informative"}
    inner |= {"kl_in_loss", "weighted_sum", "PythonReward"}
    pages = RECIPES + ALIGNMENT
    assert [name for name in module.__all__ if name not in inner and name not in pages] == []


def test_a_reward_in_python_takes_part_in_a_run(tmp_path, monkeypatch, capsys):
    """With a response that fails here and there: it is counted, and the run goes on."""
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(
        "def fails(text):\n"
        "    return bool(set(text) & set('#ae'))\n"
        "def brevity(prompts, completions, answer, **columns):\n"
        "    return [None if '9' in p else float('nan') if fails(c) else -len(c) / 10\n"
        "            for p, c in zip(prompts, completions)]\n"
    )
    text = "{fn: trl_reward, function: 'judge:brevity', max_failed_share: 1}"
    own = [f"rewards.text={text}", "warm_start=null", "steps=2"]
    assert launch.main([*SETTINGS, *own, "run_dir=run"]) == 0, capsys.readouterr()
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum(record["rewards/text/failed"] for record in metrics) > 0
    assert all(record["rewards/text/mean"] < 0 for record in metrics)
    for sample in read_samples(Path("run"), 2):
        failed = bool(set(sample["response"]) & set("#ae"))
        if "9" not in sample["prompt"]:
            assert (sample["reward_raw"] is None) == (sample["reward/text"] is None) == failed
        else:  # the reward does not apply
            assert sample["reward/text"] is None
            assert sample["reward_raw"] == sample["reward/correct"]
    assert "failed for" in capsys.readouterr().out


def test_callbacks_of_ones_own_from_the_working_directory(tmp_path, monkeypatch):
    """The page's own command line, without a run."""
    (command,) = [line for line in METRICS.splitlines() if '"alert_on_length:alert"' in line]
    own = shlex.split(command.removeprefix("python -m rljax.launch"))
    shutil.copy(ALERTS, tmp_path)
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs" / "addition.yaml", own)
    failures = []
    with open_listeners(config, tmp_path, print, failures.append) as listeners:
        for step, share in ((1, 0.5), (2, 0.95)):
            listeners.on_step(step, {"in_band_ratio": share, "response_length_p95": 44.0})
        samples = [{"length_tokens": n, "response": "7" * n} for n in (1, 5, 3, 4)]
        listeners.on_eval(2, {}, samples)
    assert failures == []
    first, *others = map(json.loads, Path("alerts.jsonl").read_text().splitlines())
    assert first == {"step": 1, "in_band": 0.5, "p95": 44.0}
    assert [other["tokens"] for other in others] == [5, 4, 3]


SAMPLE = {"greedy": False, "truncated": False}


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """What the commands before some configs leave behind: a policy, a reward model, samples."""
    monkeypatch.chdir(tmp_path)
    for run in ("sft", "dpo"):
        write_folder(Path(f"runs/{run}/policy"), max_position_embeddings=128)
    write_folder(Path("runs/reward_model/reward"), head="value", max_position_embeddings=128)
    Path("evals/sft").mkdir(parents=True)
    lines = [
        json.dumps(SAMPLE | {"prompt_index": i, "prompt": f"{i}+1=", "response": r, "correct": c})
        for i in range(250)
        for r, c in ((f"#{i + 1}", True), (f"#{i}", False))
    ]
    Path("evals/sft/samples.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
@pytest.mark.usefixtures("earlier")
def test_every_config_builds(path, capsys):
    config = load_config(path, [])
    few = ["mesh=null"]  # there are eight devices here
    if "count" in config.data.train:
        few.append("data.train.count=512")
    if config.warm_start is not None:
        few += ["warm_start.data.count=64", "warm_start.buckets=1"]
    assert launch.main([str(path), *few, "--dry-run"]) == 0, capsys.readouterr().err
    assert "MiB per device" in capsys.readouterr().out
