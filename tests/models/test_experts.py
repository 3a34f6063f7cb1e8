"""The mixture of experts against a plain loop over tokens and experts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.experts import Experts, apply_experts, route
from rljax.models.quantized import dequantize, quantize
from rljax.sharding import make_mesh

ROWS, TOKENS, WIDTH, HIDDEN, COUNT = 4, 3, 5, 7, 8


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(0, ROWS, TOKENS, WIDTH)
LOGITS = 2 * normal(1, ROWS, TOKENS, COUNT)
MATRICES = {
    "gate": normal(2, COUNT, WIDTH, HIDDEN),
    "up": normal(3, COUNT, WIDTH, HIDDEN),
    "down": normal(4, COUNT, HIDDEN, WIDTH),
}
CHOSEN, WEIGHTS = route(LOGITS, Experts(COUNT, 2, normalize=False))


def mlp(rows, multiply):
    """Not 0 of 0, so that what a device holds no expert for would show."""
    return multiply(jax.nn.silu(multiply(rows, "gate")) * multiply(rows, "up"), "down") + 1


@jax.jit
def mix(x, chosen, weights, matrices):
    return apply_experts(x, chosen, weights, mlp, matrices)


def loop(*arrays):
    x, chosen, weights, matrices = jax.device_get(arrays)
    out = np.zeros_like(x)
    for at in np.ndindex(x.shape[:2]):
        for expert, weight in zip(chosen[at], weights[at], strict=True):
            gate, up = x[at] @ matrices["gate"][expert], x[at] @ matrices["up"][expert]
            hidden = gate / (1 + np.exp(-gate)) * up
            out[at] += weight * (hidden @ matrices["down"][expert] + 1)
    return out


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("normalize", [True, False])
def test_route_takes_the_most_probable_experts(normalize):
    chosen, weights = jax.device_get(route(LOGITS, Experts(COUNT, 3, normalize)))
    for at in np.ndindex(LOGITS.shape[:2]):
        odds = np.exp(LOGITS[at])
        probabilities = odds / odds.sum()
        best = np.argsort(-probabilities)[:3]
        expected = probabilities[best] / (probabilities[best].sum() if normalize else 1)
        assert chosen[at].tolist() == best.tolist()
        np.testing.assert_allclose(weights[at], expected, rtol=1e-5)


def test_each_token_goes_through_its_experts():
    assert_close(mix(X, CHOSEN, WEIGHTS, MATRICES), loop(X, CHOSEN, WEIGHTS, MATRICES))


def test_no_token_is_dropped_where_all_choose_the_same():
    chosen = jnp.broadcast_to(jnp.array([5, 2]), CHOSEN.shape)
    out = mix(X, chosen, WEIGHTS, MATRICES)
    assert_close(out, loop(X, chosen, WEIGHTS, MATRICES))
    assert np.abs(out).max(axis=-1).min() > 0


def test_a_row_does_not_change_others():
    before = mix(X, CHOSEN, WEIGHTS, MATRICES)
    after = mix(X.at[1].set(1e3), CHOSEN.at[1].set(0), WEIGHTS, MATRICES)
    others = np.array([0, 2, 3])
    assert_close(after[others], before[others])
    assert (after[1] != before[1]).all()


def loss(x, weights, matrices):
    return jnp.square(mix(x, CHOSEN, weights, matrices)).sum()


def dense_loss(x, weights, matrices):
    """Every token through every expert; those not chosen weigh nothing."""
    every = [mlp(x, lambda rows, name, e=e: rows @ matrices[name][e]) for e in range(COUNT)]
    dense = jnp.put_along_axis(jnp.zeros(LOGITS.shape), CHOSEN, weights, axis=-1, inplace=False)
    return jnp.square(jnp.einsum("ebtd,bte->btd", jnp.stack(every), dense)).sum()


def test_gradients_are_those_of_the_dense_mixture():
    ours, expected = (jax.grad(f, (0, 1, 2))(X, WEIGHTS, MATRICES) for f in (loss, dense_loss))
    jax.tree.map(assert_close, ours, expected)


@pytest.mark.parametrize("count", [COUNT, 6])  # of six no device of four or eight holds a part
@pytest.mark.parametrize("rows", [ROWS, 3])  # three are not spread over two
@pytest.mark.parametrize(
    "sizes",
    [{"tensor": 8}, {"data": 2, "tensor": 4}, {"data": 2, "expert": 4}, {"expert": 2, "tensor": 4}],
    ids=str,
)
def test_eight_devices_give_what_one_gives(sizes, rows, count):
    x, weights = X[:rows], WEIGHTS[:rows]
    chosen = CHOSEN[:rows] % count
    matrices = {name: matrix[:count] for name, matrix in MATRICES.items()}
    with jax.set_mesh(make_mesh(**{"data": 1} | sizes)):
        out = mix(x, chosen, weights, matrices)
    assert_close(out, loop(x, chosen, weights, matrices))


@pytest.mark.parametrize("sizes", [{"data": 1}, {"expert": 4, "tensor": 2}], ids=str)
def test_quantised_experts_are_what_they_mean(sizes):
    low = {name: quantize(matrix, (-2,)) for name, matrix in MATRICES.items()}
    with jax.set_mesh(make_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)):
        out = mix(X, CHOSEN, WEIGHTS, low)
    assert_close(out, loop(X, CHOSEN, WEIGHTS, {name: dequantize(x) for name, x in low.items()}))


@pytest.mark.parametrize("sizes", [{"tensor": 4}, {"expert": 4}], ids=str)
def test_gradients_on_eight_devices_are_those_on_one(sizes):
    with jax.set_mesh(make_mesh(data=2, **sizes)):
        spread = jax.grad(loss, (0, 1, 2))(X, WEIGHTS, MATRICES)
    jax.tree.map(assert_close, spread, jax.grad(loss, (0, 1, 2))(X, WEIGHTS, MATRICES))
