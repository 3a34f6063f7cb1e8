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
       rljax samples RUN [--step N | --follow] [--number K] [--wrong] [--verdict VERDICT]
       rljax score FILE [key=value ...] [--config CONFIG|RUN] [--out FILE]
       rljax doctor MODEL
       rljax plan [CONFIG] [key=value ...] [MESH ...] [--chip CHIP] [--devices N] [--search]
       rljax verify RUN
       rljax analyze [RUN ...] [--log-dir DIR] [--metric a,b,c] [--check] [--compare] [--out DIR]
       rljax serve RUN|FOLDER|HUB_ID [--step N | --best] [--port N] [--rows N] [...]
       rljax --version

launch  train a language model
export  write a model of a run as a Hugging Face folder
eval    answer held-out prompts, and judge the answers
samples show what a run answered to held-out prompts, live if asked
score   apply a config's rewards and length policy to a file of responses
doctor  say what a model folder is, and what training it takes
plan    say what a run would take on devices that are not there
verify  check the checkpoints and records of a run
analyze show recorded runs side by side: pictures, a report, a verdict, differences
serve   answer over OpenAI's API, for trying a policy

`rljax COMMAND --help` tells more."""
COMMANDS = (
    *("launch", "export", "eval", "samples", "score", "analyze", "serve", "doctor", "plan"),
    "verify",
)


def main() -> int:
    """Dispatches to a subcommand, which alone is imported."""
    guard_tracebacks()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of an absent torch
        try:
            return importlib.import_module(f"rljax.{command}").main(arguments)
        except KeyboardInterrupt:
            return 130
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    say(f'error: unknown command "{command}"\n{USAGE}')
    return 2
