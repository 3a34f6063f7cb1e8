"""Learning from experience: which rows make up an update, whose optimizer takes it, and weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradients import recorder

from rljax.algorithms import clip_cov, kl_cov
from rljax.errors import UserError
from rljax.losses import make_weigh, token_weights
from rljax.losses.aggregate import MODES
from rljax.train import init_state, make_update
from rljax.train.update import check_rows
from rljax.types import Experience, Outputs

ROWS = 8


# A row is its own token, and a parameter is a weight for it: a gradient is the rows it came from.


def count_rows(seed=0, **counts):
    """The final state of a learner that counts rows; its parameters begin at 0."""
    updates = counts.get("epochs", 1) * counts.get("minibatches", 1)
    optimizers = {"policy": recorder(updates)}

    def forward(params, batch):
        return Outputs(params["policy"][batch.tokens], jnp.zeros(batch.tokens.shape))

    def loss(outputs, batch):
        return jnp.sum(batch.loss_weights * outputs.logprobs), {"loss": jnp.float32(1.0)}

    weigh = lambda mask: mask.astype(jnp.float32)  # noqa: E731
    state = init_state(
        key=jax.random.key(9), params={"policy": jnp.zeros(ROWS)}, optimizers=optimizers
    )
    tokens = jnp.arange(ROWS)[:, None]
    mask = jnp.ones(tokens.shape, bool)
    update = jax.jit(make_update(forward, loss, weigh, optimizers, **counts))
    experience = Experience(tokens=tokens, mask=mask, action_mask=mask)
    new_state, _, _ = update(state, experience, jax.random.key(seed))
    return new_state


def gradients(**counts):
    """How often each update saw each row: [updates, rows]."""
    count, kept = count_rows(**counts).opt_state["policy"]
    assert int(count) == len(kept)
    return np.asarray(kept)


@pytest.mark.parametrize(
    ("epochs", "minibatches", "microbatches"), [(1, 1, 1), (3, 1, 2), (2, 4, 1), (2, 2, 4)]
)
def test_tunix_every_minibatch_made_a_rollout_of_its_own(epochs, minibatches, microbatches):
    counts = {"epochs": epochs, "minibatches": minibatches, "microbatches": microbatches}
    seen = gradients(**counts)
    assert seen.shape == (epochs * minibatches, ROWS)  # as many updates
    assert set(np.unique(seen)) <= {0.0, 1.0}
    assert (seen.sum(axis=1) == ROWS // minibatches).all()
    assert (seen.reshape(epochs, minibatches, ROWS).sum(axis=1) == 1).all()


def test_every_epoch_is_shuffled_anew_by_the_key_alone():
    counts = {"epochs": 3, "minibatches": 4}
    seen = gradients(**counts)
    epochs = {epoch.tobytes() for epoch in seen.reshape(3, 4, ROWS)}
    assert len(epochs) == 3
    np.testing.assert_array_equal(seen, gradients(**counts))
    assert not np.array_equal(seen, gradients(**counts, seed=1))


def test_the_rest_of_the_state_is_left_alone():
    state = count_rows(epochs=2)
    assert int(state.step) == 0  # the train step counts
    assert (
        jax.random.key_data(state.key).tolist() == jax.random.key_data(jax.random.key(9)).tolist()
    )
    assert not state.params["policy"].any()


# Rows of 1 to 4 tokens of 4, a policy and a critic that are both linear in the token.

LENGTHS = np.array([1, 4, 2, 3, 4, 1, 1, 2])
MASK = jnp.asarray(np.arange(4) < LENGTHS[:, None])
TOKENS = jnp.asarray(np.arange(1, 33).reshape(8, 4) % 7)
RETURNS = jnp.asarray(np.linspace(-1.0, 2.0, 32).reshape(8, 4), jnp.float32)
EXPERIENCE = Experience(tokens=TOKENS, mask=MASK, action_mask=MASK, returns=RETURNS)
PARAMS = {"policy": {"slope": jnp.float32(0.5)}, "value": {"slope": jnp.float32(0.25)}}


def forward(params, batch):
    x = batch.tokens.astype(jnp.float32)
    logprobs = jax.nn.log_sigmoid(params["policy"]["slope"] * x)
    return Outputs(logprobs, jnp.zeros(x.shape), params["value"]["slope"] * x)


def loss(outputs, batch):
    error = jnp.square(outputs.values - batch.returns)
    total = jnp.sum(batch.loss_weights * (error - outputs.logprobs))
    return total, {"loss": total, "mean": jnp.sum(batch.mean_weights * outputs.values)}


def learn(optimizers, mode="token-mean", **counts):
    norm = 4.0 if mode == "seq-mean-token-sum-norm" else None
    update = make_update(forward, loss, make_weigh(mode, norm), optimizers, **counts)
    state = init_state(key=jax.random.key(0), params=PARAMS, optimizers=optimizers)
    return jax.jit(update)(state, EXPERIENCE, jax.random.key(1))[:2]


def slopes_by_hand(rows=slice(None)):
    """The gradients of the token mean, in NumPy: of the policy and of the critic."""
    kept = np.asarray(MASK)[rows]
    x, returns = np.asarray(TOKENS)[rows][kept], np.asarray(RETURNS)[rows][kept]
    return np.mean(-x / (1 + np.exp(0.5 * x))), np.mean(2 * (0.25 * x - returns) * x)


def test_each_role_is_updated_by_its_own_optimizer():
    state, metrics = learn({"policy": optax.sgd(0.0), "value": optax.sgd(0.5)})
    policy, value = slopes_by_hand()
    assert float(state.params["policy"]["slope"]) == 0.5
    np.testing.assert_allclose(state.params["value"]["slope"], 0.25 - 0.5 * value, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/grad_norm"], abs(policy), rtol=1e-5)
    np.testing.assert_allclose(metrics["value/grad_norm"], abs(value), rtol=1e-5)
    state, _ = learn({"policy": optax.sgd(2.0), "value": optax.sgd(0.0)})
    np.testing.assert_allclose(state.params["policy"]["slope"], 0.5 - 2.0 * policy, rtol=1e-5)
    assert float(state.params["value"]["slope"]) == 0.25


def test_the_state_of_every_optimizer_moves_on():
    optimizers = {"policy": optax.adam(0.1), "value": optax.sgd(0.1, momentum=0.9)}
    state, _ = learn(optimizers, epochs=2, minibatches=2)
    assert int(optax.tree.get(state.opt_state["policy"], "count")) == 4
    assert float(state.opt_state["value"][0].trace["slope"]) != 0.0


def test_an_update_starts_from_the_one_before():
    rate = 0.01
    both = {"policy": optax.sgd(0.0), "value": optax.sgd(rate)}
    state, _ = learn(both, epochs=2)
    _, first = slopes_by_hand()
    curvature = 2 * np.mean(np.square(np.asarray(TOKENS)[np.asarray(MASK)]))
    second = first - curvature * rate * first  # the loss is a parabola
    np.testing.assert_allclose(
        state.params["value"]["slope"], 0.25 - rate * (first + second), rtol=1e-5
    )


@functools.cache
def recorded(mode, microbatches):
    """The gradients of two minibatches by role, and the metrics."""
    optimizers = {"policy": recorder(2), "value": recorder(2)}
    state, metrics = learn(optimizers, mode, minibatches=2, microbatches=microbatches)
    return {role: kept["slope"] for role, (_, kept) in state.opt_state.items()}, metrics


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_aggregation_is_over_the_whole_minibatch(mode, microbatches):
    """Rows of different lengths, a minibatch of four: one row each would be a mean of means."""
    jax.tree.map(
        lambda split, whole: np.testing.assert_allclose(split, whole, rtol=1e-6, atol=1e-6),
        recorded(mode, microbatches),
        recorded(mode, 1),
    )


# Marks: the tokens that a loss treats apart, chosen over a whole minibatch.


def marked_updates(mark, **counts):
    """The marks that each update's loss saw, as the gradient of each row's own parameter."""
    updates = counts.get("epochs", 1) * counts.get("minibatches", 1)
    optimizers = {"policy": recorder(updates)}

    def forward(params, batch):
        return Outputs(params["policy"][batch.tokens], jnp.zeros(batch.tokens.shape))

    def loss(outputs, batch):
        return jnp.sum(batch.marked * outputs.logprobs), {}

    update = make_update(forward, loss, token_weights, optimizers, mark, **counts)
    tokens = jnp.arange(ROWS)[:, None]
    mask = jnp.ones(tokens.shape, bool)
    state = init_state(
        key=jax.random.key(9), params={"policy": jnp.zeros(ROWS)}, optimizers=optimizers
    )
    experience = Experience(tokens=tokens, mask=mask, action_mask=mask)
    state, _, _ = jax.jit(update)(state, experience, jax.random.key(0))
    return np.asarray(state.opt_state["policy"][1])


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_marks_are_chosen_over_a_whole_minibatch(microbatches):
    """The row of the highest number: one of each minibatch, and not of each micro-batch."""

    def mark_highest(batch, key):
        assert batch.tokens.shape == (4, 1)
        return batch.tokens == batch.tokens.max()

    counts = {"minibatches": 2, "microbatches": microbatches}
    seen = marked_updates(mark_highest, **counts)
    batches = gradients(**counts)  # the rows of each
    assert seen.sum(axis=1).tolist() == [1.0, 1.0]
    assert seen.argmax(axis=1).tolist() == [np.flatnonzero(batch).max() for batch in batches]


def test_every_minibatch_is_marked_with_a_key_of_its_own():
    def mark_by_key(batch, key):
        return jnp.broadcast_to(jax.random.uniform(key), batch.tokens.shape)

    seen = marked_updates(mark_by_key, epochs=3, minibatches=2)
    drawn = seen.max(axis=1)
    assert len(set(drawn.tolist())) == 6
    np.testing.assert_array_equal(seen, drawn[:, None] * gradients(epochs=3, minibatches=2))


def test_without_a_mark_nothing_is_marked():
    def loss(outputs, batch):
        assert batch.marked is None
        return jnp.sum(outputs.logprobs), {}

    both = {"policy": optax.sgd(0.1), "value": optax.sgd(0.1)}
    update = make_update(forward, loss, token_weights, both)
    update(
        init_state(key=jax.random.key(0), params=PARAMS, optimizers=both),
        EXPERIENCE,
        jax.random.key(1),
    )


@functools.cache
def covariant(make, microbatches):
    """The gradients of two minibatches of a policy linear in the token, and the metrics."""
    algorithm = make(share=0.3)
    old = -1.0 + 3.0 * jnp.sin(jnp.arange(32.0)).reshape(8, 4)
    experience = EXPERIENCE.replace(logprobs=old, advantages=RETURNS)
    optimizers = {"policy": recorder(2)}
    update = make_update(
        forward,
        algorithm.loss,
        algorithm.weigh,
        optimizers,
        algorithm.mark,
        minibatches=2,
        microbatches=microbatches,
    )

    state = init_state(
        key=jax.random.key(0),
        params={"policy": PARAMS["policy"]},
        optimizers=optimizers,
        frozen={"value": PARAMS["value"]},
    )
    state, metrics, _ = jax.jit(update)(state, experience, jax.random.key(1))
    return state.opt_state["policy"][1]["slope"], metrics


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("make", [clip_cov, kl_cov])
def test_micro_batches_mark_no_other_tokens(make, microbatches):
    (slopes, metrics), (whole, whole_metrics) = covariant(make, microbatches), covariant(make, 1)
    np.testing.assert_allclose(slopes, whole, rtol=1e-5, atol=1e-6)
    assert 0.05 < float(whole_metrics["policy/marked"]) < 0.4
    for name, metric in whole_metrics.items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-5, atol=1e-6, err_msg=name)


def test_metrics_are_means_over_the_updates():
    both = {"policy": optax.sgd(0.0), "value": optax.sgd(0.0)}
    order = jax.random.permutation(jax.random.split(jax.random.key(1), 1)[0], ROWS).reshape(2, 4)
    _, metrics = learn(both, minibatches=2)
    kept = [np.asarray(TOKENS)[rows][np.asarray(MASK)[rows]] for rows in np.asarray(order)]
    np.testing.assert_allclose(metrics["mean"], 0.25 * np.mean([x.mean() for x in kept]), rtol=1e-6)
    norms = [abs(slopes_by_hand(rows)[1]) for rows in np.asarray(order)]
    np.testing.assert_allclose(metrics["value/grad_norm"], np.mean(norms), rtol=1e-5)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            (12, 4, 2),
            "12 rows per step do not divide into 4 minibatches of 2 micro-batches over 1 ",
        ),
        ((12, 4, 2), "; 8 or 16 would"),
        ((3, 4, 2), "; 8 would"),
        ((24, 2, 2, 4), "over 4 row shard(s); 16 or 32 would"),  # each micro-batch over the shards
    ],
)
def test_verl_473_606_a_divisibility_assert_in_the_users_face(counts, said):
    with pytest.raises(UserError) as error:
        check_rows(*counts)
    assert said in str(error.value)


def test_rows_that_do_divide_pass_and_a_step_of_others_is_refused():
    check_rows(16, 4, 2)
    check_rows(32, 2, 2, 4)
    both = {"policy": optax.sgd(0.0), "value": optax.sgd(0.0)}
    with pytest.raises(UserError, match=r"8 rows per step .* 6 or 9 would"):
        learn(both, minibatches=3)


@pytest.mark.parametrize("name", ["epochs", "minibatches", "microbatches", "buckets"])
def test_a_count_of_zero_is_refused(name):
    with pytest.raises(UserError, match="must be at least 1"):
        learn({"policy": optax.sgd(0.0), "value": optax.sgd(0.0)}, **{name: 0})
    with pytest.raises(UserError, match="must be at least 1, got 0, 1"):
        check_rows(16, 0, 1)


def test_rows_that_belong_together_stay_so_in_their_order():
    """The two of a pair, through minibatches and micro-batches, while the pairs are shuffled."""

    def forward(params, batch):
        return Outputs(params["policy"][batch.tokens], jnp.zeros(batch.tokens.shape))

    def loss(outputs, batch):
        first, second = batch.tokens[::2, 0], batch.tokens[1::2, 0]
        paired = (second == first + 1) & (first % 2 == 0)
        metrics = {"paired": paired.sum(), "first": jnp.float32(first[0])}
        return jnp.sum(batch.loss_weights * outputs.logprobs), metrics

    optimizers = {"policy": optax.sgd(1.0)}
    state = init_state(
        key=jax.random.key(9), params={"policy": jnp.zeros(16)}, optimizers=optimizers
    )
    tokens = jnp.arange(16)[:, None]
    mask = jnp.ones(tokens.shape, bool)
    weigh = make_weigh("token-mean")
    update = make_update(
        forward, loss, weigh, optimizers, None, 2, epochs=2, minibatches=2, microbatches=2
    )
    experience = Experience(tokens=tokens, mask=mask, action_mask=mask)
    _, metrics, _ = jax.jit(update)(state, experience, jax.random.key(0))
    assert float(metrics["paired"]) == 4  # of each minibatch
    assert float(metrics["first"]) != (0 + 4 + 8 + 12) / 2  # which unshuffled ones would have
