"""FLOPs worked out by hand, and what a step says of its speed."""

from types import SimpleNamespace

import pytest
from tiny import CONFIG, SETTINGS, tiny_build

from rljax.chips import CHIPS, TERA
from rljax.config import load_config
from rljax.models.families import llama
from rljax.planning import step_flops, step_speed, update_flops, utilisation
from rljax.planning.roofline import Load

MODEL = llama(
    vocab_size=1000, layers=2, width=64, heads=4, kv_heads=2, mlp_width=128, remat="full"
).decoder
# Matrices of a layer: 64 x 16 x (4 + 2 + 2 + 4) of attention, 3 x 64 x 128 of the MLP.
LAYER = 12_288 + 24_576
LOAD = Load(
    prompts=4,
    prompt_tokens=10,
    max_tokens=20,
    rows=16,
    columns=30,
    trained={"policy": MODEL, "value": MODEL},
    learned={"policy": 100_000, "value": 7},
    scoring={"reference": MODEL},
    passes=2,
    minibatches=4,
    microbatches=2,
    sampled_bytes=0,
)
PARAMETERS = {"policy": 100_000, "value": 100_000, "reference": 100_000}


def test_the_flops_of_a_step():
    """A critic that only adapters of are learned has half the pass backward; what remat computes
    again is not counted."""
    layers = 2 * (LAYER + 2 * 64 * 30)
    policy, value = (2 * 16 * 30 * (layers + head) for head in (64 * 1000, 64))
    update = 2 * (3 * policy + 2 * value)
    assert update_flops(LOAD, PARAMETERS) == update
    prefill = 2 * 4 * 10 * 2 * (LAYER + 2 * 64 * 10)
    decode = policy * 20 / 30
    assert step_flops(LOAD, PARAMETERS) == pytest.approx(prefill + decode + policy + update)


def test_what_is_given_is_not_sampled():
    given = LOAD._replace(prompts=0, prompt_tokens=0, max_tokens=0, scoring={})
    assert step_flops(given, PARAMETERS) == update_flops(given, PARAMETERS)


def test_the_speed_of_a_step(monkeypatch):
    """Half the tokens are drawn: what is behind them does not count. A CPU has no known peak."""
    monkeypatch.setattr(utilisation, "load_of", lambda *_: LOAD)
    monkeypatch.setattr(utilisation, "parameter_counts", lambda *_: PARAMETERS)

    def speed_on(kind):
        devices = SimpleNamespace(flat=[SimpleNamespace(device_kind=kind)])
        mesh = SimpleNamespace(devices=devices, size=8)
        return step_speed(SimpleNamespace(mesh=mesh), None)({"response_tokens": 160.0}, 0.5)

    half = LOAD._replace(max_tokens=10, columns=20)
    rate = step_flops(half, PARAMETERS) / 0.5 / 8
    assert speed_on("cpu") == {"perf/tflops_per_device": pytest.approx(rate / TERA)}
    assert speed_on("TPU v5 lite")["perf/mfu"] == pytest.approx(rate / CHIPS["v5e"].flops)


def test_the_speed_of_a_real_step():
    """Twice the time, half the speed; twice the tokens of the responses, less than twice."""
    speed = step_speed(tiny_build(), load_config(CONFIG, SETTINGS))
    one, slow, long = (
        speed({"response_tokens": tokens}, seconds)["perf/tflops_per_device"]
        for tokens, seconds in ((40.0, 1.0), (40.0, 2.0), (80.0, 1.0))
    )
    assert one == pytest.approx(2 * slow)
    assert one < long < 2 * one
