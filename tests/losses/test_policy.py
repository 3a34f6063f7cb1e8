"""The clipped surrogate, case by case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import pad_columns

from rljax.losses import clipped_surrogate, token_weights

# ratio, advantage -> loss with clips at 0.8, 1.2 and 3; which clip decided
CASES = [
    (1.1, 1.0, -1.1, None),
    (1.5, 1.0, -1.2, "clipfrac"),
    (0.5, 1.0, -0.5, None),  # the pessimist does not clip what speaks against the policy
    (1.5, -1.0, 1.5, None),
    (0.5, -1.0, 0.8, "clipfrac"),
    (4.0, -1.0, 3.0, "clipfrac_dual"),
    (4.0, -2.0, 6.0, "clipfrac_dual"),
    (4.0, 1.0, -1.2, "clipfrac"),
]
RATIO, ADVANTAGE, LOSS, DECIDED = (list(column) for column in zip(*CASES, strict=True))
OLD = jnp.full((1, len(CASES)), -2.0)
NEW = OLD + jnp.log(jnp.array([RATIO]))
A = jnp.array([ADVANTAGE])


def test_by_hand():
    loss, stats = clipped_surrogate(NEW, OLD, A)
    np.testing.assert_allclose(loss[0], LOSS, rtol=1e-5)
    for name in ("clipfrac", "clipfrac_dual"):
        assert stats[name][0].tolist() == [float(clip == name) for clip in DECIDED]
    np.testing.assert_allclose(stats["ppo_kl"][0], -np.log(RATIO), rtol=1e-5, atol=1e-6)


def test_the_sides_clip_apart():
    ratios = jnp.log(jnp.array([[1.5, 0.5]]))
    loss, _ = clipped_surrogate(
        ratios, jnp.zeros((1, 2)), jnp.array([[1.0, -1.0]]), clip_low=0.4, clip_high=0.3
    )
    np.testing.assert_allclose(loss[0], [-1.3, 0.6], rtol=1e-5)


def test_without_the_dual_clip_a_bad_token_costs_its_full_ratio():
    loss, stats = clipped_surrogate(NEW, OLD, A, dual_clip=None)
    np.testing.assert_allclose(loss[0, 5], 4.0, rtol=1e-5)
    assert "clipfrac_dual" not in stats


def gradient(new, old, advantages):
    return jax.grad(lambda x: clipped_surrogate(x, old, advantages)[0].sum())(new)


def test_gradient_raises_what_did_well_and_is_zero_where_a_clip_decided():
    slope = gradient(NEW, OLD, A)[0]
    # d(−A·r)/d logp = −A·r
    expected = [0.0 if clip else -a * r for r, a, _, clip in CASES]
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


def test_on_policy_it_is_the_policy_gradient():
    np.testing.assert_allclose(gradient(OLD, OLD, A), -A, rtol=1e-6)


@pytest.mark.parametrize("dual_clip", [3.0, None])
def test_log_ratios_of_100_stay_finite(dual_clip):
    new = jnp.array([[100.0, 100.0, -100.0, -100.0]])
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])

    def total(x):
        loss, stats = clipped_surrogate(x, jnp.zeros((1, 4)), advantages, dual_clip=dual_clip)
        return loss.sum(), stats

    (loss, stats), slope = jax.value_and_grad(total, has_aux=True)(new)
    assert np.isfinite(loss)
    assert np.isfinite(slope).all()
    assert all(np.isfinite(stat).all() for stat in stats.values())


def test_compiled_equals_eager():
    loss, stats = clipped_surrogate(NEW, OLD, A)
    compiled, compiled_stats = jax.jit(clipped_surrogate)(NEW, OLD, A)
    np.testing.assert_allclose(compiled, loss, rtol=1e-6)
    for name, stat in stats.items():
        np.testing.assert_allclose(compiled_stats[name], stat, rtol=1e-6)


def weighted(new, old, advantages, mask):
    return jnp.sum(token_weights(mask) * clipped_surrogate(new, old, advantages)[0])


def test_padding_changes_nothing():
    mask = jnp.ones(NEW.shape, bool)
    wide = functools.partial(pad_columns, left=2, right=1)
    padded = weighted(wide(NEW, value=-9), wide(OLD, value=3), wide(A, value=5), wide(mask))
    np.testing.assert_allclose(padded, weighted(NEW, OLD, A, mask), rtol=1e-6)


def test_an_all_masked_batch_is_zero_with_a_zero_gradient():
    nothing = jnp.zeros(NEW.shape, bool)
    loss, slope = jax.value_and_grad(weighted)(NEW, OLD, A, nothing)
    assert float(loss) == 0.0
    assert not slope.any()


def test_a_column_concerns_no_other():
    """A loss that paired log-probs of column t with those of t − 1 would fail here."""
    changed = (
        clipped_surrogate(NEW.at[0, 1].set(-5.0), OLD, A)[0] != clipped_surrogate(NEW, OLD, A)[0]
    )
    assert changed[0].tolist() == [i == 1 for i in range(len(CASES))]
