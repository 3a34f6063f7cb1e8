"""FLOPs worked out by hand, and what a step says of its speed."""

from types import SimpleNamespace

import pytest
from loads import LAYER, LOAD, MODEL, PARAMETERS
from tiny import CONFIG, SETTINGS, tiny_build

from rljax.chips import CHIPS, TERA
from rljax.config import load_config
from rljax.planning import step_flops, step_speed, update_flops, utilisation

TRAINED = {"policy": MODEL, "value": MODEL}
LEARNED = {"policy": 100_000, "value": 7}
LOAD = LOAD._replace(trained=TRAINED, learned=LEARNED, passes=2, minibatches=4)
PARAMETERS = PARAMETERS | {"value": 100_000}


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
