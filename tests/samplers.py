"""A tiny policy to sample from, whose responses have all lengths, and equality of two rollouts."""

import jax
import numpy as np

from rljax.models import decoder, llama
from rljax.sampling import make_sampler
from rljax.types import Prompts

VOCABULARY, WIDTH, BUDGET, PAD = 13, 3, 40, 0
DECODER = llama(vocab_size=VOCABULARY, layers=2, width=16, heads=2, kv_heads=1).decoder
MODEL = decoder(DECODER)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
KEY = jax.random.key(3)
ROWS = np.array(
    [[0, 0, 5], [0, 4, 6], [7, 8, 9], [0, 0, 3], [0, 5, 5], [2, 3, 4], [0, 9, 1], [4, 4, 4]]
)
PROMPTS = Prompts(tokens=ROWS, mask=ROWS > 0, extras={})


def sampler(model=MODEL, **settings):
    defaults = {"max_tokens": BUDGET, "eos_ids": (1,), "pad_id": PAD, "group_size": 2}
    return jax.jit(make_sampler(model, **(defaults | settings)))


def drawn(draw, params=PARAMS, prompts=PROMPTS, **keywords):
    return jax.device_get(draw(params, prompts, KEY, **keywords))


def assert_same(one, other, atol=2e-5):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.action_mask, other.action_mask)
    np.testing.assert_array_equal(one.truncated, other.truncated)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=atol)
