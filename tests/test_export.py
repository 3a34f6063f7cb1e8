"""``rljax export``: models of a run, from its checkpoints to folders."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from folders import write_folder
from safetensors.numpy import load_file
from tiny import CONFIG, SETTINGS, draw_starts

from rljax import export, launch
from rljax.build import build
from rljax.config import load_config
from rljax.errors import UserError
from rljax.export import export_role, run_details
from rljax.host.pretrained import pretrained
from rljax.models.lora import merge_lora
from rljax.trees import role_params

POLICY = "models.policy={fn: llama, layers: 1, width: 16, heads: 2, mlp_width: 32}"
SHORT = ["warm_start=null", "shaping=off", POLICY]
ENDS = "sampling.eos_ids=[50, 2]"
# The value's adapters lie over the frozen reference, which is the policy as it started.
VALUE = ["models.value={fn: policy, lora: {rank: 2}}", "shaping={kl: kl_penalty}"]
VALUE += ["shaping.kl.coef=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on eight devices, of which the steps 2 and 4 are kept."""
    folder = tmp_path_factory.mktemp("export") / "run"
    settings = [*SETTINGS, *SHORT, *VALUE, ENDS, "checkpoint.keep=2"]
    assert launch.main([*settings, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def exported(run, tmp_path, capsys):
    """Exports from the run; what the command says is checked."""

    def export_run(*options, role="policy", step=4):
        to = tmp_path / f"{role}-{step}"
        capsys.readouterr()
        assert export.main([str(run), "--to", str(to), *options]) == 0
        assert capsys.readouterr().out == f"exported the {role} of step {step} to {to}\n"
        return to

    return export_run


def refused(capsys, *arguments) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert export.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rljax: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def weights(folder):
    return load_file(folder / "model.safetensors")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def saved(run: Path, step: int):
    """The parameters of a checkpoint, by role."""
    path = (run / "checkpoints" / str(step) / "state").absolute()
    return ocp.StandardCheckpointer().restore(path)["params"]


def test_the_newest_is_bitwise_what_the_run_wrote_at_its_end(run, exported):
    assert contents(exported()) == contents(run / "policy")


def test_an_older_step_is_as_it_was_then(run, exported):
    folder = exported("--step", "2", step=2)
    then, now = saved(run, 2)["policy"], saved(run, 4)["policy"]
    embed = weights(folder)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(embed, then["embed"])
    assert (embed != np.asarray(now["embed"])).any()
    up = weights(folder)["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_array_equal(up, np.asarray(then["layers"]["mlp"]["up"]["kernel"][0]).T)
    card = (folder / "README.md").read_text()
    assert "| step | 2 |" in card
    first, *_ = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())
    assert first["step"] == 0
    assert f"| length_mean | {first['length_mean']:.4g} |" in card


def test_a_card_tells_the_last_evaluation_up_to_its_step(tmp_path):
    assert run_details(tmp_path, 3) == {"step": 3}
    records = [{"step": step, "accuracy_greedy": step / 16} for step in (0, 2, 4)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "evaluations.jsonl").write_text(lines)
    assert run_details(tmp_path, 3) == {"step": 3, "accuracy_greedy": "0.125"}
    assert run_details(tmp_path, 4) == {"step": 4, "accuracy_greedy": "0.25"}


def test_the_value_model_is_exported_with_its_head_and_its_base(run, exported):
    folder = exported("--role", "value", role="value")
    value = saved(run, 4)["value"]
    np.testing.assert_array_equal(weights(folder)["score.weight"], np.asarray(value["head"]).T)
    frozen = ocp.StandardCheckpointer().restore(
        (run / "checkpoints" / "frozen" / "state").absolute()
    )
    base, down = frozen["reference"], value["layers"]["mlp"]["down"]
    np.testing.assert_array_equal(weights(folder)["model.embed_tokens.weight"], base["embed"])
    kernel = base["layers"]["mlp"]["down"]["kernel"][0] + 2 * down["lora_a"][0] @ down["lora_b"][0]
    merged = weights(folder)["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_allclose(merged, np.asarray(kernel).T, atol=1e-6)
    assert (merged != np.asarray(base["layers"]["mlp"]["down"]["kernel"][0]).T).any()
    assert pretrained(folder).head == "value"
    assert "| role | value |" in (folder / "README.md").read_text()


def test_weights_of_another_dtype(run, exported):
    folder = exported("--dtype", "bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    for name, array in weights(run / "policy").items():
        np.testing.assert_array_equal(weights(folder)[name], array.astype("bfloat16"), strict=True)


def test_what_the_run_does_not_have_is_refused(run, tmp_path, capsys):
    to = tmp_path / "to"
    said = refused(capsys, run, "--to", to, "--role", "reward")
    assert "--role reward: the run has policy, reference, value" in said
    said = refused(capsys, run, "--to", to, "--step", 3)
    assert f"{run / 'checkpoints'} holds no step 3; there are 2, 4" in said
    assert "--merge" in refused(capsys, run, "--to", to, "--merge")  # there are no adapters
    assert not to.exists()


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    to = tmp_path / "to"
    assert "is no run folder" in refused(capsys, "x" * 5000, "--to", to)
    said = refused(capsys, tmp_path / "absent", "--to", to)
    assert f"{tmp_path / 'absent'} is no run folder: it holds no config.yaml" in said
    shutil.copy(run / "config.yaml", tmp_path)
    said = refused(capsys, tmp_path, "--to", to)
    assert f"{tmp_path / 'checkpoints'} holds no checkpoint" in said
    (tmp_path / "config.yaml").write_text("steps: [")
    assert "not valid YAML" in refused(capsys, tmp_path, "--to", to)
    assert not to.exists()


def test_a_run_is_not_exported_over_itself_or_what_holds_it(run, tmp_path, capsys, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "runs" / "mine")
    before = contents(tmp_path)
    monkeypatch.chdir(copy)
    for place in (copy, copy.parent, ".", "..", copy / "checkpoints"):
        refused(capsys, copy, "--to", place)
        assert contents(tmp_path) == before


def roles_of(*settings, **starts):
    """Roles that were never trained: a config, its build, and the trees they begin with."""
    config = load_config(CONFIG, [*SETTINGS, *SHORT, *settings])
    built = build(config, CONFIG.parent, jax.devices()[:1])
    drawn = draw_starts(built, jax.random.key(0)) | starts
    trained, frozen = built.networks.begin(drawn, jax.random.key(1))
    some = jax.tree.map(lambda x: x + 0.01, trained)  # what begins as zero is no longer
    return config, built, frozen | some


def write(folder, made, role="policy", **options):
    config, built, trees = made
    export_role(
        folder,
        trees,
        built.networks,
        config,
        built.tokenizer,
        role=role,
        eos_ids=built.sample.keywords["eos_ids"],
        details={"step": 0},
        **options,
    )
    return folder


@pytest.fixture(scope="module")
def adapted():
    return roles_of(f"{POLICY[:-1]}, lora: {{rank: 2, targets: [q_proj, down_proj]}}}}")


def test_adapters_are_exported_by_themselves(adapted, tmp_path):
    folder = write(tmp_path / "adapters", adapted)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)
    assert config["target_modules"] == ["mlp.down_proj", "self_attn.q_proj"]
    tensors = load_file(folder / "adapter_model.safetensors")
    down = adapted[2]["policy"]["layers"]["mlp"]["down"]
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    np.testing.assert_array_equal(tensors[name], down["lora_a"][0].T)
    assert not (folder / "model.safetensors").exists()


def test_merged_adapters_are_in_the_weights(adapted, tmp_path):
    tensors = weights(write(tmp_path / "merged", adapted, merge=True))
    trees, networks = adapted[2], adapted[1].networks
    merged = merge_lora(
        role_params(networks.roles["policy"], trees), networks.sources["policy"].lora
    )
    down = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(tensors[down], merged["layers"]["mlp"]["down"]["kernel"][0].T)
    base = trees["policy_base"]["layers"]["mlp"]
    assert (tensors[down] != base["down"]["kernel"][0].T).all()
    up = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(tensors[up], base["up"]["kernel"][0].T)
    assert not any("lora" in name for name in tensors)


def test_adapters_have_no_other_dtype(adapted, tmp_path):
    with pytest.raises(UserError, match="dtype"):
        write(tmp_path / "adapters", adapted, dtype="bfloat16")


def test_a_value_head_on_the_policys_trunk_is_exported_with_that(tmp_path):
    made = roles_of("models.value=shared")
    tensors = weights(write(tmp_path / "value", made, role="value"))
    trees = made[2]
    np.testing.assert_array_equal(tensors["score.weight"], trees["value"]["head"].T)
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], trees["policy"]["embed"])


def test_a_reward_model_comes_out_as_it_came(tmp_path):
    rewards = ["rewards={score: reward_model}", f"models.reward={tmp_path / 'reward'}"]
    params = write_folder(tmp_path / "reward", "qwen3", head="value", head_dim=4, dtype="bfloat16")
    made = roles_of(*rewards, reward=params)
    folder = write(tmp_path / "again", made, role="reward")
    assert weights(folder).keys() == weights(tmp_path / "reward").keys()
    for name, array in weights(tmp_path / "reward").items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(weights(folder)[name], array, strict=True)
    assert f"Trained from {tmp_path / 'reward'} with" in (folder / "README.md").read_text()


def test_a_server_is_told_how_the_run_drew(tmp_path):
    settings = [ENDS, "sampling.temperature=0.5", "sampling.top_k=9"]
    folder = write(tmp_path / "policy", roles_of(*settings))
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [50, 2]
    assert (generation["temperature"], generation["top_k"]) == (0.5, 9)
    assert generation["top_p"] == 1.0
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 2048
