"""Models from Hugging Face folders in every role: from a YAML to a run, and to its state."""

import json
import os
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from folders import tokenizer_of, write_folder
from safetensors.numpy import load_file
from tiny import SETTINGS, begin_training, draw_starts, tiny_build, train

from rljax import launch
from rljax.logprobs import sequence_scores, token_values
from rljax.train import make_forward
from rljax.trees import find, role_params
from rljax.types import Experience

CONFIG = """
steps: 8
models: {{policy: {policy}, value: {value}, reference: {reference}, reward: {reward}}}
data:
  train: {{fn: addition_problems, count: 64}}
  eval: {{fn: addition_problems, count: 8}}
  prompts_per_step: 8
  max_prompt_tokens: 9
sampling: {{max_tokens: 8}}
length: {{min_tokens: 4, max_tokens: 8}}
rewards: {{preference: {{fn: reward_model, shift: 0.5, scale: 2}}}}
shaping: {{kl: {{fn: kl_penalty, coef: 0.01}}}}
algorithm: ppo
optimizer: {{policy: {{learning_rate: 1.0e-3}}, value: {{learning_rate: 1.0e-3}}}}
evaluation: {{prompts: 8, samples: 2}}
checkpoint: {{every_steps: 1, keep: 3}}
"""
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 8}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
KEYS = {"gemma2": GEMMA, "gemma3_text": GEMMA, "qwen3_moe": EXPERTS}


def make_folder(folder: Path, family: str, head: str = "lm", **keys) -> Path:
    write_folder(folder, family, head=head, **KEYS.get(family, {}) | {"head_dim": 8} | keys)
    return folder


