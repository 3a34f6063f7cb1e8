"""Rows that are given: packed as padded, on many devices as on one, resumed as undisturbed."""

import json
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import process, records
from folders import write_folder
from safetensors.numpy import load_file
from tiny import SETTINGS, begin_training, tiny_build, train

from rljax import algorithms, export, launch
from rljax import eval as evaluation
from rljax.ahead import fault_of
from rljax.build import build
from rljax.checks import abstract_state, first_batch
from rljax.config import load_config
from rljax.data import Limits, PackedTable, Rows, demonstration_table
from rljax.errors import UserError
from rljax.models import decoder, llama
from rljax.phases import learning_from_given
from rljax.starts import load_start
from rljax.tasks import addition_demonstrations, addition_problems, character_tokenizer
from rljax.train import init_state
from rljax.types import Role

TOKENIZER = character_tokenizer()
GIVEN = [
    *("shaping=off", "warm_start=null", "optimizer.value=null", "update=null"),
    *("data.prompts_per_step=null", "data.batch_size=8", "data.overlong=truncate"),
    *("data.max_prompt_tokens=8", "data.max_tokens=20"),
]
BARE = ["rewards=null", "sampling=null", "length=null", "evaluation={}"]
SFT = [*GIVEN, "algorithm=sft", "data.train={fn: addition_demonstrations, count: 64}"]


def preferences(folder: Path, count: int = 40) -> Path:
    """Pairs of a right answer and a wrong one, as TRL has them."""
    rows = [
        {"prompt": p["prompt"], "chosen": f"#{p['answer']}", "rejected": f"#{i} or so"}
        for i, p in enumerate(addition_problems(count, seed=1, heldout=False))
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return preferences(tmp_path_factory.mktemp("pairs"))


def learned(learning, params, optimizers, batch):
    """Loss metrics and the gradient, as an update of rate −1 shows it."""
    state = init_state(key=jax.random.key(0), params=params, optimizers=optimizers)
    new, metrics = jax.jit(learning.train_step)(state, batch)
    return metrics, jax.tree.map(jnp.subtract, new.params, state.params)


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation": "token-mean"},
        {"aggregation": "seq-mean-token-mean"},
    ],
    ids=lambda settings: settings["aggregation"],
)
def test_a_packed_batch_learns_what_the_padded_one_does(settings):
    rows = addition_demonstrations(12, seed=3)
    rows = [row | {"weight": 1.0 + index % 3} for index, row in enumerate(rows)]
    padded = demonstration_table([Rows(rows, "rows", None)], TOKENIZER, Limits())
    packed = PackedTable(padded, 100)
    assert len(packed) < len(padded)
    model = decoder(llama(vocab_size=100, layers=2, width=16, heads=2, mlp_width=24).decoder)
    params = {"policy": model.init(jax.random.key(1))}
    optimizers = {"policy": optax.sgd(-1.0)}
    learning = learning_from_given(
        algorithms.sft(**settings),
        {"policy": Role(model, ("policy",))},
        optimizers,
        needs_reference=False,
    )
    one = learned(learning, params, optimizers, padded.take(range(len(padded))))
    other = learned(learning, params, optimizers, packed.take(range(len(packed))))
    np.testing.assert_allclose(one[0]["policy/nll"], other[0]["policy/nll"], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), one[1], other[1])
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(one[1]))
    assert largest > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        [*SFT, "data.packing=true", "data.max_tokens=40"],
        ["algorithm=dpo", "update.microbatches=2"],
    ],
    ids=["sft packed", "dpo"],
)
def test_eight_devices_learn_what_one_does(settings, pairs):
    if settings[0].startswith("algorithm"):
        settings = [*GIVEN, f"data.train={pairs}", "data.batch_size=16", *settings]
    one = train(tiny_build(*settings))
    eight = train(tiny_build(*settings, "mesh={data: 2, fsdp: 2, tensor: 2}", devices=8))
    for name, value in one[1].items():
        np.testing.assert_allclose(value, eight[1][name], rtol=1e-4, atol=2e-6, err_msg=name)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(x).max()),
        one[0].params,
        eight[0].params,
    )


