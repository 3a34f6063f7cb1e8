"""From YAML and overrides to a configuration: what may be set, what is refused, what is written."""

from pathlib import Path

import jax
import pytest
import yaml
from tiny import CONFIG, tiny_build

from rljax.build import build
from rljax.checks import abstract_state
from rljax.config import load_config, resolved
from rljax.config_file import apply_override, builtin_config
from rljax.errors import UserError

DRIFT = "shaping.length.weight={fn: drift, start: 1, limit: 4, factor: 1.5}"


def load(*overrides):
    return load_config(CONFIG, list(overrides))


def written(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def overridden(tree, *overrides):
    for override in overrides:
        apply_override(tree, override)
    return tree


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("x=1", 1),
        ("x=6.0e-4", 0.0006),
        ("x=true", True),
        ("x=null", None),
        ("x=", None),
        ("x=text", "text"),
        ("x=a=b", "a=b"),
        ("x=own.module:fn", "own.module:fn"),
        ("x={fn: drift, start: 0.5, at: [1, 2]}", {"fn": "drift", "start": 0.5, "at": [1, 2]}),
    ],
)
def test_a_value_is_read_as_yaml(override, value):
    tree = overridden({"x": "before", "y": 3}, override)
    assert tree == {"x": value, "y": 3}
    assert type(tree["x"]) is type(value)


def test_a_path_leads_into_nested_nodes():
    tree = {"shaping": {"length": {"fn": "length_band", "weight": {"fn": "drift", "start": 1}}}}
    overridden(tree, "shaping.length.weight.start=2", "shaping.length.cap=null")
    assert tree["shaping"]["length"] == {
        "fn": "length_band",
        "weight": {"fn": "drift", "start": 2},
        "cap": None,
    }


def test_keys_below_a_name_make_it_a_node():
    assert overridden({"model": "llama"}, "model.layers=2", "model.width=8") == {
        "model": {"fn": "llama", "layers": 2, "width": 8}
    }


def test_what_is_absent_or_null_grows_on_the_way():
    assert overridden({"shaping": None}, "shaping.kl.fn=kl_penalty", "mesh.data=2") == {
        "shaping": {"kl": {"fn": "kl_penalty"}},
        "mesh": {"data": 2},
    }


def test_the_last_override_wins():
    assert load("seed=1", "seed=2").seed == 2
    assert load("models.policy=own:model", "models.policy.layers=5").models.policy == {
        "fn": "own:model",
        "layers": 5,
    }
    assert load("models.policy.layers=5", "models.policy=own:model").models.policy == "own:model"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", 'cannot read "seed": overrides are key=value'),
        ("=1", 'cannot read "=1"'),
        ("seed={", 'cannot read the value of "seed={"'),
        ("seed.x=1", '"seed.x=1": seed has no keys below it'),
        (
            "models.policy.layers.x=1",
            '"models.policy.layers.x=1": models.policy.layers has no keys below it',
        ),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused(override, said):
    with pytest.raises(UserError) as error:
        load(override)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("off", ["shaping=off", "shaping=null", "shaping=false", "shaping={}"])
def test_shaping_off_drops_every_stage(off):
    config = load(off)
    assert config.shaping_stages() == {}
    assert resolved(config)["shaping"] == {}


def test_a_stage_that_is_null_is_dropped():
    assert load().shaping_stages().keys() == {"length", "kl"}
    config = load("shaping.length=null")
    assert config.shaping_stages().keys() == {"kl"}
    assert resolved(config)["shaping"].keys() == {"kl"}


