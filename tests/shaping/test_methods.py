"""What holds for every length method, and the faults of others' that concern all of them."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax import shaping
from rljax.shaping import chain, length_metrics, overlong_filter
from rljax.train.collect import state_metrics
from rljax.types import ROW

BUDGET = 16_384  # long enough for every default to reach its cap

# Each by its defaults, and with what a run or its data would fill in.
METHODS = {
    "length_band": partial(shaping.length_band, 100, 1000),
    "soft_overlong": partial(shaping.soft_overlong, BUDGET),
    "missing_eos": shaping.missing_eos,
    "cosine": partial(shaping.cosine, BUDGET),
    "l1_exact": partial(shaping.l1_exact, 500),
    "l1_max": partial(shaping.l1_max, 500),
    "laser": partial(shaping.laser, 500),
    "o1_pruner": partial(shaping.o1_pruner, reference_tokens=500.0, reference_accuracy=0.5),
    "kimi": shaping.kimi,
    "arora_zanette": shaping.arora_zanette,
    "alp": shaping.alp,
    "grpo_lead": shaping.grpo_lead,
    "shorter_better": shaping.shorter_better,
    "drpo": partial(shaping.drpo, BUDGET),
    "laser_d": partial(shaping.laser_d, BUDGET),
    "a_dlp": partial(shaping.a_dlp, 0.5),
    "hapo": partial(shaping.hapo, 2),
}
NOT_KEEPING = {
    # a correct and a wrong response that are worth the same, and what mends it
    "soft_overlong": ([BUDGET, 1], {"penalty": 0.9}),
    "missing_eos": ([BUDGET, 1], {"penalty": 0.9}),
    "l1_exact": ([BUDGET, 500], {"cap": 0.9}),
    "l1_max": ([BUDGET, 500], {"alpha": 0.5 / BUDGET}),
}
UNBOUNDED = ["length_band", "l1_exact", "o1_pruner", "alp", "shorter_better", "a_dlp"]
every_method = pytest.mark.parametrize("name", METHODS)

GROUP = [0, 0, 0, 0, 1, 1]
LENGTHS = [3, 700, 12_000, 40, BUDGET, 2]
CORRECT = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def batch(lengths=LENGTHS, correct=CORRECT, group=GROUP, *, budget=BUDGET, prompt=2):
    group = np.asarray(group)
    rollout = make_rollout(
        lengths,
        prompt=prompt,
        budget=budget,
        truncated=[n >= BUDGET for n in lengths],
        group=group,
        extras={ROW: jnp.asarray(group, jnp.int32)},
    )
    return make_rewards(rollout, correct), rollout


def warmed(transform):
    """A state that an earlier batch has moved."""
    rewards, rollout = batch([500, 90, 800, 1000, 600, 300], [1, 0, 1, 1, 0, 1])
    return transform.apply(rewards, transform.init(), rollout)[1]


@cache
def prepared(name):
    """A method compiled, and a state of it that has moved."""
    transform = METHODS[name]()
    return jax.jit(transform.apply), warmed(transform)


def same(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


lengths_of_6 = st.lists(st.integers(1, BUDGET), min_size=6, max_size=6)
groups_of_6 = st.lists(st.integers(0, 1), min_size=6, max_size=6)
of_6 = st.permutations([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def falls_short(apply, state, lengths, correct, group):
    """Whether some correct response is worth no more than some wrong one."""
    rewards, rollout = batch(lengths, correct, group)
    shaped = np.asarray(apply(rewards, state, rollout)[0].response)
    right = np.asarray(correct) > 0.5
    return shaped[right].min() <= shaped[~right].max()


def may_fall_short(transform, lengths, correct):
    return falls_short(transform.apply, transform.init(), lengths, correct, [0] * len(lengths))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOT_KEEPING])
@few
@given(lengths_of_6, of_6, groups_of_6)
def test_correct_beats_wrong_at_any_length(name, lengths, correct, group):
    apply, moved = prepared(name)
    for state in (METHODS[name]().init(), moved):
        assert not falls_short(apply, state, lengths, correct, group)


@pytest.mark.parametrize("name", NOT_KEEPING)
def test_where_correct_does_not_beat_wrong(name):
    lengths, mended = NOT_KEEPING[name]
    assert may_fall_short(METHODS[name](), lengths, [1.0, 0.0])
    assert not may_fall_short(METHODS[name](**mended), lengths, [1.0, 0.0])


@pytest.mark.parametrize("name", NOT_KEEPING)
@few
@given(lengths_of_6, of_6, groups_of_6)
def test_there_a_smaller_price_keeps_it_at_any_length(name, lengths, correct, group):
    transform = METHODS[name](**NOT_KEEPING[name][1])
    assert not falls_short(transform.apply, transform.init(), lengths, correct, group)


@every_method
def test_every_docstring_says_whether_correct_beats_wrong(name):
    text = " ".join(getattr(shaping, name).__doc__.split())
    assert "Correct beats wrong" in text
    claimed = re.search("Correct beats wrong at any length(?! if)", text)
    assert bool(claimed) == (name not in NOT_KEEPING)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_without_a_cap_correct_may_fall_behind(name):
    """A long correct response among short ones, and a wrong one that is short."""
    lengths = [BUDGET, 10, 10, 2]
    assert not may_fall_short(METHODS[name](cap=0.9), lengths, [1.0, 1.0, 1.0, 0.0])
    assert may_fall_short(METHODS[name](cap=None), lengths, [1.0, 1.0, 1.0, 0.0])


@every_method
def test_verl_nemo_tunix_a_penalty_without_a_lower_clamp(name):
    """One response of three budgets cannot drag its group: what length costs is bounded."""
    transform = METHODS[name]()
    for correct in (1.0, 0.0):
        rewards, rollout = batch(
            [3 * BUDGET, *LENGTHS[1:]], [correct, *CORRECT[1:]], budget=3 * BUDGET
        )
        shaped, _, _ = transform.apply(rewards, warmed(transform), rollout)
        least = correct - 1.0
        if name == "o1_pruner" and not correct:
            least -= 1.0  # 2·(0 − Ā) beside what the length costs
        assert shaped.response[0] >= least


SPARING = ["length_band", "soft_overlong", "missing_eos", "l1_exact", "o1_pruner"]
SPARING += ["alp", "shorter_better", "a_dlp"]


@pytest.mark.parametrize("name", SPARING)
def test_correct_only_spares_the_wrong_and_changes_nothing_for_the_correct(name):
    lengths, correct = [BUDGET, 1, BUDGET, 1], [1.0, 1.0, 0.0, 0.0]
    rewards, rollout = batch(lengths, correct, [0] * 4)
    whole, sparing = METHODS[name](), METHODS[name](correct_only=True)
    charged = whole.apply(rewards, whole.init(), rollout)[0].response
    spared = sparing.apply(rewards, sparing.init(), rollout)[0].response
    np.testing.assert_array_equal(spared[:2], charged[:2])
    assert spared[2] == spared[3]  # whatever their length
    assert charged[2] != charged[3]


@pytest.mark.parametrize("name", ["soft_overlong", "missing_eos", "l1_exact", "alp", "a_dlp"])
def test_correct_only_does_not_make_correct_beat_wrong(name):
    """It leaves the wrong ones at 0, where a correct one at a cap of 1 is too."""
    lengths, correct = [BUDGET, 1, 1, 500], [1.0, 1.0, 1.0, 0.0]
    assert may_fall_short(METHODS[name](correct_only=True), lengths, correct)
    price = {"penalty": 0.9} if name in ("soft_overlong", "missing_eos") else {"cap": 0.9}
    assert not may_fall_short(METHODS[name](correct_only=True, **price), lengths, correct)


@every_method
def test_only_the_shaped_reward_changes(name):
    apply, state = prepared(name)
    rewards, rollout = batch()
    shaped, _, _ = apply(rewards, state, rollout)
    assert shaped.response.dtype == jnp.float32
    same(shaped.replace(response=rewards.response), rewards, rtol=0)


@every_method
def test_what_else_a_response_earned_stays(name):
    apply, state = prepared(name)
    rewards, rollout = batch()
    more = jnp.arange(6) / 4
    plain, _, _ = apply(rewards, state, rollout)
    richer, _, _ = apply(rewards.replace(response=rewards.response + more), state, rollout)
    np.testing.assert_allclose(richer.response, plain.response + more, rtol=1e-5, atol=1e-6)


@every_method
def test_the_metric_is_what_was_taken_from_those_that_count(name):
    apply, state = prepared(name)
    rewards, rollout = batch()
    rewards = rewards.replace(counted=jnp.array([True, True, False, True, True, False]))
    shaped, _, metrics = apply(rewards, state, rollout)
    taken = (rewards.response - shaped.response)[jnp.array([0, 1, 3, 4])]
    np.testing.assert_allclose(metrics["length_penalty_mean"], taken.mean(), rtol=1e-5, atol=1e-6)


@every_method
def test_trl_truncated_rows_in_the_statistics_of_their_group(name):
    """Rows that do not count move neither the others' rewards, nor a metric, nor the state."""
    apply, state = prepared(name)
    counted = jnp.array([True, True, False, True, True, True])
    outcomes = []
    for n, correct in [(12_000, 1.0), (1, 0.0), (BUDGET, 1.0)]:
        lengths, raw = LENGTHS.copy(), CORRECT.copy()
        lengths[2], raw[2] = n, correct
        rewards, rollout = batch(lengths, raw)
        shaped, moved, metrics = apply(rewards.replace(counted=counted), state, rollout)
        assert np.isfinite(shaped.response).all()
        outcomes.append((shaped.response[counted], moved, metrics))
    same(outcomes[0], outcomes[1], rtol=0)
    same(outcomes[0], outcomes[2], rtol=0)


