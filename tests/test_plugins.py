"""Functions of installed packages: found by name wherever a config has one, or clearly refused."""

import json
import shutil
import sys

import pytest
from commands import records
from packages import install, install_example
from tiny import CONFIG, SETTINGS, tiny_build

from rljax import algorithms, launch, plugins, resolve, rewards, shaping
from rljax.changes import changes
from rljax.config import load_config, resolved
from rljax.errors import UserError
from rljax.host.provenance import versions
from rljax.host.steps import read_meta
from rljax.objective import make_rewards
from rljax.tasks import character_tokenizer
from rljax.types import Controller

GENTLE = """
from pathlib import Path
import jax.numpy as jnp
from rljax.shaping import fixed
from rljax.types import Transform

def gentle(max_tokens: int, tokenizer, *, weight: float = 0.1) -> Transform:
    \"\"\"Takes a tenth of what is too long.\"\"\"
    return Transform(lambda: (), lambda rewards, state, rollout: (rewards, state, {}))

def constant(value: float = 0.5):
    return fixed(value)

LIMIT = 3
"""


@pytest.fixture
def gentle(tmp_path, monkeypatch):
    points = {"gentle": "gentle_stages:gentle", "constant": "gentle_stages:constant"}
    install(
        monkeypatch,
        tmp_path / "gentle",
        "gentle-stages",
        {"rljax.shaping": points, "console_scripts": {"gentle": "gentle_stages:gentle"}},
        gentle_stages=GENTLE,
    )
    yield
    sys.modules.pop("gentle_stages", None)


def find(name, module=shaping):
    return resolve.function(name, module, "shaping.x")


@pytest.mark.usefixtures("gentle")
def test_a_name_that_is_not_built_in_is_that_of_a_plug_in():
    assert "gentle_stages" not in sys.modules
    assert find("length_band") is shaping.length_band
    assert "gentle_stages" not in sys.modules
    assert find("gentle")(4, None).init() == ()
    (plugin,) = [p for p in plugins.installed("rljax.shaping") if p.name == "gentle"]
    assert plugin.origin == "gentle-stages 1.0"
    assert versions()["gentle-stages"] == "1.0"


@pytest.mark.usefixtures("gentle")
def test_a_group_is_one_room():
    with pytest.raises(UserError, match='unknown function "gentle"'):
        find("gentle", rewards)


@pytest.mark.usefixtures("gentle")
def test_a_typing_error_is_told_the_plug_ins_too():
    with pytest.raises(
        UserError, match=r'did you mean "gentle"\? \(valid: .*gentle, .*length_band'
    ):
        find("gentel")


@pytest.mark.usefixtures("gentle")
def test_the_run_fills_in_what_it_knows_and_keywords_are_checked():
    node = {"fn": "gentle", "weight": 1}
    context = {"max_tokens": 8, "tokenizer": "TOKENIZER"}
    stage = resolve.call(node, shaping, context=context, where="shaping.x")
    assert stage.init() == ()
    with pytest.raises(UserError, match='unknown key "wieght"; did you mean "weight"'):
        resolve.call({"fn": "gentle", "wieght": 1}, shaping, context=context, where="shaping.x")


@pytest.mark.usefixtures("gentle")
def test_a_plug_in_within_a_node():
    node = {"fn": "length_band", "weight": "constant"}
    context = {"min_tokens": 2, "max_tokens": 8}
    with pytest.raises(UserError, match=r"shaping\.x\.weight: input should be"):
        resolve.call(node, shaping, context=context, where="shaping.x")  # text is no node here
    node = {"fn": "length_band", "weight": {"fn": "constant"}}
    assert resolve.call(node, shaping, context=context, where="shaping.x").init().weight == ()
    written = resolve.explicit(node, shaping, "shaping.x")
    assert written["weight"] == {"fn": "constant", "value": 0.5}
    algorithm = resolve.call(
        {"fn": "grpo", "kl_coef": {"fn": "constant"}},
        algorithms,
        context={},
        where="algorithm",
        nested=shaping,
    )
    assert "kl_loss" in algorithm.shaping
    assert isinstance(find("constant")(), Controller)


