"""How many micro-batches fit into memory: counted, compiled where that decides, and kept."""

import jax
import pytest
import yaml
from tiny import CONFIG, SETTINGS, tiny_build

from rljax import fit
from rljax.config import load_config
from rljax.errors import UserError
from rljax.planning import footprint, load_of

# 16 rows in 2 minibatches.
AUTO = load_config(CONFIG, [*SETTINGS, "warm_start=null", "update.microbatches=auto"])
ONE = fit.with_microbatches(AUTO, 1)


@pytest.fixture(scope="module")
def built():
    return tiny_build("warm_start=null", "update.microbatches=1")


def counted(built, number):
    held = footprint(built, built.mesh).least
    return held + fit.activations(load_of(built, ONE), built.mesh, number)


def test_as_many_as_the_rows_of_a_minibatch_divide_into(built):
    assert fit.choices(ONE, built) == [1, 2, 4, 8]
    config = ONE.model_copy(update={"update": ONE.update | {"buckets": 3}})
    assert fit.choices(config, built) == [4, 8]
    eight = tiny_build("warm_start=null", "update.microbatches=1", devices=8)
    assert fit.choices(ONE, eight) == [1]


@pytest.mark.parametrize(("rows_at_once", "numbers"), [(8, [1, 2, 4, 8]), (3, [4, 8]), (0.5, [8])])
def test_what_is_computed_at_once_stays_in_the_caches_of_a_cpu(
    built, monkeypatch, rows_at_once, numbers
):
    monkeypatch.setattr(fit, "CACHED", rows_at_once * load_of(built, ONE).columns)
    assert fit.choices(ONE, built) == numbers
    monkeypatch.setattr(fit, "_on_cpu", lambda mesh: False)
    assert fit.choices(ONE, built) == [1, 2, 4, 8]


def test_where_memory_is_plenty_nothing_is_compiled(built, monkeypatch):
    monkeypatch.setattr(fit, "compiled_bytes", None)
    memory = int(counted(built, 1) / fit.CLEARLY) + 1
    found, words = fit.fewest(ONE, CONFIG.parent, built, memory)
    assert (found, words[:8]) == (1, "by count")


def test_the_compiled_step_decides_where_the_count_cannot(built, monkeypatch):
    """What is compiled for two does not fit, for four it does."""
    memory = int(counted(built, 2) / fit.ROOM) + 1
    assert counted(built, 4) > fit.CLEARLY * memory
    compiled = []

    def bytes_of(built):
        compiled.append(built)
        return memory * (1 if len(compiled) == 1 else fit.ROOM)

    monkeypatch.setattr(fit, "compiled_bytes", bytes_of)
    found, words = fit.fewest(ONE, CONFIG.parent, built, memory)
    assert (found, len(compiled)) == (4, 2)
    assert words.startswith("as compiled")


def test_too_little_memory_is_refused(built):
    with pytest.raises(UserError, match=r"with the most, 8, a device needs by count .* GiB"):
        fit.fewest(ONE, CONFIG.parent, built, memory=1000)


def test_the_count_is_near_what_the_compiler_says(built):
    compiled = fit.compiled_bytes(built)
    assert compiled / 3 < counted(built, 1) < 3 * compiled


def test_a_number_stays_and_a_run_that_goes_on_keeps_its_own(tmp_path):
    report = pytest.fail
    assert fit.fitted(ONE, CONFIG.parent, report) is ONE
    saved = {"update": {"microbatches": 4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    begun = AUTO.model_copy(update={"run_dir": str(tmp_path)})
    assert fit.fitted(begun, CONFIG.parent, report).update["microbatches"] == 4


def test_a_new_run_is_told_its_number():
    told = []
    found = fit.fitted(AUTO, CONFIG.parent, told.append)
    assert found.update["microbatches"] == 1
    assert told[0].startswith("update.microbatches=1: by count 0.00 GiB of")


def test_simulated_devices_share_the_machine(built):
    memory = fit.device_memory(built.mesh)
    assert 2**26 < memory * jax.local_device_count() < 2**46
