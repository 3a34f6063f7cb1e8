"""Coefficients that adapt: what moves them, how far, and back."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.shaping import adaptive_kl, drift, fixed, length_metrics
from rljax.shaping.control import as_controller, follow

OVERLONG, CALM = jnp.float32(1.0), jnp.float32(0.0)


def run(controller, measured, state=None):
    """The coefficient after each batch, and the last state."""
    state = controller.init() if state is None else state
    values = []
    for x in measured:
        state = controller.update(state, x, 8)
        values.append(float(controller.value(state)))
    return values, state


def test_a_fixed_coefficient_stays():
    values, state = run(fixed(0.25), [OVERLONG] * 2)
    assert values == [0.25, 0.25]
    assert state == ()


def test_a_number_is_a_fixed_controller_and_a_controller_itself():
    controller = adaptive_kl()
    assert as_controller(controller) is controller
    assert float(as_controller(0.5).value(())) == 0.5


@pytest.mark.parametrize("other", [length_metrics(1, 2), "0.5", None])
def test_what_is_neither_is_refused(other, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    with pytest.raises(UserError, match=f"such as drift, not a {type(other).__name__}$"):
        as_controller(other)


def test_adaptive_kl_by_hand():
    control = adaptive_kl(0.5, target=0.1, horizon=80.0)
    # 8 rows of 80: a KL 10 % above target raises β by 0.1·0.1; far from it the error is ±0.2
    for kl, factor in [(0.11, 1.01), (9.0, 1.02), (0.1, 1.0), (0.0, 0.98), (-5.0, 0.98)]:
        values, _ = run(control, [jnp.float32(kl)])
        np.testing.assert_allclose(values, [0.5 * factor], rtol=1e-6)


def test_verl_the_adaptive_coefficient_was_forgotten_on_resume():
    """All that it remembers is an array in its state: another controller goes on from there."""
    make = lambda: adaptive_kl(0.5, target=0.1, horizon=80.0)  # noqa: E731
    kls = [jnp.float32(kl) for kl in (0.3, 0.02, 0.11, 0.5)]
    through, _ = run(make(), kls)
    _, saved = run(make(), kls[:2])
    restored = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, saved))
    resumed, _ = run(make(), kls[2:], restored)
    assert resumed == through[2:]
    assert through[-1] != 0.5


# A weight goes up and a maximum length down, by the same rule.
DRIFTS = {
    "weight": (drift(0.5, limit=3.0, factor=2.0), [0.5, 1.0, 2.0, 3.0, 3.0]),
    "max_tokens": (drift(80.0, limit=30.0, factor=0.5), [80.0, 40.0, 30.0, 30.0, 30.0]),
}


@pytest.mark.parametrize(("control", "path"), DRIFTS.values(), ids=DRIFTS)
def test_seed_fault_7_drift_tightens_after_three_overlong_batches_and_never_past_its_limit(
    control, path
):
    values, state = run(control, [OVERLONG] * 12)
    expected = [path[(i + 1) // 3] for i in range(12)]
    assert values == expected
    assert int(state.changes) == len(set(path)) - 1  # held at the limit, it does not move


@pytest.mark.parametrize(("control", "path"), DRIFTS.values(), ids=DRIFTS)
def test_drift_relaxes_back_to_its_start_and_not_past_it(control, path):
    _, tight = run(control, [OVERLONG] * 9)
    values, _ = run(control, [CALM] * 15, tight)
    assert values[1] == path[3]  # two calm batches are not three
    assert values[2] != path[3]
    assert values[-1] == path[0]
    assert all(min(path) <= value <= max(path) for value in values)


def test_a_calm_batch_starts_the_count_anew():
    control, _ = DRIFTS["weight"]
    values, state = run(control, [OVERLONG, OVERLONG, CALM, OVERLONG, OVERLONG, CALM] * 2)
    assert values == [0.5] * 12
    assert int(state.changes) == 0


def test_a_window_of_one_moves_at_once():
    values, _ = run(drift(1.0, limit=4.0, factor=2.0, window=1), [OVERLONG, OVERLONG, CALM])
    assert values == [2.0, 4.0, 2.0]


WEIGHT = drift(0.3, limit=0.7, factor=1.3)
compiled = jax.jit(WEIGHT.update, static_argnums=2)


@few
@given(st.lists(st.booleans(), min_size=40, max_size=40))
def test_drift_keeps_to_its_range_and_counts_its_moves(overlong):
    state, moves, streak = WEIGHT.init(), 0, 0
    for batch in overlong:
        before = float(state.value)
        state = compiled(state, OVERLONG if batch else CALM, 8)
        streak = max(streak, 0) + 1 if batch else min(streak, 0) - 1
        moved = float(state.value) - before
        assert moved == 0 or (moved > 0) == batch
        if abs(streak) == 3:
            streak = 0
        else:
            assert moved == 0
        moves += moved != 0
        assert np.float32(0.3) <= float(state.value) <= np.float32(0.7)
    assert int(state.changes) == moves


def test_a_move_there_and_back_is_two_moves():
    """float32: 0.3·1.3/1.3 need not be 0.3, and must not count as yet another move."""
    for factor in (1.1, 1.2, 1.3, 1.7):
        for start in (0.1, 0.3, 0.7):
            control = drift(start, limit=5.0, factor=factor, window=1)
            _, state = run(control, [OVERLONG] * 2 + [CALM] * 4)
            assert float(state.value) == np.float32(start), (start, factor)
            assert int(state.changes) == 4, (start, factor)
            assert int(state.level) == 0


def test_compiled_equals_eager():
    for control in (DRIFTS["weight"][0], adaptive_kl(0.5)):
        state, measured = control.init(), jnp.float32(0.7)
        eager = control.update(state, measured, 8)
        jitted = jax.jit(control.update, static_argnums=2)(state, measured, 8)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted, eager)


@pytest.mark.parametrize(
    "keywords",
    [
        {"start": 1.0, "limit": 2.0, "factor": 0.5},
        {"start": 2.0, "limit": 1.0, "factor": 2.0},
        {"start": 1.0, "limit": 2.0, "factor": 1.0},
        {"start": 0.0, "limit": 2.0, "factor": 2.0},
        {"start": 2.0, "limit": 1.0, "factor": -0.5},
        {"start": 1.0, "limit": 2.0, "factor": 2.0, "window": 0},
    ],
)
def test_a_drift_that_cannot_tighten_is_refused(keywords):
    with pytest.raises(UserError, match="limit on the side of start that factor moves to"):
        drift(**keywords)


@pytest.mark.parametrize("keywords", [{"start": 0.0}, {"target": 0.0}, {"horizon": -1.0}])
def test_adaptive_kl_needs_positive_numbers(keywords):
    with pytest.raises(UserError, match="must be positive"):
        adaptive_kl(**keywords)


def test_a_batch_in_which_nothing_counts_moves_no_controller():
    control = drift(4.0, limit=2.0, factor=0.5, window=1)
    state = control.init()
    nothing, something = jnp.zeros(2, bool), jnp.array([False, True])
    assert follow(control, state, jnp.float32(1.0), nothing) == state
    assert float(follow(control, state, jnp.float32(1.0), something).value) == 2.0
