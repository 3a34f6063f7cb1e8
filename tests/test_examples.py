"""What the README shows runs as it stands there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import write_folder
from tiny import SETTINGS

from rljax import launch
from rljax.tasks import character_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "worked_columns.py"


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


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_builds(path, capsys):
    assert launch.main([str(path), "data.prompts_per_step=128", "--dry-run"]) == 0
    assert "MiB per device" in capsys.readouterr().out
