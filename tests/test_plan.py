"""The command that plans, as a user meets it, on eight simulated devices or 64."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import SETTINGS

from rljax import plan
from rljax.planning import Compiled

ROOT = Path(__file__).parent.parent
TINY = [*SETTINGS, "warm_start=null"]


@pytest.fixture(autouse=True)
def eight_devices():
    """They are looked for here, so that the command has these, and makes no others."""
    assert len(jax.devices()) == 8


def planned(capsys, *arguments: str) -> str:
    assert plan.main([*TINY, *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_plan_of_the_embedded_task(capsys):
    """Figures that follow from the config, and those of the program that belong to them."""
    text = planned(capsys, "data=2,fsdp=2,tensor=2", "--chip", "H100", "--json")
    (found,) = json.loads(text)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 2}
    assert found["compiler"] == "CPU compiler"
    assert found["fits"]
    counted = found["memory"]["counted"]
    # 16 rows over 4, both heads over 2, 8 + 12 columns, 2 layers, keys and values of 8 float32s
    assert counted["sampling"]["KV cache"] == 4 * 1 * 20 * 2 * 2 * 8 * 4
    # 4 attention matrices of 16 x 16 and 3 of 16 x 32 in each of 2 layers, and the embedding, all
    # split in two; 5 norms whole
    weights = 4 * ((2 * (4 * 256 + 3 * 512) + 100 * 16) // 2 + 5 * 16)
    assert counted["sampling"]["weights to sample with"] == weights
    assert counted["state"]["optimizer"] > counted["state"]["policy"] + counted["state"]["value"]
    assert found["memory"]["held"] >= sum(counted["state"].values())
    assert set(found["memory"]["peaks"]) == {"sample", "score", "update"}
    assert max(found["memory"]["peaks"].values()) <= found["memory"]["temporary"]
    assert list(found["phases"]) == ["prefill", "decode", "score", "update"]
    assert all(phase["seconds"] > 0 for phase in found["phases"].values())
    sent = {(one["phase"], one["kind"], one["axes"]): one for one in found["collectives"]}
    # each of 12 tokens: a sum over tensor after the attention and the MLP of 2 layers, at least
    assert sent["decode", "all-reduce", "tensor"]["count"] >= 12 * 2 * 2
    moved = [one for one in found["collectives"] if one["phase"] == "decode" and one["bytes"] > 999]
    assert {one["axes"] for one in moved} == {"tensor"}  # no weights, for any token
    assert found["tokens"] == 16 * 12


def test_micro_batches_are_found_for_the_chip(capsys, monkeypatch):
    """16 rows in 2 minibatches over 2 devices: at most 4, and as few as its memory takes."""
    compiled = Compiled(1.0, {}, held=1000, temporary=2000, peaks={})
    monkeypatch.setattr(plan, "compile_step", lambda built: compiled)

    def found(memory):
        chip = plan.find_chip("h100")._replace(memory=memory)
        monkeypatch.setattr(plan, "find_chip", lambda name: chip)
        text = planned(capsys, "data=2", "--json", "update.microbatches=auto")
        return json.loads(text)[0]["microbatches"]

    assert found(10**9) == 1
    assert found(1000) == 4


def test_a_search_says_what_to_put_into_the_config(capsys, monkeypatch):
    """For people, with all about the best; here none is compiled."""
    phases = {name: [] for name in ("prefill", "decode", "score", "update")}
    compiled = Compiled(1.0, phases, held=1000, temporary=2000, peaks={})
    monkeypatch.setattr(plan, "compile_step", lambda built: compiled)
    text = planned(capsys, "--search", "--devices", "2", "--chip", "h100")
    rows = re.findall(r"^(\S.*?) +([\d.e-]+) +yes +[\d.e-]+ +[\d,]+$", text, re.MULTILINE)
    assert len(rows) == 3
    assert len({name for name, _ in rows}) == 3
    (line,) = re.findall(r"^mesh: \{.*\}$", text, re.MULTILINE)
    best = rows[0][0].replace(" x ", ", ").replace("=", ": ")
    assert line == f"mesh: {{{best}}}"
    for part in ("memory of a device", "sent by a device", "tokens a second", "bound by"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--chip", "v9"], 'no figures of a chip "v9"'),
        (["--chip", "v5e", "fsdp=12"], "v5e has no slice of 12 chip(s)"),
        (["fdsp=4", "--chip", "H100"], 'no axis of a mesh; did you mean "fsdp"?'),
        (["fsdp=0", "--chip", "H100"], "mesh sizes must be positive"),
        (["fsdp=4", "--devices", "6", "--chip", "H100"], "fsdp=4 is not one of 6 device(s)"),
        (["fsdp=3,tensor=-1", "--devices", "8", "--chip", "H100"], "is not one of 8 device(s)"),
        (["fsdp=16", "--chip", "H100"], "8 at most are simulated"),
        (["fsdp=2", "--search"], "there is nothing to find"),
        (["--devices", "0"], "a number above 0"),
        (["mesh.fdsp=2"], 'did you mean "fsdp"'),
        (["data=2,fsdp=4", "data.prompts_per_step=12", "--chip", "H100"], "8 or 16 would"),
        (
            ["models.policy.width=400000", "models.policy.heads=8", "--search", "--devices", "4"],
            "holds the state",
        ),
    ],
)
def test_mistakes_end_in_one_line(capsys, arguments, says):
    assert plan.main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rljax: error: ")
    assert says in error


LLAMA = """
import json, re
from pathlib import Path
from rljax.chips import find_chip
from rljax.planning import use_simulated_devices, as_json
use_simulated_devices()
from rljax.config import load_config
from rljax.plan import Planner
path = Path("configs/llama_8b.yaml")
planner = Planner(load_config(path, ["data.train.count=512"]), path.parent, find_chip("H100"))
plan = planner.plan(planner.whole({"data": 1, "fsdp": 32, "tensor": 2}, None))
text = [one.instruction.shape for program in plan.compiled.programs for one in program.walk()]
shapes = {shape for one in text for shape in re.findall(r"\\w+\\[([\\d,]+)\\]", one)}
print(json.dumps(as_json(plan) | {"shapes": [[int(n) for n in one.split(",")] for one in shapes]}))
"""


@pytest.fixture(scope="module")
def llama():
    """The 8B shape on 64 simulated devices, in a process that has as many."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", LLAMA],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_8b_on_64_devices_nothing_is_whole_on_one(llama):
    """Of [32 layers] and a vocabulary of 128256, split in two over tensor."""
    vocab, width, layers, rows, columns = 128256, 4096, 32, 1024, 2560
    for shape in llama["shapes"]:
        dims = sorted(shape)
        assert dims != [width, vocab], "the embedding or the head"
        assert not (layers in dims and width in dims and 14336 in dims), "a stack of matrices"
        assert not (vocab in dims and max(shape[:-1], default=0) > 512), "logits"
        assert not (vocab // 2 in dims and columns - 1 in dims), "logits of whole rows"
        whole_cache = layers * rows * 8 * columns * 128
        assert math.prod(shape) < whole_cache / 16, f"{shape}: a device has a 64th of the cache"


def test_8b_on_64_devices_sends_little_more_than_it_has_to(llama):
    """On simulated devices: in float32, and gradients by all-reduce, four times and twice."""
    sent, least = {}, llama["least_bytes"]
    for one in llama["collectives"]:
        within = "tensor" if one["axes"] == "tensor" else "shards"
        key = (one["phase"], within)
        sent[key] = sent.get(key, 0) + one["bytes"]
    assert sent["prefill", "shards"] < 2.2 * least["sampling_weights"]
    assert sent.get(("decode", "shards"), 0) < 1e6  # no weights
    training = sent["update", "shards"] + sent["score", "shards"]
    assert training < 3 * (least["gathered"] + least["reduced"])
    assert sent["decode", "tensor"] < 2.2 * least["decoded"]


def test_8b_on_64_devices_fits(llama):
    memory = llama["memory"]
    assert llama["fits"]
    assert memory["held"] < 2 * 2**30
    assert memory["temporary"] < 40 * 2**30
