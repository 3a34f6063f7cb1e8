"""What ``benchmarks.peers`` makes of what the frameworks print; none of them is run."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from rich.console import Console

from benchmarks.peers import rljax_step
from benchmarks.peers.__main__ import WIDTH
from benchmarks.peers.figures import OURS, Pair, Run, compared, parse, table
from benchmarks.peers.inputs import make_inputs
from benchmarks.peers.job import MEASURED, ROWS, Job, read_prompts, report
from rljax.config import load_config
from rljax.fit import built_to_fit
from rljax.starts import load_start

PACKAGES = {"jax": "0.10.2"}


def printed(ends: list[float]) -> str:
    measured = {"ends": ends, "response_tokens": 64, "peak_bytes": 2**20, "packages": PACKAGES}
    return f"a warning\n{MEASURED}{json.dumps(measured)}\nanother\n"


def run_of(step_seconds: float | None, first_seconds: float, peak_bytes: int = 2**20) -> Run:
    return Run(step_seconds, first_seconds, 64, peak_bytes, PACKAGES)


def test_a_steady_step_is_the_median_after_the_warm_up():
    run = parse(printed([107.0, 109.0, 110.0, 114.0, 116.0]), 100.0, warmup=2)
    assert run == Run(2.0, 7.0, 64, 2**20, PACKAGES)  # of 1, 4 and 2; not the 2 of the second step


def test_a_run_of_one_step_has_a_first_step_alone():
    run = parse(printed([103.5]), 100.0, warmup=2)
    assert (run.step_seconds, run.first_seconds) == (None, 3.5)


@pytest.mark.parametrize(
    ("output", "why"),
    [("Killed\n", "no measurement"), ("", "no measurement"), (printed([]), "no step")],
)
def test_a_run_that_measured_nothing_is_refused(output, why):
    with pytest.raises(ValueError, match=why):
        parse(output, 0.0, warmup=2)


def test_what_is_reported_can_be_parsed(capsys):
    report([1.0, 3.0, 5.0], 64, ["jax"])
    run = parse(capsys.readouterr().out, 0.5, warmup=2)
    assert (run.step_seconds, run.first_seconds, run.response_tokens) == (2.0, 0.5, 64)
    assert run.peak_bytes > 2**20  # of this process
    assert run.packages.keys() == {"jax"}


def pairs(*steps: float, first: float, warm: float | None) -> list[Pair]:
    return [
        Pair(run_of(step, first), None if warm is None else run_of(None, warm)) for step in steps
    ]


def test_ratios_are_between_runs_of_one_repeat():
    runs = {
        OURS: pairs(1.0, 2.0, 4.0, first=10.0, warm=5.0),
        "trl": pairs(20.0, 20.0, 20.0, first=15.0, warm=None),
    }
    figures = compared(runs)
    trl = figures["trl"]
    assert trl["step_seconds"] == 20.0
    assert trl["ratios"]["step_seconds"] == {"median": 10.0, "low": 5.0, "high": 20.0}
    assert trl["ratios"]["first_seconds_cold"]["median"] == 1.5
    assert trl["ratios"]["first_seconds_warm"]["median"] == 3.0  # it has no other first step
    assert trl["tokens_per_second"] == 64 / 20.0
    ours = figures[OURS]
    assert ours["ratios"]["step_seconds"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert (ours["step_seconds"], ours["first_seconds_warm"]) == (2.0, 5.0)


def test_without_ours_there_are_no_ratios():
    assert "ratios" not in compared({"trl": pairs(2.0, first=9.0, warm=None)})["trl"]


def test_the_peak_is_the_highest_of_the_runs():
    runs = [Pair(run_of(1.0, 2.0, peak), None) for peak in (300, 500, 400)]
    assert compared({OURS: runs})[OURS]["peak_bytes"] == 500


def test_the_table_says_what_was_not_run():
    figures = compared(
        {OURS: pairs(1.0, first=9.0, warm=4.0), "tunix": pairs(3.0, first=27.0, warm=8.0)}
    )
    out = io.StringIO()
    console = Console(file=out, width=WIDTH)
    console.print(table("grpo, small", figures, {"trl": "No module named torch"}))
    (tunix,) = (line for line in out.getvalue().splitlines() if "tunix" in line)
    assert [cell.strip() for cell in tunix.split("│")[1:-1]] == [
        *("tunix", "3.000", "3.00 (3.00-3.00)", "21"),
        *("27.0", "3.00 (3.00-3.00)", "8.0", "2.00 (2.00-2.00)", "1"),
    ]
    assert "trl was not run: No module named torch" in out.getvalue()


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_inputs_fit_the_shape(algorithm, tmp_path):
    """rljax can be built on them, every prompt is as long as it is to be, and no special token can
    be drawn."""
    job = Job(algorithm, "small", 2, tmp_path)
    make_inputs(job)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(rljax_step.config(job)))
    config, built = built_to_fit(load_config(path, []), tmp_path, jax.devices()[:1], told=print)
    assert config.update["microbatches"] == 8  # of 4 rows, 384 tokens
    decoder = built.decoder
    assert (decoder.layers, decoder.width, decoder.mlp_width) == (4, 256, 704)
    assert (decoder.heads, decoder.kv_heads, decoder.head_dim) == (4, 2, 64)
    assert built.train.optimizers.keys() == {"policy"} | (
        {"value"} if algorithm == "ppo" else set()
    )
    tokens = jnp.array(built.tokenizer(read_prompts(job))["input_ids"])
    assert tokens.shape == (2 * ROWS // built.group_rows, job.shape.prompt_tokens)
    special = [built.tokenizer.pad_token_id, *built.eos_ids]
    assert len(np.unique(tokens, axis=0)) == len(tokens)
    assert not np.isin(tokens, special).any()
    with jax.set_mesh(built.mesh):
        model = built.networks.starts["policy"].model
        params = load_start(built, "policy", 0, lambda *_, **__: None)
        hidden, _ = model.apply(params, tokens[:2], jnp.ones((2, tokens.shape[1]), bool))
        probabilities = jax.nn.softmax(model.head(params, hidden))
    assert probabilities[..., special].max() == 0  # in float32
    assert probabilities.max() < 0.1  # and the others are about as likely
