"""Which tokens stay: by hand, and by the definition of each filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.sampling.filters import filter_rows, make_filter, min_p, top_k, top_p

PROBS = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(jnp.asarray(PROBS, jnp.float32))


def kept(logits):
    return jnp.isfinite(logits).tolist()


@pytest.mark.parametrize(
    ("filtered", "stays"),
    [
        (lambda x: top_k(x, 2), [False, True, False, True]),
        (lambda x: top_k(x, 9), [True] * 4),
        (lambda x: top_p(x, 0.4), [False, True, False, False]),
        (lambda x: top_p(x, 1e-50), [False, True, False, False]),  # 0 in float32
        (lambda x: top_p(x, 0.6), [False, True, False, True]),
        (lambda x: top_p(x, 0.9), [True, True, False, True]),
        (lambda x: min_p(x, 0.25), [True, True, False, True]),  # at least 0.125
        (lambda x: min_p(x, 0.5), [False, True, False, True]),
        (lambda x: min_p(x, 1.0), [False, True, False, False]),
    ],
)
def test_by_hand(filtered, stays):
    logits = filtered(LOGITS)
    assert kept(logits) == stays
    np.testing.assert_array_equal(logits[jnp.array(stays)], LOGITS[jnp.array(stays)])


# Distinct logits, at least 1/4 apart, so that no rounding decides.
orders = st.permutations(range(8)).map(lambda order: np.array(order, np.float32) / 4)


@few
@given(orders, st.floats(0.05, 0.95))
def test_top_p_is_the_smallest_set_that_reaches_p(logits, p):
    stays = np.isfinite(top_p(jnp.asarray(logits), p))
    probs = np.exp(logits) / np.exp(logits).sum()
    assert probs[stays].sum() >= p - 1e-5
    assert probs[stays].sum() - probs[stays].min() < p + 1e-5
    assert probs[stays].min() > probs[~stays].max(initial=0.0)


@few
@given(orders, st.integers(1, 8))
def test_top_k_keeps_the_k_highest(logits, k):
    assert kept(top_k(jnp.asarray(logits), k)) == (logits >= np.sort(logits)[-k]).tolist()


@few
@given(orders, st.floats(-50, 50, width=32))
def test_a_constant_added_to_all_logits_changes_nothing(logits, constant):
    keep = make_filter(top_k=6, top_p=0.8, min_p=0.1)
    assert kept(keep(jnp.asarray(logits))) == kept(keep(jnp.asarray(logits) + constant))


def test_ties_stay_together():
    assert kept(top_k(jnp.array([1.0, 2.0, 1.0, 0.0]), 2)) == [True, True, True, False]


def test_one_after_another():
    # top-k 3 leaves 0.5, 0.3, 0.15, renormalised to 0.526, 0.316, 0.158: 0.85 needs all three
    assert kept(make_filter(top_k=3, top_p=0.85)(LOGITS)) == [True, True, False, True]
    # of 0.526 and 0.316 the first two reach 0.84
    assert kept(make_filter(top_k=3, top_p=0.84)(LOGITS)) == [False, True, False, True]
    assert kept(make_filter(top_k=3, min_p=0.5)(LOGITS)) == [False, True, False, True]


def test_none_leaves_a_filter_out():
    np.testing.assert_array_equal(make_filter()(LOGITS), LOGITS)


def test_a_top_p_of_1_is_no_limit():
    """verl's default. Rounding must not cut the tail off."""
    logits = jnp.linspace(0.0, -20.0, 64)
    np.testing.assert_array_equal(make_filter(top_p=1.0)(logits), logits)


def test_rows_are_independent_and_compiled_equals_eager():
    keep = make_filter(top_k=3, top_p=0.9, min_p=0.2)
    rows = jnp.stack([LOGITS, LOGITS[::-1], jnp.zeros(4)])
    together = keep(rows)
    for row, logits in zip(together, rows, strict=True):
        np.testing.assert_array_equal(row, keep(logits))
    np.testing.assert_array_equal(jax.jit(keep)(rows), together)


def test_rows_with_settings_of_their_own():
    """Each as ``make_filter`` has it; and as it was, beside another that has limits."""
    settings = [{}, {"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 3, "top_p": 0.84}]
    settings += [{"top_k": 3, "min_p": 0.5}, {"top_k": 9}, {"top_p": 0.7, "min_p": 0.4}]
    settings += [{"top_p": 1e-50}]
    logits = jnp.stack([jnp.roll(LOGITS, turn) for turn in range(len(settings))])

    def of(settings):
        none = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return {name: jnp.array([s.get(name, none[name]) for s in settings]) for name in none}

    together = jax.jit(filter_rows)(logits, **of(settings))
    for row, alone, keywords in zip(together, logits, settings, strict=True):
        np.testing.assert_array_equal(row, make_filter(**keywords)(alone))
    unlimited = filter_rows(logits, **of([{}] * len(settings)))
    np.testing.assert_array_equal(unlimited, logits)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"top_k": 0}, "top_k must be at least 1, or null for no limit; got 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], or be null; got 0.0"),
        ({"top_p": 1.5}, "top_p must lie in"),
        ({"min_p": -0.1}, "min_p must lie in"),
    ],
)
def test_easydel_zero_is_refused_and_not_replaced(keywords, said):
    with pytest.raises(UserError, match=said):
        make_filter(**keywords)