@every_method
def test_open_r1_statistics_over_the_batch_instead_of_the_group(name):
    """What another prompt's responses are like changes nothing for these."""
    apply, state = prepared(name)
    rewards, rollout = batch()
    one, _, _ = apply(rewards, state, rollout)
    others, other_rollout = batch([*LENGTHS[:4], 1, 9000], [*CORRECT[:4], 0.0, 0.0])
    other, _, _ = apply(others, state, other_rollout)
    np.testing.assert_array_equal(one.response[:4], other.response[:4])


@every_method
def test_a_batch_of_which_nothing_counts_is_finite_and_teaches_nothing(name):
    apply, state = prepared(name)
    rewards, rollout = batch()
    rewards = rewards.replace(counted=jnp.zeros(6, bool))

    def total(response):
        shaped, new_state, metrics = apply(rewards.replace(response=response), state, rollout)
        return shaped.response.sum(), (shaped, new_state, metrics)

    gradient, (shaped, new_state, metrics) = jax.grad(total, has_aux=True)(rewards.response)
    assert gradient.tolist() == [1.0] * 6
    assert np.isfinite(shaped.response).all()
    assert float(metrics["length_penalty_mean"]) == 0.0
    assert all(np.isfinite(metric) for metric in metrics.values())
    same(new_state, state, rtol=0)


