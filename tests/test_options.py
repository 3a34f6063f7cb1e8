"""The help of every command: at once, and the command's own."""

import subprocess
import sys

import pytest

from rljax import cli
from rljax.options import OPTIONS

HEAVY = {"flax", "jax", "matplotlib", "orbax", "transformers"}
HELP = """
import sys
from rljax import cli
for command in cli.COMMANDS:
    sys.argv = ["rljax", command, "--help"]
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 0
    if command in {commands}:
        assert not {heavy} & set(sys.modules), command
"""


def test_help_imports_nothing_that_takes_time():
    """In one process: those of the other commands come last, as they import their modules."""
    first = "cli.COMMANDS = sorted(cli.COMMANDS, key=lambda name: name not in {commands})"
    code = HELP.replace("for command", f"{first}\nfor command", 1)
    code = code.format(commands=set(OPTIONS), heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage:") == len(cli.COMMANDS)


@pytest.mark.parametrize("command", OPTIONS)
def test_options_belong_to_a_command(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rljax", command, "-h"])
    assert command in cli.COMMANDS
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith(
        "usage: " + ("python -m" if command == "launch" else f"rljax {command}")
    )
