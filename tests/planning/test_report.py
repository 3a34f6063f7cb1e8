"""What a plan says, of figures that are made up."""

import json

import pytest

from rljax.chips import CHIPS, GB, GIB
from rljax.planning.collectives import Collective
from rljax.planning.footprint import Footprint
from rljax.planning.report import Plan, _short, as_json, limit, plan_lines, ranking_lines
from rljax.planning.roofline import Least, Load, Phase
from rljax.planning.topology import Compiled

LOAD = Load(8, 16, 32, 64, 48, {}, {}, {}, 1, 1, 1, 0)
GATHER = Collective("all-gather", "n", "", "", "bf16[64]", (0, 2), 2 * GB, (3,))
COMPILED = Compiled(
    seconds=9.0,
    collectives={"prefill": [GATHER], "decode": [], "score": [], "update": [GATHER]},
    held=10 * GIB,
    temporary=20 * GIB,
    peaks={"sample": (15 * GIB, []), "update": (20 * GIB, [])},
)
HELD = Footprint(
    {"policy": GIB}, {"weights to sample with": 8 * GIB, "KV cache": GIB}, {"gradients": GIB}
)
PHASES = {"decode": Phase(1e12, 5e9, 1.0, 5.0, 0.5), "update": Phase(4e12, 1e9, 2.0, 1.0, 0.5)}
PLAN = Plan(
    mesh={"data": 1, "fsdp": 4, "tensor": 2},
    chip=CHIPS["v5p"],
    compiler="TPU compiler",
    load=LOAD,
    held=HELD,
    compiled=COMPILED,
    phases=PHASES,
    least=Least(6e9, 5e9, 0.5e9, 0.0, 0.0),
)


def test_a_plan_in_words():
    text = "\n".join(plan_lines(PLAN))
    assert text.startswith("fsdp=4 x tensor=2 on 8 x v5p: compiled in 9 s by XLA's TPU compiler")
    assert "30.0: fits, with 65.0 to spare" in text
    assert "at the peak 25.0 with all else" in text
    assert "weights for sampling, once                6.00      6.00" in text
    assert "weights and gradients in training         6.00      5.50" in text
    assert "upper figures" not in text
    # 64 responses of 32 tokens in 7 seconds
    assert "293 tokens a second (36.6 a device), of 64 responses" in text


def test_a_plan_in_json():
    found = json.loads(json.dumps(as_json(PLAN)))
    assert found["seconds"] == 7.0
    assert found["collectives"][0]["axes"] == "fsdp"
    assert found["collectives"][0]["count"] == 3
    assert found["collectives"][0]["bytes"] == 6 * GB


@pytest.mark.parametrize(
    ("compiled", "compiler", "says"),
    [
        ({"temporary": 90 * GIB}, "TPU compiler", "100.0: does not fit, by 5.00"),
        ({"temporary": 90 * GIB}, "CPU compiler", "may not fit: 10.0 are counted, 100.0 is the"),
        ({"refused": "no room"}, "TPU compiler", "does not fit; the compiler: no room"),
    ],
)
def test_what_does_not_fit(compiled, compiler, says):
    plan = PLAN._replace(compiled=COMPILED._replace(**compiled), compiler=compiler)
    text = "\n".join(plan_lines(plan))
    assert says in text
    assert not plan.fits
    assert ("upper figures" in text) == (compiler == "CPU compiler")


def test_what_is_counted_may_be_too_much_by_itself():
    huge = HELD._replace(update={"gradients": 200 * GIB})
    text = "\n".join(plan_lines(PLAN._replace(held=huge)))
    assert "does not fit, by 106.0: 201.0 are counted alone" in text


def test_what_limits_a_step():
    assert limit(PLAN) == (
        "decode takes 71% of the step and is bound by reading 8.00 GiB of weights and 1.00 GiB of "
        "KV cache a token; what would help: more rows per device cost little."
    )
    slow = PHASES | {"update": Phase(4e12, 1e9, 2.0, 1.0, 50.0)}
    assert "update takes 91% of the step and is bound by links" in limit(PLAN._replace(phases=slow))


def test_a_ranking():
    """The quickest that fits first, as the search sorts them, and its lines for the config."""
    other = PLAN._replace(mesh={"data": 8, "fsdp": 1, "tensor": 1})
    lines = ranking_lines([PLAN, other], tried=20, held=7)
    assert lines[0].startswith("Of 20 meshes 7 hold the state")
    assert [line.split("  ")[0] for line in lines[4:6]] == ["fsdp=4 x tensor=2", "data=8"]
    assert lines[-1] == "mesh: {fsdp: 4, tensor: 2}"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0.00"), (0.000123, "1.2e-04"), (0.01, "0.01"), (9.994, "9.99"), (47.84, "47.8")],
)
def test_figures_keep_what_matters(number, text):
    assert _short(number) == text
    assert _short(12_345.6) == "12,346"


def test_what_was_not_compiled_has_no_time():
    refused = PLAN._replace(compiled=COMPILED._replace(refused="out of memory"))
    text = "\n".join(plan_lines(refused))
    assert "refused by XLA's" in text
    assert "does not fit; the compiler: out of memory" in text
    assert "what may make it fit" in text
    assert "tokens a second" not in text
