"""AdamW by hand, and its rate in train steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.errors import UserError
from rljax.train import adamw

PEAK = 0.01


def make(total_steps=10, updates_per_step=1, **keywords):
    """An optimizer that decays and clips nothing, unless told to."""
    plain = {"learning_rate": PEAK, "weight_decay": 0.0, "clip_norm": None}
    return adamw(total_steps, updates_per_step, **plain | keywords)


def moves(optimizer, gradients, params=(0.0, 0.0)):
    """What each gradient in turn adds to the parameters: [updates, parameters]."""
    params = jnp.array(params)
    state, added = optimizer.init(params), []
    for gradient in gradients:
        update, state = optimizer.update(jnp.array(gradient), state, params)
        params = params + update
        added.append(update)
    return np.stack(added)


def rates(updates, **keywords):
    """The rate of each update: without memory, Adam's step is the rate times the sign."""
    optimizer = make(b1=0.0, b2=0.0, **keywords)
    params = jnp.zeros(())

    def step(state, _):
        update, state = optimizer.update(jnp.ones(()), state, params)
        return state, -update

    return np.asarray(jax.lax.scan(step, optimizer.init(params), None, length=updates)[1])


def test_the_first_update_is_the_rate_against_the_sign():
    np.testing.assert_allclose(moves(make(), [[3.0, -0.004]]), [[-PEAK, PEAK]], rtol=1e-4)


def test_the_second_update_by_hand():
    # gradients 1, −1: m = 0.09 − 0.1 over 1 − 0.9², v = 1
    # gradients 1, 3: m = 0.09 + 0.3 over 1 − 0.9², v = 0.000999 + 0.009 over 1 − 0.999²
    _, second = moves(make(), [[1.0, 1.0], [-1.0, 3.0]])
    mean, root = np.array([-0.01, 0.39]) / 0.19, np.sqrt([1.0, 0.009999 / 0.001999])
    np.testing.assert_allclose(second, -PEAK * mean / root, rtol=1e-3)


def test_b1_b2_and_eps_are_passed_on():
    _, second = moves(make(b1=0.5, b2=0.5, eps=1.0), [[1.0, 1.0], [-1.0, 3.0]])
    # m = (0.25·1 + 0.5·g) / 0.75, v = (0.25·1 + 0.5·g²) / 0.75
    mean, square = np.array([-0.25, 1.75]) / 0.75, np.array([0.75, 4.75]) / 0.75
    np.testing.assert_allclose(second, -PEAK * mean / (np.sqrt(square) + 1.0), rtol=1e-5)


def test_weight_decay_is_decoupled():
    """It is the rate times the parameter, beside Adam's step and not through its moments."""
    (added,) = moves(make(weight_decay=0.1), [[3.0, -4.0]], params=(2.0, -1.0))
    np.testing.assert_allclose(added, [-PEAK * (1 + 0.2), -PEAK * (-1 - 0.1)], rtol=1e-5)


def test_the_gradient_is_clipped_by_its_global_norm():
    # with eps 1 the first step is g / (|g| + 1), so that the size of g shows
    def first(gradient, norm):
        return moves(make(eps=1.0, clip_norm=norm), [gradient])[0] / -PEAK

    np.testing.assert_allclose(first([3.0, -4.0], 1.0), [0.6 / 1.6, -0.8 / 1.8], rtol=1e-5)
    np.testing.assert_allclose(first([3.0, -4.0], 2.5), [1.5 / 2.5, -2.0 / 3.0], rtol=1e-5)
    np.testing.assert_allclose(first([0.3, -0.4], 1.0), [0.3 / 1.3, -0.4 / 1.4], rtol=1e-5)
    np.testing.assert_allclose(first([3.0, -4.0], None), [3.0 / 4.0, -4.0 / 5.0], rtol=1e-5)


def test_the_defaults_clip_at_1_and_decay_a_hundredth():
    optimizer = adamw(10, 1, learning_rate=PEAK, eps=1.0)
    (added,) = moves(optimizer, [[3.0, -4.0]], params=(2.0, -1.0))
    expected = np.array([0.6 / 1.6 + 0.02, -0.8 / 1.8 - 0.01])
    np.testing.assert_allclose(added, -PEAK * expected, rtol=1e-5)


def test_a_constant_rate_is_constant_from_the_first_update():
    np.testing.assert_allclose(rates(12), PEAK, rtol=1e-5)


def test_the_warmup_rises_from_0_in_train_steps():
    got = rates(8, warmup_steps=2, updates_per_step=2)  # four updates
    np.testing.assert_allclose(got, PEAK * np.array([0, 0.25, 0.5, 0.75, 1, 1, 1, 1]), rtol=1e-5)


def test_a_linear_fall_ends_at_the_final_fraction_with_the_last_train_step():
    got = rates(
        14,
        schedule="linear",
        total_steps=5,
        updates_per_step=2,
        warmup_steps=1,
        final_fraction=0.2,
    )
    fall = np.linspace(1.0, 0.2, 9)  # over the 8 updates of the 4 steps after the warmup
    expected = PEAK * np.concatenate([[0.0, 0.5], fall, [0.2] * 3])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_cosine_fall():
    got = rates(7, schedule="cosine", total_steps=4, final_fraction=0.2)
    cosine = (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1, 1, 1]))) / 2
    np.testing.assert_allclose(got, PEAK * (0.2 + 0.8 * cosine), rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_that_is_all_warmup_stays_finite(schedule):
    got = rates(4, schedule=schedule, total_steps=3, warmup_steps=3)
    np.testing.assert_allclose(got[:3], PEAK * np.array([0, 1 / 3, 2 / 3]), rtol=1e-5)
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("keywords", "got"),
    [
        ({"learning_rate": 0.0}, "learning_rate > 0, got 0.0"),
        ({"learning_rate": -0.1}, "learning_rate > 0, got -0.1"),
        ({"warmup_steps": -1}, "warmup_steps is -1, of 10 steps"),
        ({"warmup_steps": 11}, "warmup_steps is 11, of 10 steps"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(keywords, got):
    with pytest.raises(UserError, match=f"{got}$"):
        make(**keywords)


def test_the_first_moment_may_be_bfloat16():
    exact, rounded = make(), make(mu_dtype="bfloat16")
    moments = rounded.init(jnp.zeros(2))[1][0]
    assert (moments.mu.dtype, moments.nu.dtype) == (jnp.bfloat16, jnp.float32)
    gradients = [(1.0, -0.3), (0.5, 0.7), (-0.2, 0.1)]
    one, other = moves(exact, gradients), moves(rounded, gradients)
    np.testing.assert_allclose(other, one, rtol=0, atol=PEAK * 2**-7)  # bfloat16 has 8 bits
    assert (other != one).any()


def test_steps_beyond_what_a_counter_holds_are_refused():
    adamw(2**30, 1, learning_rate=0.1)
    with pytest.raises(UserError, match=r"1,073,741,824 steps of 2 updates are too many to count"):
        adamw(2**30, 2, learning_rate=0.1)
