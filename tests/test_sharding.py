"""The mesh, the tables of rules, and what they change: where numbers lie, and never the numbers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rljax.errors import UserError
from rljax.models import decoder, llama
from rljax.sampling import make_sampler
from rljax.sharding import MESH_AXES, MOMENTS, SAMPLING, TRAINING, make_mesh, partition_spec
from rljax.types import Prompts


def sizes_of(mesh):
    return tuple(mesh.shape[axis] for axis in MESH_AXES)


def test_one_size_takes_what_the_others_leave():
    assert sizes_of(make_mesh(fsdp=2, tensor=2)) == (2, 2, 1, 1, 2)
    assert sizes_of(make_mesh(data=1, sequence=2, expert=-1)) == (1, 1, 4, 2, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3 does not fit 8 device"),
        ({"fsdp": 3}, "data=-1 x fsdp=3 does not fit 8 device"),
        ({"data": -1, "tensor": -1}, "at most one may be -1"),
        ({"sequence": 0}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**sizes)


@dataclass(frozen=True)
class Device:
    """As much of one as a mesh asks for."""

    id: int
    slice_index: int
    process_index: int
    device_kind: str = ""
    platform: str = ""


def slices_of(count, each):
    return [Device(index, index // each, index) for index in range(count * each)]


@pytest.mark.parametrize(
    ("sizes", "slices", "across"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2, ["data"]),
        ({"data": 2, "fsdp": 4}, 4, ["data", "fsdp"]),
        ({"data": 1, "fsdp": 4, "tensor": 2}, 2, ["fsdp"]),
    ],
)
def test_only_data_and_then_fsdp_reaches_from_slice_to_slice(sizes, slices, across):
    mesh = make_mesh(slices_of(slices, 8 // slices), **sizes)
    index = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert sizes_of(mesh) == tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    for number, axis in enumerate(MESH_AXES):
        assert (np.diff(index, axis=number) != 0).any() == (axis in across)


def test_slices_that_no_axis_reaches_over_are_refused():
    with pytest.raises(UserError, match=r"in 4 slices.*data=2 x fsdp=1"):
        make_mesh(slices_of(4, 2), data=2, tensor=4)


GATE = ("layers", "embed", "mlp")


@pytest.mark.parametrize(
    ("axes", "shape", "rules", "expected"),
    [
        (GATE, (2, 16, 32), TRAINING, (None, ("sequence", "fsdp"), "tensor")),
        (GATE, (2, 16, 32), SAMPLING, (None, None, ("tensor", "sequence"))),
        (GATE, (2, 2, 32), TRAINING, (None, "sequence", "tensor")),  # as far as the size divides
        (GATE, (2, 3, 7), TRAINING, (None, None, None)),
        (("rows", "columns", None), (8, 6, 5), TRAINING, ("fsdp", "sequence", None)),
        (("rows", "columns", None), (8, 6, 5), SAMPLING, ("fsdp", None, None)),
        (("vocab", "mlp"), (4, 4), SAMPLING, (("tensor", "sequence"), None)),  # each axis once
    ],
)
def test_rules_give_specs_by_hand(axes, shape, rules, expected):
    mesh = make_mesh(data=1, fsdp=2, sequence=2, tensor=2)
    assert partition_spec(axes, shape, mesh, rules) == PartitionSpec(*expected)


def test_moments_are_spread_over_data_as_well():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert partition_spec(GATE, (2, 16, 32), mesh, MOMENTS)[1] == ("fsdp", "data")


CONFIG = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "mlp_width": 32, "rope_base": 100.0}
MODEL = decoder(llama(vocab_size=13, **CONFIG).decoder)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 0, 13)
MASK = jnp.arange(8) >= jnp.array([0, 2, 5, 1])[:, None]  # prompts, padded on the left


@jax.jit
def logits_and_gradients(params):
    def loss(params):
        logits = MODEL.head(params, MODEL.apply(params, TOKENS, MASK))
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1)
        return jnp.where(MASK[..., None], chosen, 0).sum(), jnp.where(MASK[..., None], logits, 0)

    return jax.grad(loss, has_aux=True)(params)


@pytest.mark.parametrize(
    "sizes",
    [{"sequence": 2}, {"sequence": 4}, {"sequence": 2, "tensor": 2, "fsdp": 2}, {"tensor": 4}],
    ids=str,  # the last has more devices than there are heads of keys
)
def test_spread_columns_and_heads_give_the_same_logits_and_gradients(sizes):
    alone = logits_and_gradients(PARAMS)
    with jax.set_mesh(make_mesh(**sizes)):
        spread = logits_and_gradients(PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4), spread, alone)


def test_spread_columns_are_really_spread():
    """Of what flows through the layers a device holds its own columns, and all of the keys."""
    with jax.set_mesh(make_mesh(data=1, sequence=8)):
        text = logits_and_gradients.lower(PARAMS).compile().as_text()
    assert "f32[4,1,32]" in text  # the hidden units of one column of eight
    assert "f32[4,8,32]" not in text
    assert "f32[32,32]" not in text


@pytest.mark.parametrize("sizes", [{"tensor": 4, "fsdp": 2}, {"sequence": 2, "tensor": 2}], ids=str)
def test_more_devices_than_heads_of_keys_sample_the_same(sizes):
    """Each then has a copy of the head that its queries read, and of no other in its cache."""
    prompts = Prompts(TOKENS, MASK, {})
    draw = jax.jit(make_sampler(MODEL, max_tokens=4, eos_ids=(0,), pad_id=1))
    alone = draw(PARAMS, prompts, jax.random.key(2))
    with jax.set_mesh(make_mesh(**sizes)):
        spread = jax.jit(make_sampler(MODEL, max_tokens=4, eos_ids=(0,), pad_id=1))
        rollout = spread(PARAMS, prompts, jax.random.key(2))
        keys = jax.tree.leaves(jax.eval_shape(lambda: MODEL.init_cache(4, 12)))[0]
    assert keys.shape[-3] == 4
    np.testing.assert_array_equal(rollout.tokens, alone.tokens)
    np.testing.assert_allclose(rollout.logprobs, alone.logprobs, atol=1e-5)
