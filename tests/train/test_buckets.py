"""Rows in lots of like length: what is computed of them, and that nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import few
from gradients import recorder
from hypothesis import given
from hypothesis import strategies as st
from recipes import RECIPES, experience_of, make
from tiny import begin_training, tiny_build

from benchmarks.padding import experience
from rljax.losses import token_weights
from rljax.sharding import make_mesh
from rljax.train import init_state, make_update
from rljax.train.buckets import make_lots, map_rows, widths
from rljax.types import Experience, Outputs

# Rows of 24 columns by the columns of their first and last token; the third has none.
SPANS = [(2, 20), (0, 4), None, (3, 10), (5, 5), (0, 23)]


def mask_of(spans):
    at, nowhere = jnp.arange(24), (1, 0)
    return jnp.stack(
        [(first <= at) & (at <= last) for first, last in (s or nowhere for s in spans)]
    )


def test_lots_by_hand():
    mask = mask_of(SPANS)
    numbered = 100 * jnp.arange(6)[:, None] + jnp.arange(24)
    lots = make_lots((numbered, jnp.arange(6)), mask, parts=3, buckets=3)
    assert lots.order.tolist() == [5, 0, 3, 1, 4, 2]  # of 24, 19, 8, 5, 1 and 0 columns
    assert lots.first.tolist() == [0, 2, 3, 0, 5, 0]
    assert [widths(24, 3)[index] for index in lots.width] == [24, 8, 8]
    table, rows = lots.rows
    assert rows.tolist() == [[5, 0], [3, 1], [4, 2]]
    assert table[0, 1].tolist() == [*range(2, 24), 0, 1]  # what stood before the first comes last
    assert table[1, 0, :8].tolist() == [*range(303, 311)]


def test_with_one_bucket_rows_stay_where_they_are():
    numbered = jnp.arange(6 * 24).reshape(6, 24)
    lots = make_lots(numbered, mask_of(SPANS), parts=2, buckets=1)
    np.testing.assert_array_equal(lots.rows, numbered.reshape(2, 3, 24))
    assert (lots.order.tolist(), lots.first.tolist()) == ([*range(6)], [0] * 6)


def test_widths_divide_over_the_sequence_axis():
    with jax.set_mesh(make_mesh(jax.devices(), data=4, sequence=2)):
        assert widths(80, 4) == (32, 48, 64, 80)
        assert widths(6, 2) == (6,)


def summed(tokens, mask):
    return jnp.cumsum(jnp.where(mask, tokens, 0), axis=1)


def in_all(tokens, mask):
    return summed(tokens, mask)[:, -1]


READ = {  # compiled once each, for all lengths
    (f, parts): jax.jit(functools.partial(map_rows, f, parts=parts, buckets=3))
    for f in (summed, in_all)
    for parts in (1, 2, 4)
}
spans = st.tuples(st.integers(0, 23), st.integers(0, 23)).map(sorted)


@few
@given(st.lists(st.none() | spans, min_size=8, max_size=8), st.sampled_from([1, 2, 4]))
def test_rows_read_in_lots_are_as_they_were(found, parts):
    mask, tokens = mask_of(found), 1 + jnp.arange(8 * 24).reshape(8, 24)
    read = READ[summed, parts](tokens, mask)
    np.testing.assert_array_equal(
        jnp.where(mask, read, 0), jnp.where(mask, summed(tokens, mask), 0)
    )
    np.testing.assert_array_equal(READ[in_all, parts](tokens, mask), in_all(tokens, mask))


# A network whose every output depends on the tokens before it, and on no padding.


def forward(params, batch, spoilt=None):
    p = params["policy"]
    x = jnp.where(batch.mask, p["table"][batch.tokens], 0.0)
    before = jnp.cumsum(x, axis=1) - x
    logprobs = -jax.nn.softplus(p["slope"] * before + x) - 0.1
    if spoilt is not None:
        logprobs = jnp.where(batch.tokens == spoilt, jnp.nan, logprobs)
    return Outputs(
        logprobs=logprobs,
        entropy=jnp.square(before),
        values=p["slope"] * before,
        scores=x.sum(axis=1),
        divergence=jnp.square(x - before),
    )


PARAMS = {"policy": {"table": 0.3 * jnp.sin(3.0 * jnp.arange(13.0)), "slope": jnp.float32(0.7)}}
KEPT_AS_TRAINED = {"policy": recorder(4)}


def sparse(experience: Experience) -> Experience:
    """With other tokens, prompts of other lengths, half of the budget unused by many, and, if there
    are advantages, some for every token."""
    rows, columns = experience.tokens.shape
    at = jnp.arange(columns)
    numbers = jnp.arange(rows * columns).reshape(rows, columns)
    starts = at >= (jnp.arange(rows) // 2 % 3)[:, None]
    ends = at < 3 + (5 * jnp.arange(rows)[:, None] % 10)
    return experience.replace(
        tokens=numbers % 13,
        advantages=None if experience.advantages is None else jnp.sin(2.0 * numbers),
        mask=experience.mask & starts & ends,
        action_mask=experience.action_mask & starts & ends,
    )


def learn(name, spoilt=None, **counts):
    algorithm = make(name)
    together = 2 if algorithm.learns_from == "pairs" else 1
    update = make_update(
        functools.partial(forward, spoilt=spoilt),
        algorithm.loss,
        algorithm.weigh,
        KEPT_AS_TRAINED,
        algorithm.mark,
        together,
        epochs=2,
        minibatches=2,
        **counts,
    )
    state = init_state(key=jax.random.key(0), params=PARAMS, optimizers=KEPT_AS_TRAINED)
    return jax.jit(update)(state, sparse(experience_of(algorithm)), jax.random.key(1))


@pytest.mark.parametrize("name", RECIPES)
def test_buckets_change_no_gradient_and_no_metric(name):
    state, metrics, updates = learn(name)
    split_state, split_metrics, split_updates = learn(name, buckets=3, microbatches=3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, split_state.opt_state, state.opt_state)
    jax.tree.map(close, split_metrics, metrics)
    assert np.abs(state.opt_state["policy"][1]["table"]).max() > 1e-3
    np.testing.assert_array_equal(np.sort(split_updates.rows), np.sort(updates.rows))


@pytest.mark.parametrize("counts", [{}, {"buckets": 3}, {"buckets": 3, "microbatches": 3}])
def test_what_is_not_finite_is_of_the_same_row_and_column(counts):
    found = learn("ppo", spoilt=7, **counts)[2]
    rows, columns = (np.asarray(x).ravel() for x in (found.rows, found.column))
    seen = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    experience = sparse(experience_of(make("ppo")))
    bad = np.asarray(experience.action_mask & (experience.tokens == 7))
    assert seen == {row: int(at.argmax()) if at.any() else -1 for row, at in enumerate(bad)}
    assert {-1} < set(seen.values())


@pytest.mark.parametrize(
    ("counts", "columns"),
    [
        ({}, 8 * 24),
        ({"microbatches": 4}, 8 * 24),
        ({"microbatches": 4, "buckets": 3}, 2 * 24 + 2 * 16 + 4 * 8),
        ({"microbatches": 2, "buckets": 3}, 4 * 24 + 4 * 8),
        ({"buckets": 3}, 8 * 24),
    ],
)
def test_columns_beyond_a_lots_longest_row_are_not_computed(counts, columns):
    lengths = [3, 17, 9, 24, 1, 5, 16, 8]
    mask = mask_of([(0, length - 1) for length in lengths])

    def loss(outputs, batch):
        return jnp.sum(batch.loss_weights * outputs.logprobs), {
            "columns": jnp.float32(batch.tokens.size)
        }

    both = {"policy": optax.sgd(0.0)}
    update = make_update(forward, loss, token_weights, both, **counts)
    state = init_state(key=jax.random.key(0), params=PARAMS, optimizers=both)
    experience = Experience(tokens=mask.astype(jnp.int32), mask=mask, action_mask=mask)
    _, metrics, _ = jax.jit(update)(state, experience, jax.random.key(1))
    assert int(metrics["columns"]) == columns


def updated(*settings, devices=1):
    """The parameters after an update of the embedded task on responses of many lengths."""
    built = tiny_build("sampling.max_tokens=24", *settings, devices=devices)
    state, _ = begin_training(built)
    rows = experience(built, state, mean=8, spread="geometric")
    with jax.set_mesh(built.mesh):
        after, metrics, _ = jax.jit(built.train.train_step.update)(state, rows, jax.random.key(1))
    return jax.device_get((after.params, metrics))


@pytest.fixture(scope="module")
def whole():
    return updated()


@pytest.mark.parametrize(
    "sizes", ["data: 1", "data: 2, fsdp: 2, tensor: 2", "fsdp: 2, sequence: 2, tensor: 2"]
)
def test_a_networks_update_in_buckets_on_eight_devices_equals_that_on_one(whole, sizes):
    buckets = ("update.microbatches=2", "update.buckets=3")
    devices = 1 if sizes == "data: 1" else 8
    params, metrics = updated(*buckets, f"mesh={{{sizes}}}", devices=devices)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(y).max()),
        params,
        whole[0],
    )
    for name in ("policy/loss", "value/loss", "policy/grad_norm", "value/grad_norm"):
        np.testing.assert_allclose(metrics[name], whole[1][name], rtol=1e-4)
