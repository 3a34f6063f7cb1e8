"""FLOPs and bytes that figures are given as shares of."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import sampling, update
from benchmarks.built import benched
from rljax.models import decoder, llama
from rljax.planning.roofline import forward_flops

SIZES = {"vocab_size": 64, "layers": 1, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 48}


def config(**changes):
    return llama(**SIZES | {"dtype": "bfloat16"} | changes).decoder


def test_decode_reads_every_weight_once():
    """Of two bytes each but for the norms; queries and outputs 32 x 32, keys and values 32 x 16."""
    matrices = 64 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    norms = 3 * 32
    tied = config()
    assert sampling.weight_bytes(decoder(tied), tied) == 2 * matrices + 4 * norms
    own_head = config(tied=False)  # its embedding is as large as its head, and read a row a token
    assert sampling.weight_bytes(decoder(own_head), own_head) == 2 * matrices + 4 * norms


def test_decode_reads_the_filled_columns_and_writes_one():
    """Keys and values of two heads of 8, two bytes each, in each layer."""
    model = decoder(config(layers=3))
    assert sampling.column_bytes(model) == 3 * 2 * 2 * 8 * 2
    assert sampling.decode_bytes(model, 1000, rows=5, columns=7) == 1000 + 5 * (7 + 1) * 192


def test_of_eight_bits_it_reads_scales_too():
    """One byte each; four for each output, id of the vocabulary, or head of keys and values."""
    tied = config()
    model = decoder(tied).quantized(weights="int8", kv_cache="int8")
    matrices = 64 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    outputs = 64 + 2 * 32 + 2 * 16 + 2 * 48 + 32
    assert sampling.weight_bytes(model, tied) == matrices + 4 * outputs + 4 * 3 * 32
    assert sampling.column_bytes(model) == 2 * 2 * (8 + 4)


@pytest.mark.parametrize("columns", [1, 24])
def test_decode_flops_are_those_of_a_pass_over_one_column(columns):
    one = config(layers=2)
    whole = forward_flops(one, 3, columns, head_width=64)
    assert sampling.decode_flops(one, 3, columns) == pytest.approx(whole / columns)


def test_forward_flops_are_what_the_compiler_counts():
    """Of one layer, as the compiler counts a loop's body once; it also counts norms, softmax and
    rotations, which are little beside wide matrices."""
    wide = config(dtype="float32", width=256, mlp_width=768, vocab_size=512)
    model = decoder(wide)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 16), bool)

    def forward(params, tokens, mask):
        return model.head(params, model.apply(params, tokens, mask))

    counted = jax.jit(forward).lower(params, tokens, mask).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(forward_flops(wide, 2, 16, head_width=512), rel=0.03)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_update_flops(algorithm):
    """Three passes over all columns in each epoch, of the policy, and of a critic with its head."""
    command = update.settings("4x256", algorithm, rows=16)
    with benched([*command, "update.epochs=2"], devices=1) as bench:
        found, one = bench.update_flops, bench.built.decoder
        assert (bench.load.rows, bench.load.columns) == (16, 96)
    passes = forward_flops(one, 16, 96, head_width=update.VOCAB)
    if algorithm == "ppo":
        passes += forward_flops(one, 16, 96, head_width=1)
    assert found == 2 * 3 * passes