def broken(monkeypatch, tmp_path, target, **modules):
    install(monkeypatch, tmp_path, "bad", {"rljax.shaping": {"bad_one": target}}, **modules)
    with pytest.raises(UserError) as error:
        find("bad_one")
    return str(error.value)


@pytest.mark.parametrize(
    ("target", "source", "said"),
    [
        (
            "bad_m1:f",
            "import no_such_thing",
            "ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("bad_m2:f", "raise SystemExit(3)", "SystemExit: 3"),
        ("bad_m3:f", "f = (", "SyntaxError: "),
        ("bad_m4:f", "g = 3", "AttributeError: "),
        ("bad_absent:f", "", "ModuleNotFoundError: No module named 'bad_absent'"),
        ("not a name", "", "cannot import"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path, target, source, said):
    line = broken(
        monkeypatch, tmp_path, target, **{target.partition(":")[0]: source} if source else {}
    )
    assert line.startswith(
        f'shaping.x: cannot import the entry point "bad_one = {target}" of bad 1.0'
    )
    assert said in line
    assert "\n" not in line


def test_a_plug_in_that_is_no_function(monkeypatch, tmp_path):
    line = broken(monkeypatch, tmp_path, "bad_m5:LIMIT", bad_m5="LIMIT = 3")
    assert line.endswith('"bad_one = bad_m5:LIMIT" of bad 1.0 is no function, but a int')


def test_a_broken_plug_in_does_no_harm_to_others(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path / "a", "bad", {"rljax.shaping": {"bad_one": "nowhere:f"}})
    unreadable = tmp_path / "b" / "worse-1.0.dist-info"
    unreadable.mkdir(parents=True)
    (unreadable / "entry_points.txt").write_text("[rljax.shaping]\nneither a name nor a target\n")
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert find("length_band") is shaping.length_band
    assert [p.name for p in plugins.installed("rljax.shaping") if p.package == "bad"] == ["bad_one"]


def test_a_name_that_two_packages_have_is_refused(monkeypatch, tmp_path):
    for package in ("one", "two"):
        points = {"rljax.shaping": {"same": f"{package}_stages:same"}}
        install(monkeypatch, tmp_path / package, package, points, version="2.1")
    said = r'shaping\.x: "same" is there more than once, in one 2\.1 and two 2\.1; say which, as '
    with pytest.raises(UserError, match=said + "one_stages:same or two_stages:same"):
        find("same")


def test_a_plug_in_does_not_take_the_name_of_what_is_built_in(monkeypatch, tmp_path):
    points = {"rljax.shaping": {"length_band": "mine_stages:length_band"}}
    install(monkeypatch, tmp_path, "mine", points, mine_stages="def length_band(): ...")
    said = '"length_band" is there more than once, in rljax itself and mine 1.0; say which, as '
    with pytest.raises(
        UserError, match=said + "rljax.shaping:length_band or mine_stages:length_ba"
    ):
        find("length_band")
    assert find("rljax.shaping:length_band") is shaping.length_band
    assert find("mine_stages:length_band").__module__ == "mine_stages"
    assert find("kimi") is shaping.kimi


@pytest.mark.usefixtures("gentle")
def test_a_package_that_is_on_the_path_twice_is_one(monkeypatch, tmp_path):
    points = {"rljax.shaping": {"gentle": "gentle_stages:gentle"}}
    install(monkeypatch, tmp_path / "again", "Gentle-Stages", points, gentle_stages=GENTLE)
    assert find("gentle").__module__ == "gentle_stages"


# ---- runs

JUDGE = """
from rljax.rewards import trl_reward

def judge(*, on_failure: float = 0.0) -> "rljax.rewards.PythonReward":
    return trl_reward(function="judge_plugin:score", on_failure=on_failure)

def score(completions):
    return [len(completion) / 100 for completion in completions]
"""
OURS = [
    *("sampling.group_size=2", "data.prompts_per_step=8", "optimizer.value=null"),
    *("warm_start=null", "evaluation.prompts=8", "steps=2", "checkpoint.every_steps=1"),
    "algorithm=median_grpo",
    "rewards={correct: brevity_match, judged: judge}",
    "shaping={length: {fn: smooth_band, step_tokens: 0.5, least_accuracy: 0}}",
]


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """The example's package, and another with a reward in Python."""
    install_example(monkeypatch, tmp_path / "example")
    source = JUDGE.replace('"rljax.rewards.PythonReward"', "PythonReward")
    source = source.replace("import trl_reward", "import PythonReward, trl_reward")
    points = {"rljax.rewards": {"judge": "judge_plugin:judge"}}
    install(monkeypatch, tmp_path / "judge", "judge", points, judge_plugin=source)


@pytest.mark.usefixtures("ours")
def test_a_config_keeps_the_names_with_every_default(tmp_path):
    config = load_config(CONFIG, [*SETTINGS, *OURS])
    tree = resolved(config)
    assert tree["algorithm"] == {
        **{"fn": "median_grpo", "clip_low": 0.2, "clip_high": 0.2, "entropy_coef": 0.0}
    }
    assert tree["rewards"]["judged"] == {"fn": "judge", "on_failure": 0.0}
    assert tree["shaping"]["length"] == {
        **{"fn": "smooth_band", "weight": 0.3, "knee_below": 5.0, "knee_above": 10.0},
        **{"step_tokens": 0.5, "least_accuracy": 0},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    again = resolved(load_config(tmp_path / "config.yaml", []))
    assert changes(tree, again) == ([], [], [])
    said = changes(
        tree, resolved(load_config(CONFIG, [*SETTINGS, *OURS, "shaping.length.weight=1"]))
    )
    assert said.learned == ["shaping.length.weight 0.3 -> 1"]


@pytest.mark.usefixtures("ours")
def test_a_keyword_of_a_plug_in_is_checked_in_a_config():
    with pytest.raises(
        UserError,
        match=r'shaping\.length: unknown key "leest_accuracy"; did you mean "least_accuracy"',
    ):
        tiny_build(*OURS, "shaping.length.leest_accuracy=1")
    with pytest.raises(
        UserError, match=r"shaping\.length\.least_accuracy: input should be a valid number"
    ):
        tiny_build(*OURS, "shaping.length.least_accuracy=soon")


@pytest.mark.usefixtures("ours")
def test_a_plug_in_may_read_the_reward_model():
    config = load_config(CONFIG, ["rewards={correct: brevity_match}", "models.reward=a/b"])
    score, in_python = make_rewards(config, {"tokenizer": character_tokenizer()})
    assert callable(score)
    assert in_python == {}
    config = load_config(CONFIG, ["rewards={correct: exact_match}", "models.reward=a/b"])
    with pytest.raises(UserError, match=r"models\.reward: none of the rewards is a reward_model"):
        make_rewards(config, {})


@pytest.mark.usefixtures("ours")
def test_a_run_of_plug_ins_goes_on_where_it_stopped(tmp_path, capsys):
    """Its reward in Python is asked in processes of their own, which find the package too."""
    run = tmp_path / "run"
    command = [*SETTINGS, *OURS, f"run_dir={run}"]
    assert launch.main(command) == 0, capsys.readouterr().err
    whole = records(run / "metrics.jsonl")
    assert [record["shaping/length/max_tokens"] for record in whole] == [11.5, 11.0]
    assert all(record["rewards/judged/mean"] > 0 for record in whole)
    shutil.rmtree(run / "checkpoints" / "2")
    assert launch.main(["--resume", str(run)]) == 0, capsys.readouterr().err
    assert records(run / "metrics.jsonl") == whole
    saved = read_meta(run / "checkpoints", 2)["versions"]
    assert (saved["length-shaper-plugin"], saved["judge"]) == ("0.1.0", "1.0")