@every_method
@few
@given(st.permutations(range(6)))
def test_permuting_rows_permutes_the_rewards(name, order):
    (apply, state), order = prepared(name), np.array(order)
    rewards, rollout = batch()
    shaped, moved, metrics = apply(rewards, state, rollout)
    rewards, rollout = batch(*(np.array(x)[order] for x in (LENGTHS, CORRECT, GROUP)))
    again, moved_again, metrics_again = apply(rewards, state, rollout)
    same(again.response, shaped.response[order])
    same((moved_again, metrics_again), (moved, metrics))


@every_method
def test_padding_on_both_sides_changes_nothing(name):
    apply, state = prepared(name)
    narrow, wide = batch(), batch(prompt=7, budget=BUDGET + 5)
    one, one_state, one_metrics = apply(narrow[0], state, narrow[1])
    two, two_state, two_metrics = apply(wide[0], state, wide[1])
    same((one.response, one_state, one_metrics), (two.response, two_state, two_metrics), rtol=0)


@every_method
def test_compiled_equals_eager(name):
    transform = METHODS[name]()
    rewards, rollout = batch()
    state = warmed(transform)
    eager = transform.apply(rewards, state, rollout)
    same(jax.jit(transform.apply)(rewards, state, rollout), eager)


def test_one_chain_of_all_methods_keeps_its_state_and_its_metrics():
    transform = chain(
        measure=length_metrics(100, 1000),
        overlong=overlong_filter(),
        **{name: make() for name, make in METHODS.items()},
    )
    state = transform.init()
    form = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    step = jax.jit(transform.apply, donate_argnums=1)  # no buffer may be in it twice
    for lengths in (LENGTHS, LENGTHS[::-1], [5] * 6):
        rewards, rollout = batch(lengths)
        counted = rewards.replace(counted=~rollout.truncated)
        alone = np.zeros(6)
        for name, make in METHODS.items():
            part, _, _ = make().apply(counted, state[name], rollout)
            alone = alone + (part.response - rewards.response)
        shaped, state, metrics = step(rewards, state, rollout)
        np.testing.assert_allclose(shaped.response - rewards.response, alone, rtol=1e-4, atol=1e-4)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == form
        assert all(m.shape == () and np.isfinite(m) for m in metrics.values())
        penalties = [key for key in metrics if key.endswith("length_penalty_mean")]
    assert len(penalties) == len(METHODS)
    logged = state_metrics(state)
    assert {"shaping/laser_d/easy_tokens", "shaping/a_dlp/weight"} <= logged.keys()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_rows_spread_over_devices_give_the_same():
    of_groups = ("kimi", "drpo", "laser_d", "hapo")
    transform = chain(**{name: METHODS[name]() for name in of_groups})
    rewards, rollout = batch()
    step, state = jax.jit(transform.apply), warmed(transform)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), "rows")
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    same(
        step(*jax.device_put((rewards,), spread), state, jax.device_put(rollout, spread)),
        step(rewards, state, rollout),
    )


@every_method
def test_nothing_syncs_with_the_host(name):
    """Traced, a ``float()`` of any array would raise."""
    transform = METHODS[name]()
    rewards, rollout = batch()
    shaped, _, metrics = jax.eval_shape(transform.apply, rewards, transform.init(), rollout)
    assert shaped.response.shape == (6,)
    assert all(metric.shape == () for metric in metrics.values())
