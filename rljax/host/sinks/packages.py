"""The packages of sinks, which a run needs only if it is told to use them."""

import importlib
from types import ModuleType

from rljax.errors import UserError


def needed(package: str) -> ModuleType:
    """The package of a sink. Raises ``UserError`` with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"metrics.{package}: {' '.join(str(error).split())}; pip install 'rljax[{package}]'"
        ) from error