def test_without_a_stage_that_needs_it_there_is_no_reference():
    assert tiny_build().networks.roles.keys() == {"policy", "value", "reference"}
    assert tiny_build("shaping.kl=null").networks.roles.keys() == {"policy", "value"}
    assert tiny_build("shaping=off").networks.roles.keys() == {"policy", "value"}


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("stepz=3", "stepz", "steps"),
        ("data.trian=x", "data.trian", "train"),
        ("length.max_token=3", "length.max_token", "max_tokens"),
        ("warm_start.batchsize=3", "warm_start.batchsize", "batch_size"),
        ("evaluation.prompt=3", "evaluation.prompt", "prompts"),
        ("checkpoint.kepe=3", "checkpoint.kepe", "keep"),
    ],
)
def test_an_unknown_key_of_a_section_names_the_nearest(override, where, nearest):
    with pytest.raises(UserError) as error:
        load(override)
    assert f'unknown key "{where}"; did you mean "{nearest}"? (valid: ' in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mesh.fdsp=1", 'mesh: unknown key "fdsp"; did you mean "fsdp"?'),
        ("models.policy.layer=1", 'models.policy: unknown key "layer"; did you mean "layers"?'),
        (
            "models.policy.fn=lama",
            'models.policy: "lama" is no folder here, no hub id, and no function; '
            'did you mean "llama"?',
        ),
        ("algorithm.clip_hihg=1", 'algorithm: unknown key "clip_hihg"; did you mean "clip_high"?'),
        ("data.train.cuont=1", 'data.train: unknown key "cuont"; did you mean "count"?'),
        ("sampling.max_token=1", 'sampling: unknown key "max_token"; did you mean "max_tokens"?'),
        ("update.epoch=1", 'update: unknown key "epoch"; did you mean "epochs"?'),
        (
            "optimizer.value.epsilon=1",
            'optimizer.value: unknown key "epsilon"; did you mean "eps"?',
        ),
        ("optimizer.polcy={}", "optimizer: settings are needed for policy and value, got them for"),
        ("rewards.correct.markr=1", 'rewards.correct: unknown key "markr"; did you mean "marker"?'),
        ("reward_weights.corect=1", 'reward_weights: no reward "corect"; did you mean "correct"?'),
        ("shaping.kl.ceof=1", 'shaping.kl: unknown key "ceof"; did you mean "coef"?'),
        (
            f"{DRIFT[:-1]}, windw: 2}}",
            'shaping.length.weight: unknown key "windw"; did you mean "window"?',
        ),
        (
            "warm_start.optimizer.warmup_step=1",
            'warm_start.optimizer: unknown key "warmup_step"; did you mean "warmup_steps"?',
        ),
        ("warm_start.data.cuont=1", 'warm_start.data: unknown key "cuont"; did you mean "count"?'),
    ],
)
def test_an_unknown_key_of_a_function_names_the_nearest(override, said):
    with pytest.raises(UserError) as error:
        tiny_build(override)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=many", "steps: input should be a valid integer"),
        ("steps=-1", "steps: input should be greater than or equal to 0, got -1"),
        ("checkpoint.keep=0", "checkpoint.keep: input should be greater than 0, got 0"),
        ("length={min_tokens: 9, max_tokens: 8}", "a length band needs 0 <= min_tokens <="),
        ("data={eval: x, prompts_per_step: 1}", 'the config lacks "data.train"'),
        ("data.overlong=cut", "data.overlong: input should be 'refuse', 'drop' or 'truncate'"),
        ("steps=2147483648", "steps: input should be less than 2147483648, got 2147483648"),
        ("warm_start.steps=0", "warm_start.steps: input should be greater than 0, got 0"),
        ("data.prompts_per_step=131073", "data.prompts_per_step: input should be less than or"),
        ("data.max_prompt_tokens=16777217", "data.max_prompt_tokens: input should be less than"),
        ("seed={a: .nan}", 'cannot read the value of "seed={a: .nan}": a: .nan is no number'),
        (f"run_dir{33 * '.a'}=1", "run_dir.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.…: more than 32"),
        ("steps=null", 'the config lacks "steps", or else "epochs"'),
        ("epochs=2", "steps and epochs both say how long to train"),
    ],
)
def test_a_value_of_a_section_is_checked_at_once(override, said):
    with pytest.raises(UserError) as error:
        load(override)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "expected a mapping of keys to values"),
        ("", "expected a mapping of keys to values"),
        ("steps: 1\n", 'the config lacks "models"'),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        load_config(written(tmp_path, text), [])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["a\nb", "\x1b[2J", "x" * 10**5, "é" * 10**5])
@pytest.mark.parametrize(
    "key",
    [
        "{}",
        "seed",
        "data.eval",
        "data.train",
        "models.policy",
        "tokenizer",
        "algorithm",
        "mesh.fsdp",
    ],
)
def test_what_a_refusal_quotes_leaves_it_one_line(key, value):
    override = f'{key}="{value}"' if "{" not in key else f"{value}=1"
    with pytest.raises(UserError) as error:
        build(load(override), CONFIG.parent, jax.devices()[:1])
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 1500


def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"steps: \xff")
    with pytest.raises(UserError, match=r"config.yaml: not UTF-8 text"):
        load_config(path, [])
    path.write_bytes(b"\xef\xbb\xbf" + CONFIG.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path, []).steps == 80
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UserError, match=r"more than 1,048,576 bytes; this is no config"):
        load_config(path, [])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml", [])
    with pytest.raises(UserError, match=r"the built-in config none\.yaml is missing"):
        builtin_config("none.yaml")


def extending(tmp_path, **files):
    """The config of the last file, each one beside the others."""
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return load_config(tmp_path / f"{name}.yaml", [])


