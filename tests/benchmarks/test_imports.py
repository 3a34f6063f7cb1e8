"""Every benchmark finds what it names."""

import importlib
from pathlib import Path

import pytest

import benchmarks

NAMES = sorted(path.stem for path in Path(benchmarks.__file__).parent.glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_imports(name):
    importlib.import_module(f"benchmarks.{name}")
