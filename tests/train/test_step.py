"""The whole compiled step: the same on any mesh and for any micro-batching, compiled once."""

import jax
import jax.monitoring
import numpy as np
import pytest
from tiny import begin_training, tiny_build, train

from rljax.logprobs import token_logprobs
from rljax.sharding import row_sharding

GROUPS = ("sampling.group_size=2", "data.prompts_per_step=8")


def assert_same(one, other, rtol=1e-4):
    """Losses and updated parameters agree; ``rtol`` relative to each array's largest value."""
    (state, metrics), (other_state, other_metrics) = one, other
    for name in ("policy/loss", "value/loss", "reward_mean", "length_mean", "reference_kl"):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=rtol, atol=2e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(x).max()),
        state.params,
        other_state.params,
    )


@pytest.fixture(scope="module")
def one_device():
    return train(tiny_build(*GROUPS))


@pytest.mark.parametrize(
    "sizes",
    ["data: 8", "data: 2, fsdp: 2, tensor: 2", "fsdp: 2, sequence: 2, tensor: 2", "sequence: 4"],
)
def test_eight_devices_equal_one(one_device, sizes):
    assert_same(one_device, train(tiny_build(*GROUPS, f"mesh={{{sizes}}}", devices=8)))


def test_groups_that_are_sampled_anew_on_eight_devices_equal_one():
    dapo = (
        "algorithm={fn: dapo, refill_rounds: 2, buffer_tokens: 6, filter_overlong: false}",
        "rewards={short: {fn: repetition_penalty, ngram: 1}}",  # so that some groups teach
        "sampling.group_size=4",
        "data.prompts_per_step=8",
        "optimizer.value=null",
    )
    (one, metrics) = train(tiny_build(*dapo))
    (eight, others) = train(tiny_build(*dapo, "mesh={data: 4, fsdp: 2}", devices=8))
    assert metrics["informative_ratio"] > 0
    for name in ("policy/loss", "reward_mean", "refill/rounds", "refill/informative_ratio"):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-4, atol=2e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(x).max()),
        one.params,
        eight.params,
    )


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_tokens_do_not_depend_on_the_mesh(sizes):
    def tokens(built):
        state, _ = begin_training(built)
        with jax.set_mesh(built.mesh):
            draw = jax.jit(built.sample)
            rollout = draw(state.params["policy"], built.train.batches[0], jax.random.key(1))
        return np.asarray(rollout.tokens)

    mesh = "mesh={{data: {}, fsdp: {}, tensor: {}}}".format(*sizes)
    np.testing.assert_array_equal(
        tokens(tiny_build(*GROUPS)), tokens(tiny_build(*GROUPS, mesh, devices=8))
    )


def test_the_state_is_sharded_by_the_rule_table():
    state, _ = begin_training(
        tiny_build("mesh={data: 2, fsdp: 2, tensor: 2}", "data.prompts_per_step=16", devices=8)
    )
    gate = state.params["policy"]["layers"]["mlp"]["gate"]["kernel"]  # [layers, embed, mlp]
    moment = state.opt_state["policy"][1][0].mu["layers"]["mlp"]["gate"]["kernel"]
    reference = state.frozen["reference"]["layers"]["mlp"]["gate"]["kernel"]
    for array in (gate, reference):
        assert array.sharding.shard_shape(array.shape) == (2, 16 // 2, 32 // 2)
    assert moment.sharding.shard_shape(moment.shape) == (2, 16 // 4, 32 // 2)  # over data too


def test_microbatches_change_nothing(one_device):
    assert_same(one_device, train(tiny_build(*GROUPS, "update.microbatches=2")))


def test_the_loss_does_depend_on_minibatches(one_device):
    """So that the tests above compare something that can differ."""
    with pytest.raises(AssertionError):
        assert_same(one_device, train(tiny_build(*GROUPS, "update.minibatches=4")))


def test_easydel_recompiled_every_step():
    built = tiny_build()
    state, step = begin_training(built)
    events = []

    def listen(name, seconds, **kwargs):
        if name in (
            "/jax/core/compile/jaxpr_trace_duration",
            "/jax/core/compile/backend_compile_duration",
        ):
            events.append(name)

    with jax.set_mesh(built.mesh):
        state, _, _ = step(state, step.prepare(state, built.train.batches[0]))
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            for index in range(1, 8):
                state, _, _ = step(state, step.prepare(state, built.train.batches[index]))
            assert events == []
            jax.jit(lambda x: x * 3)(1.0)
            assert events  # the listener does hear a compilation
        finally:
            jax.monitoring.clear_event_listeners()
    assert int(state.step) == 8


def test_the_state_is_donated():
    built = tiny_build()
    state, step = begin_training(built)
    with jax.set_mesh(built.mesh):
        step(state, step.prepare(state, built.train.batches[0]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_tunix_every_step_drew_the_same_noise():
    built = tiny_build()
    state, step = begin_training(built)
    with jax.set_mesh(built.mesh):
        batch = step.prepare(state, built.train.batches[0])
        state, first, _ = step(state, batch)
        _, second, _ = step(state, batch)
    assert float(first["policy/entropy"]) != float(second["policy/entropy"])
    assert float(first["length_mean"]) != float(second["length_mean"])


def test_adapting_state_is_in_the_metrics():
    kl = "shaping.kl={fn: kl_penalty, coef: {fn: adaptive_kl, start: 0.5, target: 1, horizon: 160}}"
    state, metrics = train(tiny_build(kl), steps=1)
    # The KL of identical policies is 0, so that the error is clipped at −0.2; 16 rows of 160.
    np.testing.assert_allclose(metrics["shaping/kl"], 0.5 * (1 - 0.2 * 16 / 160), rtol=1e-6)
    np.testing.assert_allclose(state.shaping["kl"].value, metrics["shaping/kl"])


def test_fully_sharded_training_splits_rows_and_not_widths():
    """With all devices on ``fsdp``, each computes the activations of its own rows."""
    built = tiny_build(*GROUPS, "mesh={data: 1, fsdp: 8, tensor: 1}", devices=8)
    state, _ = begin_training(built)
    rows = row_sharding(built.mesh)
    tokens = jax.device_put(np.ones((16, 20), np.int32), rows)
    mask = jax.device_put(np.ones((16, 20), bool), rows)

    def loss(params):
        return token_logprobs(built.networks.roles["policy"].model, params, tokens, mask)[0].sum()

    with jax.set_mesh(built.mesh):
        text = jax.jit(jax.grad(loss)).lower(state.params["policy"]).compile().as_text()
    mlp_width = 32
    assert f"f32[{16 * 20 // 8},{mlp_width}]" in text
    assert f"f32[{16 * 20},{mlp_width}]" not in text
    assert "all-to-all" not in text


def test_a_reference_in_the_hosts_memory_changes_nothing(one_device):
    built = tiny_build(
        *GROUPS, "models.reference={fn: policy, offload: true}", "mesh.fsdp=2", devices=2
    )
    state, step = begin_training(built)
    with jax.set_mesh(built.mesh):
        for index in range(2):
            state, metrics, _ = step(state, step.prepare(state, built.train.batches[index]))
    (kinds,) = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.frozen["reference"])}
    assert kinds == "pinned_host"
    others = (state.params, state.opt_state)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(others)} == {"device"}
    metrics = {name: np.asarray(value) for name, value in metrics.items()}
    assert_same(one_device, (jax.device_get(state.replace(key=0)), metrics))
