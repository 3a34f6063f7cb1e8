"""Which tokens Clip-Cov and KL-Cov treat apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import pad_columns
from token_losses import make_batch

from rljax.losses import mark_most_covariant, mark_random_covariant

# Covariances 3·2, 1·1, 1·1, 3·2 behind a masked column: the means are −4 and 3.
COVARIANT = make_batch(
    [[50.0, -1.0, -3.0], [50.0, -5.0, -7.0]],
    [[90.0, 5.0, 4.0], [90.0, 2.0, 1.0]],
    jnp.array([[False, True, True]] * 2),
)


def test_the_most_covariant_tokens_are_marked():
    key = jax.random.key(0)
    both = jnp.array([[False, True, False], [False, False, True]])
    assert mark_most_covariant(COVARIANT, key, share=0.5).tolist() == both.tolist()
    one = mark_most_covariant(COVARIANT, key, share=1e-4)  # at least one
    assert one.sum() == 1
    assert (one & both).any()
    whole = mark_most_covariant(COVARIANT, key, share=1.0)
    assert whole.tolist() == COVARIANT.action_mask.tolist()


@pytest.mark.parametrize(
    ("lowest", "highest", "eligible"),
    [
        (5.0, 7.0, [[0, 1, 0], [0, 0, 1]]),
        (5.0, 1e6, [[0, 1, 0], [0, 0, 1]]),
        (0.5, 5.0, [[0, 0, 1], [0, 1, 0]]),
        (0.5, 7.0, [[0, 1, 1], [0, 1, 1]]),
        (7.0, 9.0, [[0, 0, 0], [0, 0, 0]]),
    ],
)
def test_random_tokens_of_a_band_of_covariance_are_marked(lowest, highest, eligible):
    band = {"lowest": lowest, "highest": highest}
    key = jax.random.key(0)
    whole = mark_random_covariant(COVARIANT, key, share=1.0, **band)
    assert whole.tolist() == np.array(eligible, bool).tolist()
    draw = partial(mark_random_covariant, COVARIANT, share=1e-4, **band)
    some = np.asarray(jax.vmap(draw)(jax.random.split(key, 64)))
    assert set(some.sum(axis=(1, 2)).tolist()) == {int(np.any(eligible))}
    assert np.any(some, axis=0).tolist() == whole.tolist()  # each of them at some time


def test_a_quarter_of_the_tokens_is_marked():
    key = jax.random.key(0)
    batch = make_batch(jax.random.normal(key, (4, 10)), jnp.ones((4, 10)).at[:2].set(-1.0))
    assert mark_most_covariant(batch, key, share=0.25).sum() == 10
    everything = {"lowest": -9.0, "highest": 9.0}
    assert mark_random_covariant(batch, key, share=0.25, **everything).sum() == 10


@pytest.mark.parametrize("mark", [mark_most_covariant, mark_random_covariant])
def test_nothing_is_marked_in_an_all_masked_batch(mark):
    nothing = COVARIANT.replace(action_mask=jnp.zeros((2, 3), bool))
    assert not mark(nothing, jax.random.key(0)).any()


def test_marks_do_not_depend_on_padding_or_on_what_lies_outside_the_mask():
    marked = mark_most_covariant(COVARIANT, jax.random.key(0), share=0.5)
    wide = jax.tree.map(lambda x: pad_columns(x, 2, 1), COVARIANT).replace(
        logprobs=pad_columns(COVARIANT.logprobs, 2, 1, np.nan)
    )
    padded = mark_most_covariant(wide, jax.random.key(0), share=0.5)
    np.testing.assert_array_equal(padded, pad_columns(marked, 2, 1, False))
