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
    return held + fit.activations(load_of(built, ONE), built.mesh, number, on_cpu=True)


def test_as_many_as_the_rows_of_a_minibatch_divide_into(built):
    assert fit.choices(ONE, built, on_cpu=True) == [1, 2, 4, 8]
    config = ONE.model_copy(update={"update": ONE.update | {"buckets": 3}})
    assert fit.choices(config, built, on_cpu=True) == [4, 8]
    eight = tiny_build("warm_start=null", "update.microbatches=1", devices=8)
    assert fit.choices(ONE, eight, on_cpu=True) == [1]


@pytest.mark.parametrize(("rows_at_once", "numbers"), [(8, [1, 2, 4, 8]), (3, [4, 8]), (0.5, [8])])
def test_what_is_computed_at_once_stays_in_the_caches_of_a_cpu(
    built, monkeypatch, rows_at_once, numbers
):
    monkeypatch.setattr(fit, "CACHED", rows_at_once * load_of(built, ONE).columns)
    assert fit.choices(ONE, built, on_cpu=True) == numbers
    assert fit.choices(ONE, built, on_cpu=False) == [1, 2, 4, 8]


def test_where_memory_is_plenty_nothing_is_compiled(built, monkeypatch):
    monkeypatch.setattr(fit, "compiled_bytes", None)
    memory = int(counted(built, 1) / fit.CLEARLY) + 1
    found = fit.fewest(ONE, CONFIG.parent, built, memory, on_cpu=True)
    assert (found.microbatches, found.words[:8], found.fits) == (1, "by count", True)


def test_the_compiled_step_decides_where_the_count_cannot(built, monkeypatch):
    """What is compiled for two does not fit, for four it does."""
    memory = int(counted(built, 2) / fit.ROOM) + 1
    assert counted(built, 4) > fit.CLEARLY * memory
    compiled = []

    def bytes_of(built):
        compiled.append(built)
        return memory * (1 if len(compiled) == 1 else fit.ROOM)

    monkeypatch.setattr(fit, "compiled_bytes", bytes_of)
    found = fit.fewest(ONE, CONFIG.parent, built, memory, on_cpu=True)
    assert (found.microbatches, len(compiled), found.fits) == (4, 2, True)
    assert found.words.startswith("as compiled")
    assert all(other.tables is built.tables for other in compiled)


class Refused:
    """A program that the compiler does not compile."""

    def __init__(self, words):
        self.words = words

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.words)


def test_what_the_compiler_refuses_takes_too_much(built, monkeypatch):
    """As a TPU's does. Other faults are told."""
    memory = int(counted(built, 8) / fit.ROOM) + 1  # only the most are compiled

    def fewest(words):
        monkeypatch.setattr(fit, "lower_training", lambda built: (Refused(words), None))
        return fit.fewest(ONE, CONFIG.parent, built, memory, on_cpu=True)

    found = fewest("RESOURCE_EXHAUSTED: Ran out of memory")
    assert (found.microbatches, found.fits) == (8, False)
    assert found.words == "as compiled more than the 0.00 GiB there are"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fewest("INTERNAL: a fault")


def test_too_little_memory_is_refused(monkeypatch):
    monkeypatch.setattr(fit, "device_memory", lambda mesh: 1000)
    with pytest.raises(UserError, match=r"with the most, 8, a device needs by count .* GiB"):
        fit.built_to_fit(AUTO, CONFIG.parent, jax.devices()[:1], told=pytest.fail)


def test_the_count_is_near_what_the_compiler_says(built):
    compiled = fit.compiled_bytes(built)
    assert compiled / 3 < counted(built, 1) < 3 * compiled


def test_it_is_the_default():
    assert fit.is_auto(AUTO.model_copy(update={"update": {}}))
    assert not fit.is_auto(ONE)


def test_a_number_stays_and_a_run_that_goes_on_keeps_its_own(tmp_path):
    def fitted(config):
        found, _ = fit.built_to_fit(config, CONFIG.parent, jax.devices()[:1], told=pytest.fail)
        return found.update["microbatches"]

    assert fitted(ONE) == 1
    saved = {"update": {"microbatches": 4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert fitted(AUTO.model_copy(update={"run_dir": str(tmp_path)})) == 4


@pytest.mark.parametrize("number", [1, 4])
def test_a_new_run_is_told_its_number_and_reads_its_data_once(number, monkeypatch):
    told, read, build = [], [], fit.build

    def recorded(*given):
        read.append(build(*given))
        return read[-1]

    monkeypatch.setattr(fit, "build", recorded)
    monkeypatch.setattr(fit, "CACHED", 8 / number * load_of(tiny_build(), ONE).columns)
    config, built = fit.built_to_fit(AUTO, CONFIG.parent, jax.devices()[:1], told=told.append)
    assert config.update["microbatches"] == number
    assert told[0].startswith(f"update.microbatches={number}: by count 0.00 GiB of")
    assert built is read[-1]
    assert built.tables is read[0].tables
    assert len(read) == (1 if number == 1 else 2)


def test_simulated_devices_share_the_machine(built):
    memory = fit.device_memory(built.mesh)
    assert 2**26 < memory * jax.local_device_count() < 2**46
