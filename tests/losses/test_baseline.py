"""KTO's reference point and BCO's running mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.losses import kto_reference, running_mean

BASELINES = {"kto_reference": kto_reference(), "running_mean": running_mean(0.5)}
every_baseline = pytest.mark.parametrize("name", BASELINES)
RATIOS = jnp.array([4.0, -1.0, jnp.nan, 3.0])
COUNTED = jnp.array([True, True, False, True])


def test_kto_reference_by_hand():
    baseline = kto_reference()
    zero, state, metrics = baseline.apply(RATIOS, COUNTED, baseline.init())
    np.testing.assert_allclose(zero, 2.0, rtol=1e-6)
    assert metrics == {"kto/kl": zero}
    assert jax.tree.leaves(state) == []
    assert baseline.mismatched


def test_kto_reference_is_never_below_0():
    """The mean is clamped, not each row: 4, −1 and −9 have a mean of −2."""
    zero, _, _ = kto_reference().apply(jnp.array([4.0, -1.0, -9.0]), jnp.ones(3, bool), ())
    assert float(zero) == 0.0


def test_running_mean_by_hand():
    baseline = running_mean(0.5)
    delta, state, metrics = baseline.apply(RATIOS, COUNTED, baseline.init())
    np.testing.assert_allclose(delta, 1.0, rtol=1e-6)  # (2 − 0.5 + 1.5) / 3
    assert metrics == {"bco/delta": delta}
    # the fourth response earns −7: −4 in all
    delta, state, _ = baseline.apply(jnp.full(4, -14.0), jnp.arange(4) == 0, state)
    np.testing.assert_allclose(delta, -1.0, rtol=1e-6)
    assert state._asdict() == {"mean": -1.0, "count": 4.0}
    assert {x.dtype for x in state} == {jnp.dtype("float32")}
    assert not baseline.mismatched


@given(st.lists(st.lists(st.floats(-50, 50, width=32), max_size=4), min_size=1, max_size=4))
@few
def test_the_running_mean_is_that_of_all_responses_however_they_came(batches):
    baseline = running_mean(0.1)
    state = baseline.init()
    for batch in batches:
        ratios = jnp.array([*batch, *[jnp.nan] * (4 - len(batch))])
        delta, state, _ = baseline.apply(ratios, jnp.arange(4) < len(batch), state)
    seen = [0.1 * ratio for batch in batches for ratio in batch]
    np.testing.assert_allclose(delta, np.mean(seen) if seen else 0.0, rtol=1e-4, atol=1e-5)
    assert int(state.count) == len(seen)


@every_baseline
def test_a_batch_in_which_nothing_counts_leaves_the_state_alone(name):
    baseline = BASELINES[name]
    _, state, _ = baseline.apply(RATIOS, COUNTED, baseline.init())
    for before in (baseline.init(), state):
        value, after, metrics = baseline.apply(RATIOS, jnp.zeros(4, bool), before)
        assert jax.tree.leaves(after) == jax.tree.leaves(before)
        assert all(np.isfinite(x) for x in (value, *metrics.values()))


@every_baseline
def test_rows_in_any_order_and_uncounted_ones_change_nothing(name):
    baseline = BASELINES[name]
    value, _, _ = baseline.apply(RATIOS, COUNTED, baseline.init())
    order = jnp.array([2, 3, 0, 1])
    moved, _, _ = baseline.apply(RATIOS[order], COUNTED[order], baseline.init())
    alone, _, _ = baseline.apply(RATIOS[COUNTED], jnp.ones(3, bool), baseline.init())
    np.testing.assert_allclose([moved, alone], [value, value], rtol=1e-6)


@every_baseline
def test_no_gradient_flows_through_it(name):
    baseline = BASELINES[name]

    def value(ratios):
        return baseline.apply(ratios, COUNTED, baseline.init())[0]

    assert not jax.grad(value)(jnp.ones(4)).any()


@every_baseline
def test_compiled_equals_eager(name):
    baseline = BASELINES[name]
    given = RATIOS, COUNTED, baseline.init()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
        jax.jit(baseline.apply)(*given),
        baseline.apply(*given),
    )