def test_a_file_is_laid_over_the_one_that_it_extends(tmp_path):
    base = CONFIG.read_text()
    config = extending(
        tmp_path,
        base=base,
        middle="extends: base.yaml\nalgorithm: {fn: grpo, kl_coef: 0.5}\noptimizer: {value: null}\n"
        "sampling: {group_size: 2}\nshaping: {kl: null, length: {weight: 0.5}}",
        top="extends: middle.yaml\nalgorithm: {fn: grpo, scale: none}\nsteps: 7",
    )
    plain = load()
    assert config.steps == 7
    assert config.algorithm == {"fn": "grpo", "kl_coef": 0.5, "scale": "none"}
    assert config.sampling == {**plain.sampling, "group_size": 2}
    assert config.optimizer == {"policy": plain.optimizer["policy"]}  # the critic's are taken away
    assert config.shaping_stages() == {"length": plain.shaping["length"] | {"weight": 0.5}}
    assert config.models == plain.models


def test_a_node_of_another_function_takes_the_place_of_the_one_below(tmp_path):
    config = extending(
        tmp_path,
        base=CONFIG.read_text(),
        top="extends: base.yaml\nshaping: {length: {fn: kimi}}\nalgorithm: {fn: gpg}",
    )
    assert config.shaping["length"] == {"fn": "kimi"}  # length_band's keywords are gone
    assert config.algorithm == {"fn": "gpg"}


def test_keywords_alone_go_to_the_function_below(tmp_path):
    config = extending(
        tmp_path,
        base=CONFIG.read_text().replace(
            "algorithm: {fn: ppo, lam: 0.99, value_clip: null}", "algorithm: ppo"
        ),
        top="extends: base.yaml\nalgorithm: {lam: 0.5}",
    )
    assert config.algorithm == {"fn": "ppo", "lam": 0.5}


def test_null_takes_a_reward_away_and_another_decides_what_is_correct(tmp_path):
    config = extending(
        tmp_path,
        base=CONFIG.read_text(),
        top="extends: base.yaml\nrewards: {correct: null, whole: exact_match}",
    )
    assert config.rewards == {"whole": "exact_match"}


def test_data_beside_the_file_that_is_extended_is_found_from_anywhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = written(tmp_path / "elsewhere", f"extends: {CONFIG}\nsteps: 1")
    assert load_config(path, []).data.eval == str(CONFIG.parent / "addition_heldout.jsonl")


@pytest.mark.parametrize("name", ["a.yaml", "b.yaml", "7"])
def test_files_that_extend_each_other_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"extends: expected the name of another file"):
        extending(tmp_path, b="extends: a.yaml", a=f"extends: {name}")


def test_an_extended_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the config .*base\.yaml"):
        extending(tmp_path, top="extends: base.yaml")


def test_a_source_with_settings_takes_the_place_of_the_one_below(tmp_path):
    for below in ("{fn: made, count: 3}", "old.jsonl", "{source: old.jsonl, subset: x}"):
        (tmp_path / "base.yaml").write_text(f"data: {{train: {below}}}")
        (tmp_path / "new.jsonl").write_text("")
        (tmp_path / "mine.yaml").write_text(
            "extends: base.yaml\nsteps: 1\nmodels: {policy: llama}\nalgorithm: sft\n"
            "optimizer: {}\ndata: {train: {source: new.jsonl, weight: 2}}"
        )
        source = load_config(tmp_path / "mine.yaml", []).data.train
        # It is named from anywhere, also from the run's folder.
        assert source == {"source": str(tmp_path / "new.jsonl"), "weight": 2}


def test_what_is_stale_is_corrected():
    assert resolved(load(DRIFT))["correction"] is None
    assert resolved(load(DRIFT, "staleness=1"))["correction"] == {
        "level": "token", "cap": 2.0, "reject_above": None, "reject_by": "mean", "estimator": "k3",
    }  # fmt: skip
    mine = resolved(load(DRIFT, "staleness=1", "correction={cap: 3}"))["correction"]
    assert mine["cap"] == 3
    for wrong in (2, -1, "one"):
        with pytest.raises(UserError, match="staleness: input should be"):
            load(DRIFT, f"staleness={wrong}")


@pytest.mark.parametrize("name", ["quantization", "kv_cache_dtype"])
def test_what_is_sampled_in_eight_bits_is_corrected(name):
    setting = f"sampling.{name}=int8"
    assert resolved(load(DRIFT, setting))["correction"]["cap"] == 2.0
    assert resolved(load(DRIFT, setting, "correction={cap: 3}"))["correction"]["cap"] == 3
    assert resolved(load(DRIFT, f"evaluation.{setting}"))["correction"] is None


