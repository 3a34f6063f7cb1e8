"""Token weights: each mode by its definition, with denominators over the whole minibatch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.losses import make_weigh, token_weights
from rljax.losses.aggregate import MODES

MASK = jnp.array([[True, True, True], [False, True, False], [False, False, False]])
NORM = 4.0


@pytest.mark.parametrize(
    ("mode", "long", "short"),
    [  # 3 + 1 tokens in 2 rows that have any
        ("token-mean", 1 / 4, 1 / 4),
        ("seq-mean-token-sum", 1 / 2, 1 / 2),
        ("seq-mean-token-mean", 1 / 6, 1 / 2),
        ("seq-mean-token-sum-norm", 1 / 8, 1 / 8),
    ],
)
def test_by_hand(mode, long, short):
    weights = token_weights(MASK, mode=mode, norm_tokens=NORM)
    expected = [[long] * 3, [0.0, short, 0.0], [0.0] * 3]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def by_definition(losses, mask, mode):
    rows = [row[kept] for row, kept in zip(losses, mask, strict=True) if kept.any()]
    if not rows:
        return 0.0
    return {
        "token-mean": lambda: np.concatenate(rows).mean(),
        "seq-mean-token-sum": lambda: np.mean([row.sum() for row in rows]),
        "seq-mean-token-mean": lambda: np.mean([row.mean() for row in rows]),
        "seq-mean-token-sum-norm": lambda: np.mean([row.sum() / NORM for row in rows]),
    }[mode]()


LOSSES = np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3) ** 1.5
masks = st.lists(st.booleans(), min_size=12, max_size=12)


@pytest.mark.parametrize("mode", MODES)
@few
@given(masks)
def test_verl_token_mean_depended_on_micro_batches(mode, mask):
    """Weights are made on the whole; any split of the rows adds up to the definition."""
    mask = np.array(mask).reshape(4, 3)
    weights = np.asarray(token_weights(jnp.asarray(mask), mode=mode, norm_tokens=NORM))
    microbatches = [slice(0, 1), slice(1, 4)]
    summed = sum((weights[part] * LOSSES[part]).sum() for part in microbatches)
    np.testing.assert_allclose(summed, by_definition(LOSSES, mask, mode), rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_padding_rows_and_columns_change_nothing(mode):
    padded = jnp.pad(MASK, [(1, 2), (2, 1)])
    weights = token_weights(padded, mode=mode, norm_tokens=NORM)
    inside = weights[1:-2, 2:-1]
    np.testing.assert_array_equal(inside, token_weights(MASK, mode=mode, norm_tokens=NORM))
    assert float(weights.sum()) == pytest.approx(float(inside.sum()))


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_mask_weighs_nothing(mode):
    weights = token_weights(jnp.zeros((2, 3), bool), mode=mode)
    assert not weights.any()  # nor NaN, which is true


@pytest.mark.parametrize("mode", MODES)
def test_compiled_equals_eager(mode):
    weigh = make_weigh(mode, NORM if mode == "seq-mean-token-sum-norm" else None)
    np.testing.assert_allclose(jax.jit(weigh)(MASK), weigh(MASK), rtol=1e-6)


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(UserError, match='"token-maen"; did you mean "token-mean"'):
        make_weigh("token-maen")


def test_norm_tokens_is_bound():
    weights = make_weigh("seq-mean-token-sum-norm", NORM)(MASK)
    np.testing.assert_allclose(weights[MASK], 1 / 8, rtol=1e-6)


@pytest.mark.parametrize("norm", [None, 0.0, -4.0])
def test_norm_tokens_is_needed_by_its_mode(norm):
    with pytest.raises(UserError, match="needs norm_tokens, a positive number; got"):
        make_weigh("seq-mean-token-sum-norm", norm)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "seq-mean-token-sum-norm"])
def test_norm_tokens_is_refused_by_the_other_modes(mode):
    with pytest.raises(UserError, match=f"the aggregation is {mode}$"):
        make_weigh(mode, NORM)


PACKED = jnp.array(
    [[0, 1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 1, 0]], bool
)  # four sequences, three tokens at most
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 0]])
ALONE = [(0, slice(0, 3)), (0, slice(3, 5)), (1, slice(0, 2)), (1, slice(2, 6))]


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_weigh_what_they_do_in_rows_of_their_own(mode):
    weigh = make_weigh(mode, NORM if mode == "seq-mean-token-sum-norm" else None)
    rows = jnp.stack([jnp.pad(PACKED[r, s], (0, 7 - PACKED[r, s].size)) for r, s in ALONE])
    apart, packed = weigh(rows), weigh(PACKED, SEGMENTS)
    for (row, columns), alone in zip(ALONE, apart, strict=True):
        np.testing.assert_allclose(packed[row, columns], alone[: columns.stop - columns.start])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", [[0.5 / 3.5, 0, 2 / 3.5], [1 / 3.5, 0, 0]]),
        ("seq-mean-token-mean", [[0.125, 0, 0.5], [0.5, 0, 0]]),
        ("seq-mean-token-sum", [[0.25, 0, 1.0], [0.5, 0, 0]]),
    ],
)
def test_tokens_weigh_as_the_data_says(mode, expected):
    given = jnp.array([[0.5, 0, 2], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(make_weigh(mode)(given), [*expected, [0, 0, 0]], rtol=1e-6)
