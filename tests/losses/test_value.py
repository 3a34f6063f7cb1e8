"""The clipped value loss and the explained variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import pad_columns

from rljax.losses import clipped_value_loss, explained_variance, token_weights

# v, v_old, R with clip 0.5:
#   1.0 from 0: held at 0.5; R = 1.0 -> max(0, 0.25)/2, the clip decides
#   1.0 from 0: held at 0.5; R = 0.0 -> max(1, 0.25)/2, the free one decides
#   0.3 from 0: not held;    R = 1.0 -> 0.49/2
#  −2.0 from 0: held at −0.5; R = −2 -> max(0, 2.25)/2, the clip decides
V = jnp.array([[1.0, 1.0, 0.3, -2.0]])
OLD = jnp.zeros((1, 4))
R = jnp.array([[1.0, 0.0, 1.0, -2.0]])


def test_by_hand():
    loss, clipped = clipped_value_loss(V, OLD, R)
    np.testing.assert_allclose(loss[0], [0.125, 0.5, 0.245, 1.125], rtol=1e-6)
    assert clipped[0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_without_a_clip_it_is_the_half_square():
    loss, clipped = clipped_value_loss(V, OLD, R, clip=None)
    np.testing.assert_allclose(loss[0], [0.0, 0.5, 0.245, 0.0], rtol=1e-6)
    assert not clipped.any()


def test_gradient_draws_values_to_the_return_and_is_zero_where_the_clip_decided():
    slope = jax.grad(lambda v: clipped_value_loss(v, OLD, R)[0].sum())(V)
    np.testing.assert_allclose(slope[0], [0.0, 1.0, -0.7, 0.0], rtol=1e-6)


def test_compiled_equals_eager():
    for eager, compiled in zip(
        clipped_value_loss(V, OLD, R), jax.jit(clipped_value_loss)(V, OLD, R), strict=True
    ):
        np.testing.assert_allclose(compiled, eager, rtol=1e-6)


def weighted(v, old, returns, mask):
    return jnp.sum(token_weights(mask) * clipped_value_loss(v, old, returns)[0])


def test_padding_changes_nothing_and_an_all_masked_batch_is_zero():
    mask = jnp.ones(V.shape, bool)
    padded = weighted(
        pad_columns(V, 1, 2, 7),
        pad_columns(OLD, 1, 2),
        pad_columns(R, 1, 2),
        pad_columns(mask, 1, 2),
    )
    np.testing.assert_allclose(padded, weighted(V, OLD, R, mask), rtol=1e-6)
    loss, slope = jax.value_and_grad(weighted)(V, OLD, R, ~mask)
    assert float(loss) == 0.0
    assert not slope.any()


def test_explained_variance_by_hand():
    returns, mask = jnp.array([[0.0, 2.0, 4.0]]), jnp.ones((1, 3), bool)
    assert float(explained_variance(returns, returns, mask)) == 1.0
    assert float(explained_variance(jnp.full((1, 3), 9.0), returns, mask)) == 0.0
    # residuals 0, 1, 2 have variance 1; returns 4
    half = explained_variance(returns / 2, returns, mask)
    np.testing.assert_allclose(half, 0.75, rtol=1e-6)
    # a critic that points the wrong way is worse than a constant: residuals 0, 4, 8
    np.testing.assert_allclose(explained_variance(-returns, returns, mask), -3.0, rtol=1e-6)


def test_explained_variance_sees_the_mask_only():
    returns = jnp.array([[0.0, 2.0, 4.0, 99.0]])
    values = jnp.array([[0.0, 1.0, 2.0, -99.0]])
    mask = jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(explained_variance(values, returns, mask), 0.75, rtol=1e-6)
    assert float(explained_variance(values, returns, jnp.zeros((1, 4), bool))) == 0.0


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.7, -300.3])
def test_explained_variance_of_constant_returns_is_zero(constant):
    """The mean of sevens of 0.7 is off by rounding, which is no variance."""
    values = jnp.array([[0.1, 0.9, 0.4, 0.2, 0.3, 0.6, 0.7]])
    mask = jnp.ones(values.shape, bool)
    assert float(explained_variance(values, jnp.full(values.shape, constant), mask)) == 0.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_explained_variance_does_not_depend_on_the_rewards_unit(scale):
    returns, mask = scale * jnp.array([[1.0, 1.1, 1.2]]), jnp.ones((1, 3), bool)
    values = scale * jnp.array([[0.5, 0.55, 0.6]])
    np.testing.assert_allclose(explained_variance(values, returns, mask), 0.75, rtol=1e-4)