def test_positions_count_as_the_model_sees_them(pairs, tmp_path):
    """Anew in each sequence of a pack; and to the end of mismatched rows."""
    write_folder(tmp_path / "policy", max_position_embeddings=24)
    model = [f"models.policy={tmp_path / 'policy'}", "tokenizer=null", *BARE, "data.eval=null"]
    packed = [*SFT, *model, "data.packing=true", "data.max_tokens=48", "data.batch_size=4"]
    with pytest.raises(UserError, match="positions that the model knows"):
        tiny_build(*packed)
    rows = [{"prompt": "1+1=", "completion": "#2"}, {"prompt": "2+2=", "completion": "#4"}] * 30
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny_build(*packed, f"data.train={tmp_path / 'short.jsonl'}")
    far = [
        {"prompt": "1+1=" * 5, "completion": "2", "label": True},
        {"prompt": "1", "completion": "1" * 10, "label": False},
    ]
    (tmp_path / "far.jsonl").write_text("\n".join(map(json.dumps, far)))
    unpaired = [*GIVEN, *model, f"data.train={tmp_path / 'far.jsonl'}", "data.batch_size=2"]
    unpaired += ["data.max_prompt_tokens=null", "data.max_tokens=null"]
    tiny_build(*unpaired, "algorithm=bco")
    with pytest.raises(UserError, match="31 tokens of prompt and response are more than the 24"):
        tiny_build(*unpaired, "algorithm=kto")


def run(folder: Path, *settings: str) -> Path:
    assert launch.main([*SETTINGS, *settings, f"run_dir={folder}"]) == 0
    return folder


def test_a_reference_asked_ahead_teaches_the_same_and_is_no_longer_held(pairs, tmp_path):
    settings = [*GIVEN, *BARE, f"data.train={pairs}", f"data.eval={pairs}", "algorithm=kto"]
    asked = run(tmp_path / "asked", *settings)
    ahead = run(tmp_path / "ahead", *settings, "data.reference_ahead=true")
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        for one, other in zip(records(asked / name), records(ahead / name), strict=True):
            for key, value in one.items():
                np.testing.assert_allclose(value, other[key], rtol=1e-4, atol=1e-6, err_msg=key)
    kept = load_file(ahead / "reference.safetensors")
    assert set(kept) == {
        f"{table}/{name}"
        for table in ("train", "heldout")
        for name in ("logprobs", "mismatched_logprobs")
    }
    assert (asked / "checkpoints/frozen").exists()
    assert not (ahead / "checkpoints/frozen").exists()
    # Damage is found, told, and the reference asked anew.
    written = (ahead / "reference.safetensors").read_bytes()
    (ahead / "reference.safetensors").write_bytes(written[:-1] + b"x")
    assert fault_of(ahead / "reference.safetensors") == "is damaged"
    run(ahead, *settings, "data.reference_ahead=true")
    assert fault_of(ahead / "reference.safetensors") is None
    for name, anew in load_file(ahead / "reference.safetensors").items():
        np.testing.assert_array_equal(anew, kept[name])
    assert "is damaged: asking the reference anew" in (ahead / "events.jsonl").read_text()


def test_other_rows_than_a_run_began_with_are_refused(tmp_path, pairs, capsys):
    rows = pairs.read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    settings = [
        *SETTINGS,
        *GIVEN,
        *BARE,
        f"data.train={tmp_path / 'pairs.jsonl'}",
        "data.eval=null",
    ]
    settings += ["algorithm=simpo", "steps=1", f"run_dir={tmp_path / 'run'}"]
    assert launch.main(settings) == 0
    (tmp_path / "pairs.jsonl").write_text("\n".join(reversed(rows)))
    capsys.readouterr()
    assert launch.main(settings) == 2
    assert "was begun with other rows" in capsys.readouterr().err


def test_the_best_is_kept_and_exported_and_patience_ends_the_run(tmp_path, capsys):
    settings = [
        *SFT,
        *BARE,
        "steps=12",
        "evaluation.every_steps=2",
        "optimizer.policy.schedule=constant",
    ]
    settings += [
        "evaluation.best=heldout/policy/nll",
        "evaluation.best_is=min",
        "evaluation.patience=2",
    ]
    settings += ["optimizer.policy.learning_rate=0.5"]
    settings += ["data.eval={fn: addition_demonstrations, count: 16}"]
    folder = run(tmp_path / "run", *settings)

    def evaluated():
        found = records(folder / "evaluations.jsonl")
        return {record["step"]: record["heldout/policy/nll"] for record in found}

    losses = evaluated()
    best = min(losses, key=losses.get)
    assert max(losses) == best + 4 < 12
    assert [path.name for path in (folder / "best").iterdir() if path.name.isdigit()] == [str(best)]
    assert f"| step | {best} |" in (folder / "policy/README.md").read_text()
    assert json.loads((folder / "summary.json").read_text())["steps"] == best + 4
    before = (folder / "policy/model.safetensors").read_bytes()
    assert export.main([str(folder), "--to", str(tmp_path / "best"), "--best"]) == 0
    assert (tmp_path / "best/model.safetensors").read_bytes() == before
    run(folder, *settings)  # which is over
    assert (folder / "policy/model.safetensors").read_bytes() == before
    assert {
        r["step"]: r["heldout/policy/nll"] for r in records(folder / "evaluations.jsonl")
    } == losses
    capsys.readouterr()