def test_resolved_writes_out_every_default():
    tree = resolved(load(DRIFT, "update={epochs: 3}", "evaluation={}"))
    assert tree["mesh"] == {"data": -1, "fsdp": 1, "expert": 1, "sequence": 1, "tensor": 1}
    assert tree["update"] == {"epochs": 3, "minibatches": 1, "microbatches": 1, "buckets": 1}
    assert tree["evaluation"] == {
        "prompts": 256, "prompts_at_once": None, "every_steps": 0, "samples_per_prompt": 1,
        "sampling": {}, "samples": None, "best": None, "best_is": None, "patience": None,
    }  # fmt: skip
    assert tree["checkpoint"] == {"every_steps": 20, "keep": 2}
    assert tree["run_dir"] is None
    assert tree["sampling"] == {
        "max_tokens": 72, "group_size": 1, "slots": None, "prompt_lookup": 0,
        "temperature": 1.0, "top_k": None, "top_p": None, "min_p": None,
        "quantization": None, "kv_cache_dtype": None,
    }  # fmt: skip
    assert tree["rewards"]["correct"] == {"fn": "answer_match", "marker": "#", "column": "answer"}
    assert tree["shaping"] == {
        "length": {
            "fn": "length_band",
            "weight": {"fn": "drift", "start": 1, "limit": 4, "factor": 1.5, "window": 3},
            "scale_tokens": 15, "cap": 1.0, "relative_to_reward": None, "correct_only": False,
        },
        "kl": {"fn": "kl_penalty", "coef": 0.01, "estimator": "k1"},
    }  # fmt: skip
    expected = {"clip_low": 0.2, "dual_clip": 3.0, "lam": 0.99, "value_clip": None, "fn": "ppo"}
    assert expected.items() <= tree["algorithm"].items()
    assert {"fn": "llama", "kv_heads": None, "tied": True, "layers": 3}.items() <= (
        tree["models"]["policy"].items()
    )
    for role, rate in (("policy", 6e-4), ("value", 3e-3)):
        expected = {"learning_rate": rate, "schedule": "linear", "b2": 0.999, "clip_norm": 1.0}
        assert expected.items() <= tree["optimizer"][role].items()
    warm = {"b1": 0.9, "b2": 0.98, "schedule": "cosine", "weight_decay": 0.01}
    assert warm.items() <= tree["warm_start"]["optimizer"].items()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["shaping=off", "warm_start=null"],
        ["shaping.length=null", "seed=3", "run_dir=somewhere", "reward_weights.correct=2"],
        [
            DRIFT,
            "models.policy=llama",
            "models.policy.layers=2",
            "mesh.tensor=2",
            "sampling.top_p=0.9",
        ],
    ],
    ids=["the recipe", "nothing", "null stage", "nested"],
)
def test_resolved_loads_again_as_itself(tmp_path, overrides):
    tree = resolved(load(*overrides))
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    again = resolved(load_config(written(tmp_path, text), []))
    assert again == tree
    assert list(again) == list(tree)


def test_what_resolved_wrote_builds_the_same_run(tmp_path):
    config = load(DRIFT, "data.train.count=64", "warm_start=null")
    text = yaml.safe_dump(resolved(config))

    def built(config):
        run = build(config, CONFIG.parent, jax.devices()[:1])
        return run.decoder, run.train.steps, abstract_state(run, run.train)

    assert built(load_config(written(tmp_path, text), [])) == built(config)


def leaves(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def test_every_key_of_the_recipe_is_taken():
    recipe = yaml.safe_load(CONFIG.read_text())
    config = load()
    for path, value in leaves(recipe):
        assert load(f"{path}={yaml.safe_dump(value, default_flow_style=True)}") == config
        kept = resolved(config)
        for name in path.split("."):
            kept = kept[name]
        assert (Path(kept).name if path == "data.eval" else kept) == value, path
    small = load("data.train.count=200", "warm_start.data.count=200")
    built = build(small, CONFIG.parent, jax.devices()[:1])
    assert (built.decoder.layers, built.decoder.width, built.train.steps) == (3, 64, 80)
    assert built.sample.keywords["max_tokens"] == 72


def test_a_number_with_an_exponent_is_a_number():
    """YAML 1.1 reads 1e-4 as text."""
    for text in ("1e-4", "1.0e-4", "0.0001", "1E-4"):
        rate = load(f"optimizer.policy.learning_rate={text}").optimizer["policy"]["learning_rate"]
        assert rate == 1e-4
        assert isinstance(rate, float)
    assert load("seed=1_0", "run_dir=1e").run_dir == "1e"


@pytest.mark.parametrize(
    ("best", "expected"),
    [("heldout/policy/nll", "min"), ("heldout/loss", "min"), ("accuracy_sampled", "max")],
)
def test_less_of_a_loss_is_better(best, expected):
    settings = load(f"evaluation.best={best}").evaluation
    assert settings.direction == expected
    other = load(f"evaluation={{best: {best}, best_is: max}}").evaluation
    assert other.direction == "max"
