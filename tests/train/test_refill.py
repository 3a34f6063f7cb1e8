"""Dynamic sampling with a fake sampler: which groups are kept, and how many are asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import few, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.sharding import make_mesh, row_sharding
from rljax.train import init_state, make_refilled_draw
from rljax.types import Prompts, Scored

SIZE = 3  # responses per prompt
ALIKE, DIFFER = 0, 1
STATE = init_state(
    key=jax.random.key(9),
    params={"policy": jnp.float32(0.5)},
    optimizers={"policy": optax.sgd(1.0)},
)

# A prompt is its own number, and its extras say what its group's raw rewards will be. Its
# responses begin with the prompt's number and the response's place in the group; the column after
# is drawn with the key.


def make_prompts(kinds) -> Prompts:
    tokens = jnp.arange(len(kinds))[:, None]
    return Prompts(tokens, jnp.ones(tokens.shape, bool), {"kind": jnp.asarray(kinds)})


def draw(state, prompts, key, size=SIZE):
    count = prompts.tokens.shape[0]
    rows = count * size
    rollout = make_rollout([1] * rows, prompt=2, budget=1)
    place = jnp.arange(rows) % size
    drawn = jax.random.randint(key, (rows,), 0, 1 << 20)
    return rollout.replace(
        tokens=jnp.stack([jnp.repeat(prompts.tokens[:, 0], size), place, drawn], axis=1),
        logprobs=jnp.where(rollout.action_mask, state.params["policy"], 0.0),
        group=jnp.repeat(jnp.arange(count), size),
        extras=jax.tree.map(lambda x: jnp.repeat(x, size, axis=0), prompts.extras),
    )


asked = []  # prompts, by round


def ask(state, prompts, key):
    jax.debug.callback(lambda tokens: asked.append(tokens[:, 0].tolist()), prompts.tokens)
    return draw(state, prompts, key)


def score(state, rollout) -> Scored:
    """A raw reward of 1 for the second of a group whose rewards differ, and 0 for all others."""
    raw = ((rollout.extras["kind"] == DIFFER) & (rollout.tokens[:, 1] == 1)).astype(jnp.float32)
    return Scored(raw, raw > 0.5, jnp.ones(raw.shape, bool), {})


@functools.cache
def compiled(rounds, draw=draw, score=score):
    return jax.jit(make_refilled_draw(draw, score, rounds=rounds))


def refill(kinds, rounds, *, seed=0, **fakes):
    return compiled(rounds, **fakes)(STATE, make_prompts(kinds), jax.random.key(seed))


def numbers(rollout, size=SIZE):
    """The prompts whose groups were kept; the rows of each must be together, and in order."""
    tokens = np.asarray(rollout.tokens).reshape(-1, size, 3)
    assert (tokens[:, :, 1] == np.arange(size)).all()
    assert (tokens[:, :, 0] == tokens[:, :1, 0]).all()
    return tokens[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [  # two prompts are wanted, of three rounds of two
        ([1, 1, 1, 1, 1, 1], [0, 1]),  # enough at once
        ([1, 0, 1, 1, 1, 1], [0, 2]),  # one is replaced, by the first of the next round
        ([0, 1, 1, 1, 1, 1], [1, 2]),  # what teaches keeps its place before what comes later
        ([0, 0, 0, 1, 1, 1], [3, 4]),  # from two rounds
        ([0, 0, 0, 0, 1, 1], [4, 5]),
        ([0, 0, 0, 1, 0, 0], [3, 0]),  # there are no others than the first that is alike
        ([0, 0, 0, 0, 0, 1], [5, 0]),
        ([0, 0, 0, 0, 0, 0], [0, 1]),
    ],
)
def test_which_groups_are_kept(kinds, kept):
    assert numbers(refill(kinds, rounds=3)) == kept


@few
@given(st.lists(st.sampled_from([ALIKE, DIFFER]), min_size=12, max_size=12))
def test_those_that_teach_come_first_in_the_order_they_were_asked(kinds):
    expected = sorted(range(12), key=lambda prompt: kinds[prompt] == ALIKE)[:4]
    assert numbers(refill(kinds, rounds=3)) == expected


@pytest.mark.parametrize(
    ("kinds", "rounds"),
    [
        ([1, 1, 1, 1, 1, 1], 1),
        ([1, 0, 1, 1, 1, 1], 2),
        ([1, 0, 0, 1, 1, 1], 2),
        ([0, 0, 0, 1, 1, 1], 3),
        ([0, 0, 0, 0, 0, 0], 3),  # never more than asked for
    ],
)
def test_it_stops_as_soon_as_it_has_enough(kinds, rounds):
    """Each round asks the next part of the prompts."""
    asked.clear()
    jax.block_until_ready(refill(kinds, rounds=3, draw=ask))
    jax.effects_barrier()
    assert asked == [[0, 1], [2, 3], [4, 5]][:rounds]


def test_groups_are_numbered_anew_and_every_column_goes_along():
    kinds = [0, 1, 0, 1, 1, 0]
    rollout = refill(kinds, rounds=3)
    assert numbers(rollout) == [1, 3]
    assert rollout.group.tolist() == [0] * SIZE + [1] * SIZE
    assert rollout.extras["kind"].tolist() == [DIFFER] * 2 * SIZE
    np.testing.assert_array_equal(rollout.logprobs, jnp.where(rollout.action_mask, 0.5, 0.0))
    assert rollout.values is None
    metrics = {"refill/rounds": 2, "refill/informative_ratio": 0.5}  # two of four groups teach
    assert {name: float(value) for name, value in rollout.metrics.items()} == metrics
    rollout = rollout.replace(metrics={})
    fresh = draw(STATE, make_prompts(kinds[:2]), jax.random.key(0))
    assert jax.tree.map(jnp.shape, rollout) == jax.tree.map(jnp.shape, fresh)


def test_a_response_cut_off_is_a_difference_where_it_is_learned_from():
    def cut(state, prompts, key):
        rollout = draw(state, prompts, key)
        return rollout.replace(truncated=rollout.tokens[:, 1] == 1)  # the one that earns

    for truncated, rounds in ((True, 1), (False, 2)):
        drawing = make_refilled_draw(cut, score, rounds=2, truncated=truncated)
        rollout = drawing(STATE, make_prompts([1, 1, 1, 1]), jax.random.key(0))
        assert int(rollout.metrics["refill/rounds"]) == rounds


def test_every_round_draws_with_a_key_of_its_own():
    rollout = refill([1, 0, 1, 0], rounds=2)
    prompts = make_prompts([1, 0, 1, 0])
    drawn = [
        draw(
            STATE,
            jax.tree.map(lambda x, part=part: x[part], prompts),
            jax.random.fold_in(jax.random.key(0), index),
        ).tokens[:SIZE]
        for index, part in enumerate([slice(0, 2), slice(2, 4)])
    ]
    np.testing.assert_array_equal(rollout.tokens, jnp.concatenate(drawn))
    assert (drawn[0][:, 2] != drawn[1][:, 2]).any()
    other = refill([1, 0, 1, 0], rounds=2, seed=1)
    assert (other.tokens[:, 2] != rollout.tokens[:, 2]).any()


def test_one_round_is_a_plain_draw():
    rollout = refill([0, 1, 0], rounds=1)
    plain = draw(STATE, make_prompts([0, 1, 0]), jax.random.fold_in(jax.random.key(0), 0))
    assert numbers(rollout) == [1, 0, 2]  # what teaches first
    rows = np.repeat([1, 0, 2], SIZE) * SIZE + np.tile(np.arange(SIZE), 3)
    np.testing.assert_array_equal(rollout.tokens, plain.tokens[rows])


def test_nemo_rl_2431_dynamic_sampling_filtered_on_the_shaped_reward():
    """Lengths that a penalty would tell apart do not make a group one that teaches."""

    def of_lengths(state, prompts, key):
        rollout = draw(state, prompts, key)
        kept = rollout.action_mask & (rollout.tokens[:, 1:2] > 0)
        return rollout.replace(action_mask=kept, truncated=rollout.tokens[:, 1] == 0)

    assert numbers(refill([0, 1, 0, 1], rounds=2, draw=of_lengths)) == [1, 3]


def test_responses_that_do_not_count_make_no_difference():
    """The group of prompt 0 differs by a response whose reward failed."""

    def failing(state, rollout):
        scored = score(state, rollout)
        failed = (rollout.tokens[:, 0] == 0) & (rollout.tokens[:, 1] == 1)
        return scored._replace(counted=~failed)

    assert numbers(refill([1, 1, 1, 1], rounds=2)) == [0, 1]
    assert numbers(refill([1, 1, 1, 1], rounds=2, score=failing)) == [1, 2]


def test_the_greedy_response_makes_no_difference_and_stays_with_its_group():
    def with_greedy(state, prompts, key):
        rollout = draw(state, prompts, key, size=SIZE + 1)
        place = rollout.tokens[:, 1]
        greedy_alone = (rollout.tokens[:, 0] == 0) & (place == 1)
        return rollout.replace(
            greedy=jnp.where(rollout.tokens[:, 0] == 0, greedy_alone, place == 0)
        )

    rollout = refill([1, 1, 1, 1], rounds=2, draw=with_greedy)
    assert numbers(rollout, SIZE + 1) == [1, 2]
    assert rollout.greedy.reshape(2, SIZE + 1).tolist() == [[True] + [False] * SIZE] * 2


def test_compiled_equals_eager():
    prompts = make_prompts([0, 1, 0, 0, 1, 0])
    eager = make_refilled_draw(draw, score, rounds=3)
    arguments = STATE, prompts, jax.random.key(3)
    jax.tree.map(np.testing.assert_array_equal, compiled(3)(*arguments), eager(*arguments))


def test_eight_devices_equal_one():
    """Eight of 24 prompts are wanted; the rows lie spread over all devices throughout."""
    kinds = [0, 1, 1, 0, 0, 0, 1, 0] * 2 + [1, 0] * 4
    state, prompts, key = STATE, make_prompts(kinds), jax.random.key(3)
    one = compiled(3)(state, prompts, key)
    mesh = make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(prompts, row_sharding(mesh))
        eight = jax.jit(make_refilled_draw(draw, score, rounds=3))(state, spread, key)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(eight), jax.device_get(one))
    assert len(set(numbers(one))) == 8
    for column in jax.tree.leaves(eight.replace(metrics={})):
        assert column.sharding.is_equivalent_to(row_sharding(mesh), column.ndim)
