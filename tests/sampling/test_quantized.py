"""Sampling in eight bits: what it draws, what that does not depend on, and that it is corrected."""

import re

import jax
import numpy as np
import pytest
from samplers import (
    DECODER,
    KEY,
    MODEL,
    PARAMS,
    PROMPTS,
    VOCABULARY,
    WIDTH,
    assert_same,
    drawn,
    sampler,
)
from tiny import tiny_build, train

from rljax.checks import abstract_state
from rljax.errors import UserError
from rljax.models import decoder
from rljax.models.quantized import dequantize
from rljax.planning.footprint import footprint
from rljax.sampling import QUANTIZED
from rljax.sharding import make_mesh, param_shardings
from rljax.types import Prompts, Quantized

BOTH = {"quantization": "int8", "kv_cache_dtype": "int8"}


@pytest.fixture(scope="module")
def whole():
    return drawn(sampler(**BOTH))


@pytest.fixture(scope="module")
def exact():
    return drawn(sampler())


def test_it_is_another_policy_but_a_near_one(whole, exact):
    first = exact.action_mask & (np.cumsum(exact.tokens != whole.tokens, axis=1) == 0)
    off = np.abs(exact.logprobs - whole.logprobs)[first]
    assert 1e-3 < off.max() < 0.5
    assert first.sum() > 100


def test_quantised_weights_draw_what_they_mean():
    low = MODEL.quantized(weights="int8", kv_cache=None)
    meant = jax.tree.map(dequantize, low.cast(PARAMS), is_leaf=lambda x: isinstance(x, Quantized))
    one, other = drawn(sampler(quantization="int8")), drawn(sampler(), meant)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_responses_do_not_depend_on_the_slots(whole):
    assert_same(drawn(sampler(slots=5, **BOTH)), whole, atol=1e-3)


def test_layers_whose_caches_are_stacked(whole, monkeypatch):
    monkeypatch.setattr("rljax.models.transformer.MOST_UNROLLED", 1)
    assert_same(drawn(sampler(decoder(DECODER), slots=5, **BOTH)), whole, atol=1e-3)


@pytest.mark.parametrize("sizes", [{"data": 4, "tensor": 2}, {"fsdp": 4, "sequence": 2}])
def test_responses_do_not_depend_on_the_mesh(whole, sizes):
    with jax.set_mesh(make_mesh(**sizes)):
        spread = drawn(sampler(**BOTH))
    assert_same(spread, whole, atol=1e-3)


def test_what_is_gathered_to_sample_with_is_of_eight_bits():
    """All but the scales of norms and of outputs, which are one number each."""
    mesh = make_mesh(fsdp=8)
    params = jax.device_put(PARAMS, param_shardings(MODEL.axes, PARAMS, mesh))
    with jax.set_mesh(mesh):
        text = sampler(max_tokens=4, **BOTH).lower(params, PROMPTS, KEY).compile().as_text()
    found = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    large = [kind for kind, shape in found if np.prod([int(n) for n in shape.split(",")]) > 64]
    assert len(large) > 5
    assert set(large) == {"s8"}


def test_matrices_are_integers_where_tokens_are_drawn():
    """Of the layers' MLPs and the head; XLA would cast them before the loop."""
    text = sampler(max_tokens=4, **BOTH).lower(PARAMS, PROMPTS, KEY).compile().as_text()
    carried = "".join(re.findall(r"= \((.*?)\) while\(", text))
    assert {"s8[16,64]", "s8[64,16]", "s8[13,16]"} <= set(re.findall(r"s8\[[\d,]+\]", carried))
    assert not re.search(r"f32\[(16,64|64,16|13,16)\]", carried)


def test_a_token_is_the_same_in_the_prompt_and_in_the_response(whole):
    """The greedy response goes on as it did, behind a prompt that it began."""
    draw = sampler(group_size=1, eos_ids=(VOCABULARY,), max_tokens=12, **BOTH)
    first = drawn(draw, greedy=True)
    longer = first.tokens[:, : WIDTH + 5]
    mask = first.mask[:, : WIDTH + 5]
    later = drawn(draw, prompts=Prompts(tokens=longer, mask=mask, extras={}), greedy=True)
    np.testing.assert_array_equal(later.tokens[:, : WIDTH + 12], first.tokens)
    np.testing.assert_allclose(
        later.logprobs[:, WIDTH + 5 : WIDTH + 12], first.logprobs[:, WIDTH + 5 :], atol=1e-3
    )


RUN = [
    *("warm_start=null", "algorithm={fn: grpo}", "optimizer.value=null", "update=null"),
    *("shaping=off", "data.prompts_per_step=8", "sampling={max_tokens: 6, group_size: 3}"),
]
LOW = [f"sampling.{name}=int8" for name in QUANTIZED]


def test_a_run_corrects_what_it_samples_in_eight_bits():
    """In float32 the log-probs of what is not quantised are the policy's own."""
    _, low = train(tiny_build(*RUN, *LOW))
    assert 1e-7 < low["correction/kl"] < 1e-2
    _, plain = train(tiny_build(*RUN, "correction={}"))
    assert abs(plain["correction/kl"]) < 1e-10


def test_held_out_prompts_are_answered_by_the_policy_itself_unless_asked_otherwise():
    def is_quantized(*settings):
        built = tiny_build(*RUN, *settings)
        key, prompts = jax.random.key(0), built.train.batches[0]
        draw = jax.make_jaxpr(built.answering.draw)
        return "i8[" in str(draw(abstract_state(built, built.train), prompts, key))

    assert not is_quantized(*LOW)
    assert is_quantized(*(f"evaluation.{setting}" for setting in LOW))


def test_less_is_planned():
    """Of float32: a quarter of the weights, and two heads of 8 with a scale each, in the cache."""
    plain, low = tiny_build(*RUN), tiny_build(*RUN, *LOW)
    before, after = (footprint(built, built.mesh).sampling for built in (plain, low))
    assert after["KV cache"] == before["KV cache"] * (8 + 4) / (8 * 4)
    share = after["weights to sample with"] / before["weights to sample with"]
    assert 0.25 < share < 0.35


def test_given_responses_are_not_sampled():
    given = [
        *("algorithm=sft", "data.train={fn: addition_demonstrations, count: 64}"),
        *("data.batch_size=8", "data.prompts_per_step=null", "warm_start=null", "update=null"),
        *("shaping=off", "optimizer.value=null"),
    ]
    with pytest.raises(UserError, match=r"sampling\.quantization: it is of responses"):
        tiny_build(*given, "sampling.quantization=int8")
    tiny_build(*given, "evaluation.sampling.quantization=int8")