def chatty_tokenizer():
    """Other ids for the same characters, and a chat template."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    template = "{% for m in messages %}{{ m.role[:1] }}: {{ m.content }}\n{% endfor %}"
    characters = string.printable[94::-1] + "\n"
    return tokenizer_of(*special.values(), characters=characters, chat_template=template, **special)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    return {
        "policy": make_folder(at / "policy", "qwen3", seed=1),
        "value": make_folder(at / "value", "llama", seed=2),
        "reference": make_folder(at / "reference", "gemma2", seed=3),
        "reward": make_folder(at / "reward", "mistral", "value", seed=4),
        "experts": make_folder(at / "experts", "qwen3_moe", seed=5),
        "foreign reward": make_folder(
            at / "foreign", "gemma3_text", "value", seed=6, tokenizer=chatty_tokenizer()
        ),
        "foreign": make_folder(at / "other", "llama", tokenizer=chatty_tokenizer()),
    }


def build(folders, *overrides: str, devices=1, policy="policy"):
    """The embedded task at tiny sizes, its policy read from a folder."""
    settings = (f"models.policy={folders[policy]}", "tokenizer=null", "warm_start=null")
    return tiny_build(*settings, *overrides, devices=devices)


def process(config: Path, run_dir: Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rljax.launch", str(config), f"run_dir={run_dir}"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("reward", ["reward", "foreign reward"])
def test_four_families_run_from_one_yaml_and_resume(folders, tmp_path, reward):
    """The second reward model has tokens of its own, so that its step is two programs."""
    config = tmp_path / "four.yaml"
    config.write_text(CONFIG.format(**folders | {"reward": folders[reward]}))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = process(config, whole)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    run = process(config, cut)
    metrics = cut / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    run = process(config, cut)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "resume" in out
    ours, theirs = (load_file(d / "policy" / "model.safetensors") for d in (cut, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    before = load_file(folders["policy"] / "model.safetensors")
    assert any((ours[name] != before[name]).any() for name in before)
    rewards = [
        [json.loads(line)["rewards/preference/mean"] for line in (d / "metrics.jsonl").open()]
        for d in (cut, whole)
    ]
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) == 8
    resolved = yaml.safe_load((whole / "config.yaml").read_text())["models"]
    assert {role: node["fn"] for role, node in resolved.items()} == {
        role: str(folders[role if role != "reward" else reward]) for role in resolved
    }


def test_each_role_is_a_network_of_its_own_family(folders):
    built = build(
        folders,
        *(f"models.{role}={folders[role]}" for role in ("value", "reference", "reward")),
        "rewards.preference=reward_model",
    )
    families = {r: s.architecture.hf.model_type for r, s in built.networks.sources.items()}
    assert families == {
        "policy": "qwen3",
        "value": "llama",
        "reference": "gemma2",
        "reward": "mistral",
    }
    state, _ = begin_training(built)
    assert state.params.keys() == {"policy", "value"}
    assert state.frozen.keys() == {"reference", "reward"}
    assert "query_norm" in state.params["policy"]["layers"]["attention"]
    assert "mlp_post_norm" in state.frozen["reference"]["layers"]
    assert not state.params["value"]["head"].any()  # new: the folder is a language model's


def test_a_value_model_that_has_a_head_keeps_it(folders):
    built = build(folders, f"models.value={folders['reward']}")
    starts = draw_starts(built, jax.random.key(0))
    starts["value"]["head"] = jnp.arange(16.0)[:, None]
    params, _ = built.networks.begin(starts, jax.random.key(1))
    np.testing.assert_array_equal(params["value"]["head"][:, 0], np.arange(16))


LORA = "models.policy.lora={rank: 2, targets: [q_proj, 'mlp.*']}"


def test_adapters_are_all_that_is_trained_and_the_base_is_the_reference(folders):
    built = build(folders, LORA)
    state, step = begin_training(built)
    before = jax.device_get((state.params, state.frozen))
    assert state.frozen.keys() == {"policy_base"}
    assert built.networks.roles["reference"].trees == ("policy_base",)
    assert find(before[0], ("policy", "layers", "attention")).keys() == {"query"}
    assert find(before[0], ("policy", "layers", "mlp")).keys() == {"gate", "up", "down"}
    moments = jax.tree.leaves(state.opt_state["policy"])
    assert sum(x.size for x in moments) < 2.1 * sum(
        x.size for x in jax.tree.leaves(state.params["policy"])
    )
    with jax.set_mesh(built.mesh):
        state, metrics, _ = step(state, step.prepare(state, built.train.batches[0]))
        assert abs(float(metrics["reference_kl"])) < 1e-6  # B begins at 0
        for index in (1, 2):
            state, metrics, _ = step(state, step.prepare(state, built.train.batches[index]))
    assert abs(float(metrics["reference_kl"])) > 1e-6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen), before[1])
    changed = jax.tree.map(
        lambda x, y: bool((x != y).any()),
        jax.device_get(state.params["policy"]),
        before[0]["policy"],
    )
    assert all(jax.tree.leaves(changed))


def test_policy_and_value_share_one_base_under_their_adapters(folders):
    built = build(folders, LORA, "models.value={fn: policy, lora: {rank: 4}}")
    state, _ = begin_training(built)
    assert state.frozen.keys() == {"policy_base"}
    assert "head" in state.params["value"]
    assert state.params["value"]["layers"]["attention"]["query"]["lora_a"].shape[-1] == 4


def test_adapters_of_the_value_lie_over_the_reference_where_that_is_the_policy(folders):
    lora = "models.value={fn: policy, lora: {rank: 2}}"
    assert build(folders, lora).networks.roles["value"].trees == ("reference", "value")
    own = build(folders, lora, f"models.reference={folders['reference']}")
    assert own.networks.roles["value"].trees == ("value_base", "value")


def test_how_a_decoder_runs_is_said_beside_it(folders):
    options = "models.policy={fn: %s, attention: plain, vocab_at_once: 7}"
    built = build(folders, options % folders["policy"])
    for role in ("policy", "value"):
        decoder = built.networks.sources[role].architecture.decoder
        assert (decoder.attention, decoder.vocab_at_once) == ("plain", 7)
    in_parts = {name for name, role in built.networks.roles.items() if role.model.head_parts}
    assert in_parts == {"policy", "reference"}


def test_a_reference_in_the_hosts_memory_is_no_base_for_adapters(folders):
    value = "models.value={fn: policy, lora: {rank: 2}}"
    names = [
        build(folders, value, f"models.reference={{fn: policy, offload: {offload}}}").networks.trees
        for offload in ("false", "true")
    ]
    assert [set(trees) - {"policy", "value", "reference"} for trees in names] == [
        set(),
        {"value_base"},
    ]


def test_a_base_may_be_bfloat16_and_adapters_are_not(folders):
    built = build(folders, LORA, "models.policy.param_dtype=bfloat16")
    (state, metrics) = train(built, steps=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.bfloat16.dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert np.isfinite(metrics["policy/loss"])


def test_a_value_head_on_the_shared_trunk(folders):
    built = build(folders, "models.value=shared", "shaping=off")
    state, _ = begin_training(built)
    assert state.params["value"].keys() == {"head"}
    roles = built.networks.roles
    head = jnp.ones_like(state.params["value"]["head"])
    batch = built.train.batches[0]
    with jax.set_mesh(built.mesh):
        rollout = jax.jit(built.train.train_step.draw)(state, batch, jax.random.key(0))
        trees = state.trees | {"value": {"head": head}}
        ours = token_values(
            roles["value"].model, role_params(roles["value"], trees), rollout.tokens, rollout.mask
        )
        hidden = roles["policy"].model.apply(state.params["policy"], rollout.tokens, rollout.mask)
    np.testing.assert_allclose(ours[:, 1:], hidden[:, :-1].sum(-1), atol=1e-4)
    rows = Experience(tokens=rollout.tokens, mask=rollout.mask, action_mask=rollout.action_mask)
    outputs = make_forward(roles)(trees, rows)
    np.testing.assert_allclose(outputs.values, ours, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [[], ["models.policy.lora.rank=2", "models.value=shared"]], ids=["full", "adapters"]
)
def test_experts_train_on_eight_devices_as_on_one(folders, settings):
    one = train(build(folders, *settings, policy="experts"))
    mesh = "mesh={data: 1, fsdp: 2, expert: 2, tensor: 2}"
    eight = train(build(folders, *settings, mesh, policy="experts", devices=8))
    for name in ("policy/loss", "value/loss", "reward_mean", "length_mean"):
        np.testing.assert_allclose(one[1][name], eight[1][name], rtol=1e-4, atol=2e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(x).max()),
        one[0].params,
        eight[0].params,
    )


def test_the_reward_is_the_models_score_of_the_whole_row(folders):
    built = build(
        folders,
        f"models.reward={folders['reward']}",
        "rewards={preference: {fn: reward_model, shift: 1, scale: 3}}",
        "shaping=off",
    )
    state, _ = begin_training(built)
    with jax.set_mesh(built.mesh):
        rollout = jax.jit(built.train.train_step.draw)(
            state, built.train.batches[0], jax.random.key(0)
        )
        judged = jax.jit(built.answering.judge)(state, rollout)
    role = built.networks.roles["reward"]
    for row in range(3):
        real = rollout.mask[row]
        tokens = rollout.tokens[row][real][None]
        score = sequence_scores(
            role.model, state.frozen["reward"], tokens, jnp.ones_like(tokens, bool)
        )
        np.testing.assert_allclose(judged.rewards.raw[row], 3 * (score[0] - 1), atol=1e-4)


def test_a_foreign_reward_model_reads_its_own_tokens(folders):
    built = build(
        folders,
        f"models.reward={folders['foreign reward']}",
        "rewards={preference: reward_model}",
        "shaping=off",
    )
    state, _ = begin_training(built)
    phase = built.train
    with jax.set_mesh(built.mesh):
        drawn = jax.jit(phase.train_step.draw)(state, phase.batches[0], jax.random.key(0))
        (rollout,) = phase.between.add([drawn])
        judged = jax.jit(built.answering.judge)(state, rollout)
    own, role = chatty_tokenizer(), built.networks.roles["reward"]
    prompt = built.tokenizer.decode(drawn.tokens[0][drawn.mask[0] & ~drawn.action_mask[0]])
    said = built.tokenizer.decode(drawn.tokens[0][drawn.action_mask[0]], skip_special_tokens=True)
    tokens = jnp.array([own(f"u: {prompt}\na: {said}\n")["input_ids"]])
    score = sequence_scores(role.model, state.frozen["reward"], tokens, jnp.ones_like(tokens, bool))
    np.testing.assert_allclose(judged.rewards.raw[0], score[0], atol=1e-4)


def test_the_eos_ids_of_the_generation_config_end_a_response(folders, tmp_path):
    folder = make_folder(tmp_path / "policy", "llama")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [7, 2]}))
    built = tiny_build(f"models.policy={folder}", "tokenizer=null", "warm_start=null")
    assert built.sample.keywords["eos_ids"] == (2, 7)


def refused(capsys, *settings: str) -> str:
    task = ["data.prompts_per_step=16", "tokenizer=null"]
    assert launch.main([*SETTINGS, *task, *settings, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rljax: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["models.policy={reward}"], "has no language-model head"),
        (["models.policy=absent"], '"absent" is no folder here'),
        (["models.policy.fn=llama"], "tokenizer: it is needed where models.policy is no folder"),
        (["models.policy={policy}", "models.policy.lora.rank=0"], "lora: needs rank >= 1"),
        (
            ["models.policy={policy}", "models.policy.lora.targets=[qproj]"],
            'no matrix is called "qproj"; there are self_attn.q_proj',
        ),
        (["models.policy={policy}", "models.policy.lora.ranks=2"], 'did you mean "rank"?'),
        (["models.policy={policy}", "models.policy.remat=all"], "models.policy.remat"),
        (["models.policy={policy}", "models.policy.param_dtype=bfloat16"], "trained is float32"),
        (["models.policy={policy}", "models.policy.offload=true"], "stays on the devices"),
        (
            ["models.policy={policy}", "models.reference={{fn: policy, offload: 1}}"],
            "models.reference.offload: true or false, got 1",
        ),
        (["models.policy={policy}", "models.policy.attention=fast"], "auto or plain, got 'fast'"),
        (["models.policy={policy}", "models.policy.vocab_at_once=0"], "above 0 is needed, got 0"),
        (
            ["models.policy={policy}", "models.reward={{fn: {reward}, vocab_at_once: 9}}"],
            "models.reward.vocab_at_once: its head has no vocabulary",
        ),
        (["models.policy={policy}", "mesh={{data: 1, expert: 8}}"], "no model has experts"),
        (
            ["models.policy={policy}", "mesh={{data: 1, sequence: 8}}", "sampling.max_tokens=9"],
            "columns do not divide over mesh.sequence=8; ",
        ),
        (["models.policy={policy}", "models.value={foreign}"], "is not the policy's"),
        (["models.policy={policy}", "tokenizer={foreign}"], "tokenizer: it is not that of models"),
        (
            ["models.policy={policy}", "models.policy.laro=1"],
            'unknown key "laro"; (valid: attention, dtype, lora,',
        ),
        (["models.policy={policy}", "models.value=shraed"], 'did you mean "shared"?'),
        (["models.policy={policy}", "models.reward={reward}"], "none of the rewards is a"),
        (
            ["models.policy={policy}", "models.reward={value}", "rewards.x=reward_model"],
            "is a LlamaForCausalLM; one with a scalar head is needed",
        ),
        (["models.policy={policy}", "rewards.x=reward_model"], "models.reward names no model"),
        (
            ["models.policy={policy}", "models.reference={value}", "shaping=off"],
            "nothing here compares",
        ),
        (
            ["models.policy={policy}", "sampling.max_tokens=500"],
            "508 tokens of prompt and response",
        ),
        (
            ["models.policy={policy}", "models.policy.lora.rank=2", "warm_start.steps=2"],
            "warm_start: it trains the whole policy",
        ),
        (["models.policy={policy}", "models.value={{fn: policy, rank: 3}}"], 'unknown key "rank"'),
        (
            ["models.policy={policy}", "models.reference={{fn: policy, param_dtype: int8}}"],
            "models.reference.param_dtype: float32 or bfloat16, got 'int8'",
        ),
        (
            [
                "models.policy={policy}",
                "models.reward={{fn: {reward}, max_tokens: 9}}",
                "rewards.x=reward_model",
            ],
            "models.reward.max_tokens: it is of a model with tokens of its own",
        ),
        (["sampling.eos_ids=[0]", "tokenizer=character_tokenizer"], "cannot be an EOS id too"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(capsys, folders, settings, says):
    assert says in refused(capsys, *(setting.format(**folders) for setting in settings))


def test_faulty_folders_are_refused(capsys, folders, tmp_path):
    def folder(name: str, **config) -> Path:
        made = make_folder(tmp_path / name, "llama")
        given = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(given | config))
        return made

    unknown = folder("unknown", model_type="gpt_neox")
    assert 'architecture "gpt_neox" is not supported' in refused(capsys, f"models.policy={unknown}")
    lacking = folder("lacking", rope_parameters={"rope_type": "llama3", "rope_theta": 100.0})
    assert "factor" in refused(capsys, f"models.policy={lacking}")
    bare = folder("bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer" in refused(capsys, f"models.policy={bare}")
    small = make_folder(tmp_path / "small", "llama", vocab_size=90)
    error = refused(capsys, f"models.policy={small}")
    assert "an embedding of 90 rows has no room for the tokenizer's 100 tokens" in error
    cut = folder("cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors is damaged" in refused(capsys, f"models.policy={cut}")
