"""The ``rljax`` command."""

import importlib
import os
import sys

from rljax import __version__
from rljax.host.secrets import guard_tracebacks, say

USAGE = """\
usage: rljax launch [config.yaml] [key=value ...] [--dry-run]
       rljax list [ROOM] [NAME] [--json]
       rljax plan [CONFIG] [key=value ...] [MESH ...] [--chip CHIP] [--devices N] [--search]
       rljax doctor MODEL
       rljax analyze [RUN ...] [--log-dir DIR] [--metric a,b,c] [--check] [--compare] [--out DIR]
       rljax samples RUN [--step N | --follow] [--number K] [--wrong] [--verdict VERDICT]
       rljax verify RUN
       rljax eval CONFIG|RUN [key=value ...] [--step N | --best] [--out DIR]
       rljax score FILE [key=value ...] [--config CONFIG|RUN] [--out FILE]
       rljax export RUN --to DIR [--step N | --best] [--role ROLE] [--dtype DTYPE] [--merge]
       rljax serve RUN|FOLDER|HUB_ID [--step N | --best] [--port N] [--rows N] [...]
       rljax --version

launch   train a language model
list     show every reward, shaping stage, algorithm, model family and recipe
plan     say what a run would take on devices that are not there
doctor   say what a model folder is, and what training it takes
analyze  show recorded runs side by side: pictures, a report, a verdict, differences
samples  show what a run answered to held-out prompts, live if asked
verify   check the checkpoints and records of a run
eval     answer held-out prompts, and judge the answers
score    apply a config's rewards and length policy to a file of responses
export   write a model of a run as a Hugging Face folder
serve    answer over OpenAI's API, for trying a policy

`rljax COMMAND --help` tells more."""
COMMANDS = (
    *("launch", "list", "plan", "doctor", "analyze", "samples", "verify", "eval", "score"),
    *("export", "serve"),
)
MODULES = {"list": "catalogue"}  # of commands whose module is called otherwise
UNREAD = 141  # what a shell has for a command whose reader left: 128 + SIGPIPE


def main() -> int:
    """Dispatches to a subcommand, which alone is imported."""
    guard_tracebacks()
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        if {"--help", "-h"} & set(arguments):
            from rljax.options import OPTIONS  # the import of their modules takes seconds

            if command in OPTIONS:
                OPTIONS[command]().print_help()
                return 0
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of an absent torch
        try:
            module = importlib.import_module(f"rljax.{MODULES.get(command, command)}")
            return module.main(arguments)
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            if command == "launch":  # a run does not end in silence
                raise
            from rljax.host.terminal import reader_left  # whose import takes time

            reader_left()
            return UNREAD
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    say(f'error: unknown command "{command}"\n{USAGE}')
    return 2
