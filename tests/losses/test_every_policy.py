"""What all policy losses have in common: signs, masks, ratios far out, compilation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import pad_columns
from token_losses import make_batch, weighted

from rljax.losses import (
    cispo,
    clip_cov,
    clipped_surrogate,
    gmpo,
    gspo,
    kl_cov,
    reinforce,
    sapo,
)

LOSSES = {
    "clipped_surrogate": clipped_surrogate,
    "without_dual_clip": partial(clipped_surrogate, dual_clip=None),
    "gspo": gspo,
    "gmpo": gmpo,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
}
OF_SEQUENCES = ("gspo", "gmpo")
every_loss = pytest.mark.parametrize("name", LOSSES)

# Rows of 3, 1, 2 and 4 tokens, with one advantage each.

MASK = jnp.arange(4) < jnp.array([3, 1, 2, 4])[:, None]
OF_ROW = jnp.array([1.0, -2.0, -0.5, 0.25])[:, None] * jnp.ones(4)
OLD = -jnp.linspace(0.5, 3.0, 16).reshape(4, 4)
MOVED = OLD + jnp.sin(5.0 * jnp.arange(16.0)).reshape(4, 4)
MARKED = (jnp.arange(16).reshape(4, 4) % 3 == 0) & MASK


@every_loss
def test_at_ratio_1_every_gradient_is_the_policy_gradient(name):
    """Σ weight · −A per log-prob: a token of positive advantage is made likelier. Clip-Cov leaves
    its marked tokens out; KL-Cov prices none that has not moved."""
    batch = make_batch(OLD, OF_ROW, MASK, MARKED if name == "kl_cov" else None)
    _, slope, _ = weighted(LOSSES[name], OLD, batch)
    np.testing.assert_allclose(slope, -OF_ROW * batch.loss_weights, rtol=1e-5, atol=1e-7)
    assert (slope[0][MASK[0]] < 0).all()
    assert (slope[1][MASK[1]] > 0).all()


@every_loss
def test_nothing_has_moved_at_ratio_1(name):
    _, stats = LOSSES[name](OLD, make_batch(OLD, OF_ROW, MASK))
    for stat in stats.values():
        assert not stat.any()


@every_loss
@pytest.mark.parametrize("shift", [100.0, -100.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_ratios_of_100_stay_finite(name, shift, advantage):
    batch = make_batch(OLD, advantage * jnp.ones((4, 4)), MASK, MARKED)
    value, slope, stats = weighted(LOSSES[name], OLD + shift, batch)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert all(np.isfinite(stat).all() for stat in stats.values())
    assert abs(float(stats["ppo_kl"][0, 0])) == pytest.approx(20.0)


@every_loss
def test_an_all_masked_batch_is_zero_with_a_zero_gradient(name):
    batch = make_batch(OLD, OF_ROW, jnp.zeros((4, 4), bool), MARKED)
    value, slope, _ = weighted(LOSSES[name], MOVED, batch)
    assert float(value) == 0.0
    assert not slope.any()  # nor NaN, which is true


@every_loss
def test_padding_changes_nothing(name):
    value, slope, stats = weighted(LOSSES[name], MOVED, make_batch(OLD, OF_ROW, MASK, MARKED))
    wide = partial(pad_columns, left=2, right=1)
    batch = make_batch(
        wide(OLD, value=3), wide(OF_ROW, value=5), wide(MASK), wide(MARKED, value=True)
    )
    padded, padded_slope, padded_stats = weighted(LOSSES[name], wide(MOVED, value=-9), batch)
    np.testing.assert_allclose(padded, value, rtol=1e-6)
    np.testing.assert_allclose(padded_slope, wide(slope), rtol=1e-6, atol=1e-7)
    for stat in stats:
        np.testing.assert_allclose(
            padded_stats[stat][:, 2:-1][MASK], stats[stat][MASK], rtol=1e-6, err_msg=stat
        )


@every_loss
def test_what_lies_outside_the_mask_changes_nothing(name):
    """Rows end at different columns, and behind them stands garbage."""
    value, slope, _ = weighted(LOSSES[name], MOVED, make_batch(OLD, OF_ROW, MASK, MARKED))
    batch = make_batch(
        jnp.where(MASK, OLD, 7.0), jnp.where(MASK, OF_ROW, -3.0), MASK, MARKED | ~MASK
    )
    other, other_slope, _ = weighted(LOSSES[name], jnp.where(MASK, MOVED, 1.0), batch)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(other_slope, slope, rtol=1e-6, atol=1e-7)


@every_loss
def test_a_row_concerns_no_other(name):
    """So that permuting rows permutes losses, and micro-batches add up."""
    batch = make_batch(OLD, OF_ROW, MASK, MARKED)
    loss, stats = LOSSES[name](MOVED, batch)
    for row in range(4):
        at = jnp.array([row])
        alone, alone_stats = LOSSES[name](MOVED[at], jax.tree.map(lambda x: x[at], batch))  # noqa: B023
        np.testing.assert_allclose(alone, loss[at], rtol=1e-6)
        for stat in stats:
            np.testing.assert_allclose(alone_stats[stat], stats[stat][at], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(OF_SEQUENCES)))
def test_a_column_concerns_no_other(name):
    """The shift test: pairing log-probs of column t with those of t − 1 would fail here."""
    batch = make_batch(OLD, OF_ROW, MASK, MARKED)
    changes = [
        (MOVED.at[0, 1].add(0.05), batch),
        (MOVED, batch.replace(logprobs=batch.logprobs.at[0, 1].add(0.05))),
        (MOVED, batch.replace(advantages=batch.advantages.at[0, 1].add(0.05))),
    ]
    for changed in changes:
        differs = LOSSES[name](*changed)[0] != LOSSES[name](MOVED, batch)[0]
        assert set(np.flatnonzero(differs).tolist()) <= {1}


@pytest.mark.parametrize("name", OF_SEQUENCES)
def test_a_token_s_gradient_stands_in_its_own_column(name):
    """The shift test of the losses of sequences: a masked column has no gradient."""
    mask = jnp.array([[False, True, False, True]])
    batch = make_batch(OLD[:1], -jnp.ones((1, 4)), mask)
    _, slope, _ = weighted(LOSSES[name], OLD[:1] + 0.1, batch)
    assert (slope[0] != 0).tolist() == mask[0].tolist()


@every_loss
def test_compiled_equals_eager(name):
    batch = make_batch(OLD, OF_ROW, MASK, MARKED)
    eager, compiled = LOSSES[name](MOVED, batch), jax.jit(LOSSES[name])(MOVED, batch)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), compiled, eager
    )