def test_a_reward_model_is_a_reward_at_once(pairs, tmp_path, capsys):
    write_folder(tmp_path / "start", max_position_embeddings=128)
    settings = [
        *GIVEN,
        *BARE,
        "tokenizer=null",
        f"data.train={pairs}",
        f"data.eval={pairs}",
        "steps=8",
    ]
    settings += ["algorithm=bradley_terry", f"models={{reward: {tmp_path / 'start'}}}"]
    settings += ["optimizer={reward: {learning_rate: 1.0e-2}}", "evaluation.every_steps=4"]
    folder = run(tmp_path / "run", *settings)
    figures = records(folder / "evaluations.jsonl")
    assert figures[0]["heldout/rewards/accuracies"] == 0.5  # a new head says 0 of everything
    assert figures[-1]["heldout/rewards/accuracies"] > 0.9
    config = json.loads((folder / "reward/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert export.main([str(folder), "--to", str(tmp_path / "again")]) == 0
    weights = (folder / "reward/model.safetensors").read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() == weights
    built = tiny_build(
        f"models={{policy: {tmp_path / 'start'}, reward: {folder / 'reward'}}}",
        *("tokenizer=null", "rewards={learned: reward_model}", "warm_start=null"),
    )
    head = load_start(built, "reward", 0, lambda *_, **__: None)["head"]
    assert float(jnp.abs(head).max()) > 0
    jax.eval_shape(built.train.train_step, abstract_state(built, built.train), first_batch(built))
    capsys.readouterr()


def test_a_distilled_policy_nears_its_teacher(tmp_path):
    """Whose embedding has rows that no token uses."""
    write_folder(tmp_path / "teacher", vocab_size=112, max_position_embeddings=128)
    write_folder(tmp_path / "student", seed=1, max_position_embeddings=128)
    built = tiny_build(
        f"models={{policy: {tmp_path / 'student'}, teacher: {tmp_path / 'teacher'}}}",
        *("algorithm=distill", "shaping=off", "tokenizer=null", "warm_start=null", "steps=16"),
        *("update=null", "optimizer={policy: {learning_rate: 1.0e-2}}"),
    )
    state, step = begin_training(built)
    apart = []
    with jax.set_mesh(built.mesh):
        for index in range(16):
            state, metrics, _ = step(state, step.prepare(state, built.train.batches[index]))
            apart.append(float(metrics["policy/divergence"]))
    assert np.mean(apart[-3:]) < 0.7 * np.mean(apart[:3])


def test_an_evaluation_samples_as_it_is_told(tmp_path, capsys):
    write_folder(tmp_path / "policy", max_position_embeddings=128)
    settings = [*SETTINGS, f"models.policy={tmp_path / 'policy'}", "tokenizer=null"]
    settings += ["warm_start=null", "evaluation={prompts: 10, samples_per_prompt: 3}"]
    settings += ["evaluation.sampling={temperature: 0.5, max_tokens: 5}"]
    settings += ["rewards={even: 'test_given:is_even'}", "evaluation.prompts_at_once=8"]
    out = tmp_path / "out"
    config = Path(__file__).parent.parent / "configs/addition.yaml"
    assert evaluation.main([str(config), *settings, "--out", str(out)]) == 0, capsys.readouterr()
    figures = json.loads((out / "figures.json").read_text())
    samples = records(out / "samples.jsonl")
    assert len(samples) == 10 * 4
    assert max(sample["length_tokens"] for sample in samples) == 5
    assert {"avg@3", "pass@2", "pass@3"} <= figures.keys()
    by_hand = [s["correct"] for s in samples if not s["greedy"]]
    np.testing.assert_allclose(figures["avg@3"], np.mean(by_hand))
    capsys.readouterr()


@pytest.mark.parametrize("target", ["absent", "x" * 5000])
def test_what_cannot_be_evaluated_is_refused(capsys, target):
    assert evaluation.main([target]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rljax: error: {target[:99]}")
    assert said.endswith("neither a config file nor the folder of a run\n")


def is_even(rollout):
    return rollout.lengths % 2 == 0


def test_tunix_2290_killed_in_an_epoch_with_packing_and_mixing_it_ends_as_if_undisturbed(tmp_path):
    rows = addition_demonstrations(70, seed=9)
    lines = [json.dumps(row | {"weight": 0.5}) for row in rows]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    mixed = (
        "data.train=[{source: {fn: addition_demonstrations, count: 64}, weight: 3}, "
        f"{{source: {tmp_path / 'more.jsonl'}, weight: 1}}]"
    )
    settings = [*SFT, mixed, "data.packing=true", "data.max_tokens=40", "data.batch_size=4"]
    settings += ["steps=30", "checkpoint.every_steps=4"]
    undisturbed = process(tmp_path / "undisturbed", *SETTINGS, *settings)
    assert undisturbed.wait(timeout=300) == 0, undisturbed.stderr.read()
    killed = process(tmp_path / "killed", *SETTINGS, *settings)
    metrics = tmp_path / "killed/metrics.jsonl"
    while killed.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 7):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    resumed = process(tmp_path / "killed", *SETTINGS, *settings)
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert '"resume"' in out
    # The loss of every step is that of the same rows.
    whole, pieced = (tmp_path / name for name in ("undisturbed", "killed"))
    assert records(whole / "metrics.jsonl") == records(pieced / "metrics.jsonl")
    final = [(run / "policy/model.safetensors").read_bytes() for run in (whole, pieced)]
    assert final[0] == final[1]


def test_verls_file_and_trls_train_alike(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    problems = addition_problems(32, seed=2, heldout=False)
    chats = [[{"role": "user", "content": p["prompt"]}] for p in problems]
    verl = [
        {
            "data_source": "addition",
            "prompt": chat,
            "reward_model": {"style": "rule", "ground_truth": p["answer"]},
            "extra_info": {"index": i},
        }
        for i, (p, chat) in enumerate(zip(problems, chats, strict=True))
    ]
    trl = [
        {"prompt": chat, "solution": p["answer"]} for p, chat in zip(problems, chats, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(verl), tmp_path / "verl.parquet")
    (tmp_path / "trl.jsonl").write_text("\n".join(map(json.dumps, trl)))
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_folder(tmp_path / "policy", tokenizer=tokenizer, max_position_embeddings=128)
    ends = []
    for name in ("verl.parquet", "trl.jsonl"):
        files = [f"data.train={tmp_path / name}", f"data.eval={tmp_path / name}"]
        model = [f"models.policy={tmp_path / 'policy'}", "tokenizer=null", "warm_start=null"]
        ends.append(train(tiny_build(*files, *model)))
    (one, metrics), (other, _) = ends
    assert metrics["rewards/correct/mean"] is not None
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["update={epochs: 2}"], "update.epochs: a batch of given rows is learned from once"),
        (["update={minibatches: 2}"], "update.minibatches: a batch of given rows"),
        (["data.packing=true", "data.max_tokens=null"], "data.packing: rows are filled up to"),
        (["data.packing=true", "data.buckets=2"], "data.buckets: rows that are packed"),
        (["algorithm=dpo"], "data.train: pairs need the columns prompt, chosen, rejected"),
        (["models.teacher=llama"], "models.teacher: the algorithm has no teacher"),
        (["data.reference_ahead=true"], "data.reference_ahead: the algorithm compares nothing"),
        (["models.reference=llama"], "models.reference: nothing here compares"),
        (["evaluation.patience=2"], "evaluation.patience: evaluation.best names no figure"),
        (["evaluation.sampling.group_size=2"], "evaluation.sampling.group_size: it is"),
        (["evaluation.sampling.temprature=1"], "evaluation.sampling: unknown key"),
        (["data.train=[]"], "data.train: at least one source is needed"),
        (["data.train={source: x.jsonl, wieght: 1}"], 'data.train: unknown key "wieght"'),
        (["data.train={source: x.jsonl, weight: 0}"], "data.train.weight: input should be"),
        ([*BARE], "data.eval: its rows are no demonstrations"),
        ([*BARE, "data.eval=null", "evaluation.best=x"], "evaluation.best: nothing is evaluated"),
    ],
)
def test_what_cannot_be_is_named(settings, said):
    config = Path(__file__).parent.parent / "configs/addition.yaml"
    with pytest.raises(UserError) as error:
        build(load_config(config, [*SETTINGS, *SFT, *settings]), config.parent, jax.devices()[:1])
    assert str(error.value).startswith(said)
