"""The ``rljax`` command."""

import importlib
import os
import sys

from rljax import __version__
from rljax.host.secrets import guard_tracebacks, say

USAGE = """\
usage: rljax launch [config.yaml] [key=value ...] [--dry-run]
       rljax export RUN --to DIR [--step N | --best] [--role ROLE] [--dtype DTYPE] [--merge]
       rljax eval CONFIG|RUN [key=value ...] [--step N | --best] [--out DIR]
       rljax doctor MODEL
       rljax plan [CONFIG] [key=value ...] [MESH ...] [--chip CHIP] [--devices N] [--search]
       rljax verify RUN
       rljax list [ROOM] [NAME] [--json]
       rljax --version

launch  train a language model
export  write a model of a run as a Hugging Face folder
eval    answer held-out prompts, and judge the answers
doctor  say what a model folder is, and what training it takes
plan    say what a run would take on devices that are not there
verify  check the checkpoints and records of a run
list    show every reward, shaping stage, algorithm, model family and recipe

`rljax COMMAND --help` tells more."""
COMMANDS = ("launch", "export", "eval", "doctor", "plan", "verify", "list")
MODULES = {"list": "catalogue"}  # of commands whose module is called otherwise


def main() -> int:
    """Dispatches to a subcommand, which alone is imported."""
    guard_tracebacks()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of an absent torch
        return importlib.import_module(f"rljax.{MODULES.get(command, command)}").main(arguments)
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    say(f'error: unknown command "{command}"\n{USAGE}')
    return 2
