"""The accelerators' attention against the plain one: interpreted, or by its plain equivalent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.attention import attention
from rljax.models.flash import cudnn_attention, platform_kernel, splash_attention
from rljax.sharding import make_mesh

ROWS, COLUMNS, HEADS, KV_HEADS, SIZE = 2, 131, 4, 2, 8  # odd, and beyond a block of 128
KEYS = jax.random.split(jax.random.key(0), 4)
Q, OUT = (jax.random.normal(key, (ROWS, COLUMNS, HEADS, SIZE)) for key in KEYS[:2])
K = jax.random.normal(KEYS[2], (ROWS, KV_HEADS, SIZE, COLUMNS))
V = jax.random.normal(KEYS[3], (ROWS, KV_HEADS, COLUMNS, SIZE))
# Left and right padding, and two sequences in a row.
SEGMENTS = jnp.stack([jnp.repeat(jnp.array([0, 1, 0]), jnp.array([5, 90, 36])), jnp.ones(COLUMNS)])
SEGMENTS = SEGMENTS.astype(int).at[1, 70:].set(2)
REAL = SEGMENTS > 0


def visible(window):
    back = jnp.arange(COLUMNS)[:, None] - jnp.arange(COLUMNS)
    within = (back >= 0) & (back < (window or COLUMNS))
    return within & (SEGMENTS[:, :, None] == SEGMENTS[:, None])


def value_and_gradients(attend):
    def total(q, k, v):
        mixed = jnp.where(REAL[..., None, None], attend(q, k, v), 0)
        return (mixed * OUT).sum(), mixed

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(Q, K, V)


def assert_close(ours, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4), ours, expected)


def plain(window, softcap=None):
    return value_and_gradients(
        lambda q, k, v: attention(q, k, v, visible(window), divisor=3.0, softcap=softcap)
    )


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (40, 5.0)])
def test_splash_is_the_plain_attention(window, softcap):
    def attend(q, k, v):
        settings = {"window": window, "divisor": 3.0, "softcap": softcap}
        return splash_attention(q, k, v, SEGMENTS, **settings, interpret=True)

    assert_close(value_and_gradients(attend), plain(window, softcap))


@pytest.mark.parametrize("sizes", [{"sequence": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_splash_on_a_mesh_is_splash_alone(sizes):
    """Also where the keys' heads do not divide over the tensor axis."""

    def attend(q, k, v):
        return splash_attention(q, k, v, SEGMENTS, window=None, divisor=3.0, interpret=True)

    with jax.set_mesh(make_mesh(data=-1 if "fsdp" not in sizes else 1, **sizes)):
        spread = value_and_gradients(attend)
    assert_close(spread, plain(None))


def test_what_cudnn_is_asked_for_is_the_plain_attention():
    def attend(q, k, v):
        return cudnn_attention(q, k, v, visible(40), divisor=3.0, implementation="xla")

    assert_close(value_and_gradients(attend), plain(40))


def test_cudnn_is_asked_for_an_even_number_of_columns(monkeypatch):
    """For an odd one it has no gradient."""
    asked = []

    def record(q, k, v, mask, **settings):
        asked.extend([q.shape[1], k.shape[1], *mask.shape[2:], settings["implementation"]])
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    assert cudnn_attention(Q, K, V, visible(None), divisor=3.0).shape == Q.shape
    assert asked == [132, 132, 132, 132, "cudnn"]


class Device(NamedTuple):
    platform: str
    device_kind: str


H100, TPU = Device("gpu", "NVIDIA H100 80GB HBM3"), Device("tpu", "TPU v5")


@pytest.mark.parametrize(
    ("kernel", "device", "asked"),
    [
        ("splash", TPU, ("float32", 64, 30.0)),
        ("cudnn", H100, ("bfloat16", 128, None)),
        (None, H100, ("float32", 128, None)),
        (None, H100, ("bfloat16", 256, None)),
        (None, H100, ("bfloat16", 128, 30.0)),
        (None, Device("gpu", "AMD Instinct MI300X"), ("bfloat16", 128, None)),
        (None, Device("cpu", "cpu"), ("bfloat16", 128, None)),
        (None, None, ("bfloat16", 128, None)),  # that of this machine
    ],
)
def test_the_kernel_of_each_device(kernel, device, asked):
    assert platform_kernel(*asked, device=device) == kernel


def test_cudnn_needs_queries_and_keys_that_are_spread_alike():
    asked = ("bfloat16", 128, None)
    assert platform_kernel(*asked, spread_alike=False, device=H100) is None
    assert platform_kernel(*asked, spread_alike=False, device=TPU) == "splash"
