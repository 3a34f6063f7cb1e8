"""The ``rljax`` command."""

import sys

from rljax import __version__

USAGE = """\
usage: rljax launch [config.yaml] [key=value ...] [--dry-run]
       rljax --version

launch  train a language model by reinforcement; see `rljax launch --help`"""


def main() -> int:
    """Dispatches to a subcommand, which alone is imported."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command == "launch":
        from rljax import launch

        return launch.main(arguments)
    if command == "--version":
        print(__version__)
        return 0
    if command in ("--help", "-h"):
        print(USAGE)
        return 0
    print(f'rljax: error: unknown command "{command}"\n{USAGE}', file=sys.stderr)
    return 2
