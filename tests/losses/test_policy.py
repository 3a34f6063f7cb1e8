"""Policy losses, each case by case."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def of_ratios(ratios, advantages, marked=None):
    """Log-probs of now, and a batch that began at −2."""
    ratios = jnp.asarray(ratios)
    old = jnp.full(ratios.shape, -2.0)
    return old + jnp.log(ratios), make_batch(old, advantages, marked=marked)


def by_token(loss, logprobs, batch):
    """The gradient of the plain sum over tokens."""
    return jax.grad(lambda x: loss(x, batch)[0].sum())(logprobs)


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
NEW, BATCH = of_ratios([RATIO], [ADVANTAGE])


def test_clipped_surrogate_by_hand():
    loss, stats = clipped_surrogate(NEW, BATCH)
    np.testing.assert_allclose(loss[0], LOSS, rtol=1e-5)
    for name in ("clipfrac", "clipfrac_dual"):
        assert stats[name][0].tolist() == [float(clip == name) for clip in DECIDED]
    np.testing.assert_allclose(stats["ppo_kl"][0], -np.log(RATIO), rtol=1e-5, atol=1e-6)


def test_the_sides_clip_apart():
    loss, _ = clipped_surrogate(
        *of_ratios([[1.5, 0.5]], [[1.0, -1.0]]), clip_low=0.4, clip_high=0.3
    )
    np.testing.assert_allclose(loss[0], [-1.3, 0.6], rtol=1e-5)


def test_without_the_dual_clip_a_bad_token_costs_its_full_ratio():
    loss, stats = clipped_surrogate(NEW, BATCH, dual_clip=None)
    np.testing.assert_allclose(loss[0, 5], 4.0, rtol=1e-5)
    assert "clipfrac_dual" not in stats


def test_gradient_raises_what_did_well_and_is_zero_where_a_clip_decided():
    # d(−A·r)/d logp = −A·r
    expected = [0.0 if clip else -a * r for r, a, _, clip in CASES]
    slope = by_token(clipped_surrogate, NEW, BATCH)[0]
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


# GSPO: d = 0.2 and 0.4 behind a masked 9, so that s = e^0.3 = 1.349859 on both tokens.
SEQUENCE = jnp.array([[9.0, 0.2, 0.4]])
REAL = jnp.array([[False, True, True]])


@pytest.mark.parametrize(
    ("advantages", "clips", "expected", "clipped"),
    [
        ([1.0, 1.0], (0.5, 0.5), [-1.349859, -1.349859], [0, 0]),
        ([1.0, 1.0], (0.1, 0.2), [-1.2, -1.2], [1, 1]),
        ([-1.0, 2.0], (0.1, 0.2), [1.349859, -2.4], [0, 1]),  # a token's own advantage
    ],
)
def test_gspo_by_hand(advantages, clips, expected, clipped):
    batch = make_batch(jnp.zeros((1, 3)), [[7.0, *advantages]], REAL)
    loss, stats = gspo(SEQUENCE, batch, clip_low=clips[0], clip_high=clips[1])
    np.testing.assert_allclose(loss[0, 1:], expected, rtol=1e-5)
    assert stats["clipfrac"][0, 1:].tolist() == clipped
    np.testing.assert_allclose(stats["ppo_kl"][0, 1:], [-0.2, -0.4], rtol=1e-6)


def test_gspo_clips_from_below_too():
    batch = make_batch(jnp.zeros((1, 3)), [[7.0, -1.0, -1.0]], REAL)
    loss, stats = gspo(-SEQUENCE, batch, clip_low=0.1, clip_high=0.2)  # s = e^(−0.3) = 0.74
    np.testing.assert_allclose(loss[0, 1:], 0.9, rtol=1e-5)
    assert stats["clipfrac"][0, 1:].tolist() == [1, 1]


@pytest.mark.parametrize("advantage", [0.7, -1.3])
def test_gspo_has_the_gradient_of_the_objective_of_whole_sequences(advantage):
    batch = make_batch(jnp.zeros((1, 3)), [[advantage] * 3], REAL)

    def of_sequence(x):
        return -advantage * jnp.exp((x * REAL).sum() / 2)

    value, slope, _ = weighted(partial(gspo, clip_low=0.9, clip_high=0.9), SEQUENCE, batch)
    np.testing.assert_allclose(value, of_sequence(SEQUENCE), rtol=1e-5)
    np.testing.assert_allclose(slope, jax.grad(of_sequence)(SEQUENCE), rtol=1e-5)


def test_gspo_has_no_gradient_where_the_clip_decided():
    batch = make_batch(jnp.zeros((1, 3)), [[1.0] * 3], REAL)
    _, slope, _ = weighted(gspo, SEQUENCE, batch)
    assert not slope.any()


def test_gspo_holds_the_mean_log_ratio_at_10():
    loss, _ = gspo(jnp.full((1, 2), 15.0), make_batch(jnp.zeros((1, 2)), [[-1.0, -1.0]]))
    np.testing.assert_allclose(loss, np.exp(10.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "kept", "clipped"),
    [
        ([0.2, 0.9], 1.0, [0.2, 0.4], [0, 1]),
        ([0.2, 0.9], -2.0, [0.2, 0.9], [0, 0]),
        ([-0.9, 0.2], 2.0, [-0.9, 0.2], [0, 0]),
        ([-0.9, 0.2], -1.0, [-0.4, 0.2], [1, 0]),
    ],
)
def test_gmpo_by_hand(log_ratios, advantage, kept, clipped):
    """−A·e^(mean of the d that are kept), and its gradient for the tokens that are not clipped."""
    batch = make_batch(jnp.zeros((1, 3)), [[advantage] * 3], REAL)
    new = jnp.array([[9.0, *log_ratios]])
    expected = -advantage * np.exp(np.mean(kept))
    loss, stats = gmpo(new, batch)
    np.testing.assert_allclose(loss[0, 1:], expected, rtol=1e-5)
    assert stats["clipfrac"][0, 1:].tolist() == clipped
    _, slope, _ = weighted(gmpo, new, batch)
    np.testing.assert_allclose(
        slope[0], [0.0, *(expected / 2 * (1 - np.array(clipped)))], rtol=1e-5, atol=1e-7
    )


def test_gmpo_clips_apart_in_log_space():
    batch = make_batch(jnp.zeros((2, 1)), [[1.0], [-1.0]])
    loss, _ = gmpo(jnp.array([[5.0], [-5.0]]), batch, clip_low=0.7, clip_high=1.5)
    np.testing.assert_allclose(loss[:, 0], [-np.exp(1.5), np.exp(-0.7)], rtol=1e-5)


def test_gmpo_takes_the_mean_advantage_of_a_response():
    batch = make_batch(jnp.zeros((1, 3)), [[9.0, 1.0, 2.0]], REAL)
    loss, _ = gmpo(jnp.zeros((1, 3)), batch)
    np.testing.assert_allclose(loss[0, 1:], -1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("clips", "weights"),
    [({}, [5.0, 0.1, 1.5]), ({"clip_low": 0.2, "clip_high": 0.28}, [1.28, 0.8, 1.28])],
)
def test_cispo_by_hand(clips, weights):
    """The clip stops no token's gradient, which is −weight·A throughout."""
    new, batch = of_ratios([[6.0, 0.1, 1.5]], [[1.0, -1.0, 2.0]])
    coefficients = -np.array(weights) * [1.0, -1.0, 2.0]
    loss, stats = cispo(new, batch, **clips)
    np.testing.assert_allclose(loss[0], coefficients * np.asarray(new[0]), rtol=1e-5)
    np.testing.assert_allclose(
        by_token(partial(cispo, **clips), new, batch)[0], coefficients, rtol=1e-5
    )
    assert stats["clipfrac"][0].tolist() == [1, bool(clips), bool(clips)]


