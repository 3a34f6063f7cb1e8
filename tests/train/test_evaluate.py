"""Drawing for an evaluation with a fake sampler: which rows are drawn, and from what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import make_rollout

from rljax.train import init_state, make_draw_heldout
from rljax.types import Model, Prompts, Role

MODEL = Model(init=None, apply=None, head=None, init_cache=None, axes=())
POLICY = jnp.arange(3.0)
STATE = init_state(
    key=jax.random.key(0),
    params={"policy": POLICY},
    optimizers={"policy": optax.sgd(1.0)},
    frozen={},
    shaping={},
)
PROMPTS = Prompts(jnp.ones((3, 2), jnp.int32), jnp.ones((3, 2), bool), {})


def sample(params, prompts, key, *, group_size, greedy=False):
    """What it was asked with, as a rollout of zeros."""
    rows = prompts.tokens.shape[0] * group_size
    extras = {
        "params": jnp.broadcast_to(params, (rows, 3)),
        "draw": jax.random.uniform(key, (rows,)),
    }
    return make_rollout([1] * rows, extras=extras).replace(greedy=jnp.asarray(greedy))


@pytest.mark.parametrize(
    ("options", "group"),
    [({}, [1, 0]), ({"samples": 1}, [1, 0]), ({"samples": 4}, [1, 0, 0, 0, 0])],
)
def test_each_prompt_has_a_greedy_response_and_then_its_samples(options, group):
    key = jax.random.key(1)
    sampler = functools.partial(sample, group_size=7)  # the training's, which is not asked here
    draw = make_draw_heldout({"policy": Role(MODEL, ("policy",))}, sampler, **options)
    for drawing in (draw, jax.jit(draw)):
        rollout = drawing(STATE, PROMPTS, key)
        assert rollout.greedy.tolist() == [bool(greedy) for greedy in group] * 3
        np.testing.assert_array_equal(rollout.extras["params"][0], POLICY)
        np.testing.assert_array_equal(
            rollout.extras["draw"], jax.random.uniform(key, (3 * len(group),))
        )
