"""Divergences of two distributions: by hand, what they have in common, zeros and limits."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.losses import forward_kl, jensen_shannon, reverse_kl

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "lopsided": partial(jensen_shannon, beta=0.1),
}
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)

STUDENT, TEACHER = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.25, 0.25, 0.5]))
LOG_2 = math.log(2.0)
SEVERAL = jax.nn.log_softmax(3.0 * jnp.sin(5.0 * jnp.arange(2 * 2 * 3 * 5.0)).reshape(2, 2, 3, 5))


def by_definition(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_kl_by_hand():
    """Unequal ones, so that which is which can be seen: ½·log 2 + ½·log ⅔, ¼·log ½ + ¾·log 3/2."""
    half, quarter = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(reverse_kl(half, quarter), 0.1438410, rtol=2e-6)
    np.testing.assert_allclose(forward_kl(half, quarter), 0.1308120, rtol=2e-6)


def test_jensen_shannon_by_hand():
    # the mixture is ⅜, ¼, ⅜
    expected = by_definition([0.5, 0.25, 0.25], [0.375, 0.25, 0.375])
    np.testing.assert_allclose(jensen_shannon(STUDENT, TEACHER), expected, rtol=1e-5)
    # 0.2 of the teacher: 0.45, 0.25, 0.3
    mixture = [0.45, 0.25, 0.3]
    of_teacher = by_definition([0.25, 0.25, 0.5], mixture)
    of_student = by_definition([0.5, 0.25, 0.25], mixture)
    value = jensen_shannon(STUDENT, TEACHER, beta=0.2)
    np.testing.assert_allclose(value, 0.2 * of_teacher + 0.8 * of_student, rtol=1e-5)


logits = st.lists(st.floats(-8, 8, width=32), min_size=5, max_size=5)


@every_divergence
@given(logits, logits)
@few
def test_a_divergence_is_0_for_equals_and_above_it_else(name, one, other):
    student, teacher = (jax.nn.log_softmax(jnp.array(x)) for x in (one, other))
    value = DIVERGENCES[name](student, teacher)
    assert value >= -1e-6
    if jnp.abs(jnp.exp(student) - jnp.exp(teacher)).max() > 0.05:
        assert value > 1e-4
    np.testing.assert_allclose(DIVERGENCES[name](student, student), 0.0, atol=1e-6)


@given(logits, logits, st.floats(0.01, 0.99))
@few
def test_jensen_shannon_is_bounded_and_turns_round_with_its_beta(one, other, beta):
    student, teacher = (jax.nn.log_softmax(jnp.array(x)) for x in (one, other))
    value = jensen_shannon(student, teacher, beta=beta)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)  # log 2 for one half
    assert value <= entropy + 1e-5
    around = jensen_shannon(teacher, student, beta=1 - beta)
    np.testing.assert_allclose(around, value, rtol=1e-4, atol=1e-6)


def test_jensen_shannon_s_limits_are_the_forward_and_the_reverse_kl():
    near_0 = jensen_shannon(STUDENT, TEACHER, beta=1e-3) / 1e-3
    near_1 = jensen_shannon(STUDENT, TEACHER, beta=0.999) / 1e-3
    student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(near_0, forward_kl(STUDENT, TEACHER), rtol=5e-3)
    np.testing.assert_allclose(near_1, reverse_kl(STUDENT, TEACHER), rtol=5e-3)
    unequal = jensen_shannon(student, teacher, beta=1e-3) / 1e-3
    np.testing.assert_allclose(unequal, forward_kl(student, teacher), rtol=5e-3)


@every_divergence
@pytest.mark.parametrize("never", [-jnp.inf, -1e30])
def test_tokens_that_are_ruled_out(name, never):
    """By both: they count nothing. By one of them: a finite price, with a finite gradient."""

    def of_logits(student, teacher):
        return DIVERGENCES[name](jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))

    def widened(x):
        return jnp.append(x, never)

    alike = of_logits(widened(STUDENT), widened(TEACHER))
    np.testing.assert_allclose(alike, DIVERGENCES[name](STUDENT, TEACHER), rtol=1e-6)
    student, teacher, flat = widened(STUDENT), widened(TEACHER), jnp.zeros(4)
    for pair in ((student, teacher), (student, flat), (flat, teacher)):
        for loss in (of_logits, DIVERGENCES[name]):
            value, slopes = jax.value_and_grad(loss, (0, 1))(*pair)
            assert np.isfinite(value)
            assert np.isfinite(slopes).all()
    if name.endswith("kl"):
        student, teacher = (0.0, never), (-LOG_2, -LOG_2)
        if name == "reverse_kl":
            student, teacher = teacher, student
        price = DIVERGENCES[name](jnp.array(student), jnp.array(teacher))
        np.testing.assert_allclose(price, 5e3 - LOG_2, rtol=1e-6)


@every_divergence
def test_the_gradient_draws_the_student_to_the_teacher(name):
    def of_logits(student):
        return DIVERGENCES[name](jax.nn.log_softmax(student), TEACHER)

    slope = jax.grad(of_logits)(STUDENT)
    assert slope[0] > 0 > slope[2]  # the first is too likely, the last not enough
    np.testing.assert_allclose(jax.grad(of_logits)(TEACHER), 0.0, atol=1e-6)


def test_the_forward_kl_s_gradient_by_logits_is_the_difference_of_the_two():
    slope = jax.grad(lambda x: forward_kl(jax.nn.log_softmax(x), TEACHER))(STUDENT)
    np.testing.assert_allclose(slope, [0.25, 0.0, -0.25], rtol=1e-5, atol=1e-7)


@every_divergence
def test_each_position_by_itself_compiled_as_eager(name):
    student, teacher = SEVERAL
    value = DIVERGENCES[name](student, teacher)
    assert value.shape == (2, 3)
    np.testing.assert_allclose(jax.jit(DIVERGENCES[name])(student, teacher), value, rtol=1e-5)
    one = DIVERGENCES[name](student[1, 2], teacher[1, 2])
    np.testing.assert_allclose(one, value[1, 2], rtol=1e-6)
    order = jnp.array([4, 2, 0, 3, 1])
    mixed = DIVERGENCES[name](student[..., order], teacher[..., order])
    np.testing.assert_allclose(mixed, value, rtol=1e-5)