def test_sapo_by_hand():
    """4·σ(1) = 2.924234 for A = 1 at r = 2, (4/1.05)·σ(1.05) = 2.822 for A = −1; at r = 1 half."""
    new, batch = of_ratios([[2.0, 2.0, 1.0, 1.0]], [[1.0, -1.0, 1.0, -1.0]])
    loss, stats = sapo(new, batch)
    np.testing.assert_allclose(loss[0], [-2.924234, 2.821999, -2.0, 1.904762], rtol=1e-5)
    assert stats.keys() == {"ppo_kl"}
    sharp, _ = sapo(new, batch, tau_positive=2.0, tau_negative=4.0)
    np.testing.assert_allclose(sharp[0], [-1.761594, 0.982014, -1.0, 0.5], rtol=1e-5)


def test_sapo_s_gate_closes_softly():
    """The gradient −A·r·4·σ·(1 − σ): 1 at r = 1, and less the further away, on both sides."""
    ratios = [[0.25, 1.0, 4.0]]
    new, batch = of_ratios(ratios, [[1.0, 1.0, 1.0]])
    slope = by_token(sapo, new, batch)[0]
    gate = 1 / (1 + np.exp(1.0 - np.array(ratios[0])))
    np.testing.assert_allclose(slope, -4 * gate * (1 - gate) * ratios[0], rtol=1e-5)
    np.testing.assert_allclose(slope[1], -1.0, rtol=1e-6)


def test_reinforce_by_hand():
    new, batch = of_ratios([[1.0, 2.0]], [[3.0, -0.5]])
    loss, stats = reinforce(new, batch)
    np.testing.assert_allclose(loss[0], [6.0, 0.5 * (np.log(2.0) - 2.0)], rtol=1e-5)
    np.testing.assert_allclose(by_token(reinforce, new, batch)[0], [-3.0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(stats["ppo_kl"][0], [0.0, -np.log(2.0)], rtol=1e-5)


def test_clip_cov_leaves_its_marked_tokens_out():
    marked = jnp.array([[True, False] * 4])
    batch = BATCH.replace(marked=marked)
    loss, stats = clip_cov(NEW, batch)
    plain, _ = clipped_surrogate(NEW, BATCH, dual_clip=None)
    np.testing.assert_array_equal(loss, jnp.where(marked, 0.0, plain))
    assert not by_token(clip_cov, NEW, batch)[marked].any()
    assert stats["marked"].tolist() == marked.tolist()
    wide, _ = clip_cov(NEW, BATCH, clip_low=0.4, clip_high=0.3)
    np.testing.assert_allclose(wide[0, [1, 4]], [-1.3, 0.6], rtol=1e-5)


def test_kl_cov_prices_its_marked_tokens():
    """−A·r without a clip; on the marked |log r| more."""
    marked = jnp.array([[True, True, False]])
    new, batch = of_ratios([[4.0, 0.25, 4.0]], [[1.0, -1.0, 1.0]], marked)
    loss, stats = kl_cov(new, batch, coef=0.5)
    price = 0.5 * np.log(4.0)
    np.testing.assert_allclose(loss[0], [-4.0 + price, 0.25 + price, -4.0], rtol=1e-5)
    slope = by_token(partial(kl_cov, coef=0.5), new, batch)[0]
    np.testing.assert_allclose(slope, [-4.0 + 0.5, 0.25 - 0.5, -4.0], rtol=1e-5)
    assert stats["marked"][0].tolist() == [1, 1, 0]
