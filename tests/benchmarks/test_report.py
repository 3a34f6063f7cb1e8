"""How benchmarks measure and tell."""

import doctest
import json
import types

import jax
import pytest

from benchmarks import nvidia, report, roofline, scaling, trace


@pytest.mark.parametrize("module", [report, trace])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("rows", [[{"name": "a", "n": 1}], [{"n": 1.5}, {"n": None}]])
def test_json_is_the_last_line(rows, capsys):
    report.report("title", rows)
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert found["rows"] == rows
    assert jax.__version__ in found["machine"]
    assert "title" in out


def test_median_is_of_the_calls_behind_the_first(monkeypatch):
    """Calls that take 9, 1, 5 and 2 seconds."""
    ends = iter([0, 1, 10, 15, 20, 22])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(ends))
    calls = []
    assert roofline.median_seconds(lambda: calls.append(1), repeats=3) == 2
    assert len(calls) == 4


def test_peak_counts_the_flops_of_its_products(monkeypatch):
    """Of [2, 8] x [8, 8] in a second: 256 FLOPs, as often as one call multiplies."""
    monkeypatch.setattr(roofline, "median_seconds", lambda call, repeats: call() is None or 1.0)
    monkeypatch.setattr(roofline, "LOOP_FLOPS", {"cpu": 2560})
    assert roofline.matmul_peak.__wrapped__("float32", 8, rows=2) == 2560


def test_efficiency_is_of_the_processor():
    """Kinds of communication that no step has are left out."""
    found = {
        1: {"cpu_seconds": 3.0},
        2: {"cpu_seconds": 4.0, "all-reduce": 3, "all-reduce bytes": 2_000_000},
    }
    one, two = scaling.as_rows(found)
    assert (one["efficiency"], one["all-reduce"]) == (1.0, 0)
    assert (two["efficiency"], two["all-reduce"], two["all-reduce, MB"]) == (0.75, 3, 2.0)
    assert "all-gather" not in two


def test_events_are_those_of_devices_if_there_are_any():
    def plane(name, line, *events):
        line = types.SimpleNamespace(
            name=line, events=[types.SimpleNamespace(name=n, duration_ns=t) for n, t in events]
        )
        return types.SimpleNamespace(name=name, lines=[line])

    host = plane("/host:CPU", "tf_XLAEigen/1", ("dot.1", 2e9), ("ThunkExecutor::Execute", 9e9))
    device = plane("/device:GPU:0", "Stream #1", ("gemm", 1e9))
    other = plane("/device:GPU:0", "Steps", ("all of it", 5e9))
    assert trace.events(types.SimpleNamespace(planes=[host])) == [("dot.1", 2.0)]
    assert trace.events(types.SimpleNamespace(planes=[host, device, other])) == [("gemm", 1.0)]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nvidia"])
    nvidia.main()
    assert capsys.readouterr().out == "no NVIDIA GPU here, but cpu: nothing is measured\n"
