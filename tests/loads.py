"""What a small step has to do, for times and FLOPs worked out by hand."""

from rljax.models.families import llama
from rljax.planning.roofline import Load

MODEL = llama(
    vocab_size=1000,
    layers=2,
    width=64,
    heads=4,
    kv_heads=2,
    mlp_width=128,
    dtype="bfloat16",
    remat="full",
).decoder
# Matrices of a layer: 64 x 16 x (4 + 2 + 2 + 4) of attention, 3 x 64 x 128 of the MLP.
LAYER = 12_288 + 24_576
LOAD = Load(
    prompts=4,
    prompt_tokens=10,
    max_tokens=20,
    rows=16,
    columns=30,
    trained={"policy": MODEL},
    learned={"policy": 100_000},
    scoring={"reference": MODEL},
    passes=1,
    minibatches=1,
    microbatches=2,
    sampled_bytes=200_000,
)
PARAMETERS = {"policy": 100_000, "reference": 100_000}
