"""What of a run's config may change when it goes on."""

import pytest

from rljax.changes import changes, check_same_run
from rljax.config import load_config, resolved, seconds
from rljax.config_file import builtin_config
from rljax.errors import UserError

CONFIG = builtin_config("addition.yaml")


def config(*overrides):
    return resolved(load_config(CONFIG, list(overrides)))


HARMLESS = [
    "run_dir=elsewhere",
    "mesh.fsdp=2",
    "evaluation.every_steps=3",
    "checkpoint.keep=9",
    "time_limit=1h",
    "update.microbatches=2",
    "update.buckets=4",
    "halves=true",
    "sampling.slots=4",
    "sampling.prompt_lookup=4",
    "models.policy.remat=dots",
    "data.eval=other.jsonl",
    "metrics.tensorboard=true",
    "callbacks.on_step=[mine:fn]",
]
LEARNED = [
    "steps=7",
    "seed=3",
    "algorithm.clip_low=0.3",
    "shaping.length.weight=0.5",
    "rewards.correct.marker=x",
    "optimizer.policy.learning_rate=1e-5",
    "data.prompts_per_step=64",
    "sampling.temperature=0.5",
    "models.policy.dtype=bfloat16",
    "length.max_tokens=50",
]
HELD = [
    "models.policy.rope_base=1000",
    "models.policy.layers=4",
    "models.policy.lora={rank: 2}",
    "tokenizer=other",
    "optimizer.policy.mu_dtype=bfloat16",
    "staleness=1",
]


@pytest.mark.parametrize("change", HARMLESS)
def test_what_is_harmless_goes_on_and_is_told(change):
    (told,) = check_same_run(config(), config(change), "run")
    assert told.startswith(change.partition("=")[0])


@pytest.mark.parametrize("change", LEARNED)
def test_what_is_learned_changes_only_if_that_is_allowed(change):
    name = change.partition("=")[0]
    with pytest.raises(UserError, match=f"another config .{name} .* --allow-config-change"):
        check_same_run(config(), config(change), "run")
    (told,) = check_same_run(config(), config(change), "run", allowed=True)
    assert told.startswith(name)


@pytest.mark.parametrize("change", HELD)
def test_what_a_checkpoint_holds_cannot_change(change):
    name = change.partition("=")[0]
    said = f"another model, tokenizer, optimizer state or staleness .{name}"
    with pytest.raises(UserError, match=said):
        check_same_run(config(), config(change), "run", allowed=True)


def test_sampling_in_eight_bits_is_another_policy_with_a_correction_of_its_own():
    with pytest.raises(UserError, match=r"correction.*sampling\.quantization None -> int8"):
        check_same_run(config(), config("sampling.quantization=int8"), "run")


def test_every_pattern_is_of_a_key():
    """Each key of the embedded task falls under exactly one of the three."""
    found = changes(config(*HARMLESS, *LEARNED), config())
    assert [len(part) for part in found] == [len(HARMLESS), len(LEARNED), 0]


def test_a_folder_may_have_moved():
    old, new = ({"models": {"policy": {"fn": path}}} for path in ("/a/model", "/b/model"))
    assert changes(old, new).learned == ["models.policy.fn /a/model -> /b/model"]
    new = {"models": {"policy": {"fn": "llama"}}}
    assert changes(old, new).held == ["models.policy.fn /a/model -> llama"]


@pytest.mark.parametrize("text", ["", "h", "12x", "1:2", "1:00", "-5", "1e3"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="a duration is"):
        seconds(text)


def test_a_time_limit_is_seconds():
    # YAML itself reads 2:00:00 as a number of seconds.
    limits = ("90m", "2:00:00", "00:30:00", "45")
    assert [config(f"time_limit={limit}")["time_limit"] for limit in limits] == [
        5400,
        7200,
        1800,
        45,
    ]
    for wrong in ("soon", "true"):
        with pytest.raises(UserError, match=r"time_limit: a duration is"):
            config(f"time_limit={wrong}")
    with pytest.raises(UserError, match=r"time_limit: .*greater than 0"):
        config("time_limit=0")
