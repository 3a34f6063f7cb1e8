"""A run of Weights & Biases."""

import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rljax import resolve
from rljax.errors import UserError
from rljax.host.listeners import Listener
from rljax.host.sinks.logged import Logged
from rljax.host.sinks.packages import needed

WHERE = "metrics.wandb"
FILE = "wandb.json"  # in the run's folder
OWN = ("config", "dir", "fork_from", "id", "reinit", "resume", "resume_from", "settings")
PRIVATE = {  # neither what is printed nor the command line is for it to keep
    **{"console": "off", "silent": True, "disable_code": True, "disable_git": True},
    **{"x_disable_meta": True},
}
# In seconds; what is not uploaded by then `wandb sync` can.
PATIENCE = {"finish_timeout": 10.0, "finish_timeout_raises": True}


def check_wandb(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``wandb.init``, checked. Raises ``UserError``."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    wandb = needed("wandb")
    for name in OWN:
        if name in given:
            raise UserError(f"{WHERE}.{name}: a run sets it by itself")
    keywords = resolve.arguments(wandb.init, given, context={}, where=WHERE)
    if (given.get("mode") or os.environ.get("WANDB_MODE") or "online") != "online":
        return keywords
    try:
        known = wandb.login(prompt=False, verify=False)  # later on it would ask the terminal
    except Exception as error:
        raise UserError(f"{WHERE}: {' '.join(str(error).split())}") from error
    if not known:
        raise UserError(f"{WHERE}: nobody is logged in; wandb login, or {WHERE}.mode=offline")
    return keywords


def wandb_sink(folder: Path, config: dict[str, Any], keywords: Mapping[str, Any]) -> Listener:
    """Its files lie in the run's folder; ``config`` is shown with it.

    Steps that come again after a resume are not told again.
    """
    run = _Run(folder, config, {"name": folder.resolve().name, **keywords})
    return Listener(
        WHERE, begin=run.begin, on_step=run.on_step, on_eval=run.on_eval, close=run.close
    )


class _Run:
    def __init__(self, folder: Path, config: dict[str, Any], keywords: dict[str, Any]):
        self._folder, self._config, self._keywords = folder, config, keywords
        self._run: Any = None
        self._logged: Any = None

    def begin(self, step: int, metrics: dict[str, float], figures: dict[str, float]) -> None:
        wandb = needed("wandb")
        place = f"{self._keywords.get('entity')}, {self._keywords.get('project')}"
        self._logged = Logged(self._folder / FILE, place)
        own = sys.excepthook, sys.exit
        wandb.setup()  # has tracebacks printed as they are, with what is secret in them
        sys.excepthook, sys.exit = own
        self._run = wandb.init(
            id=self._logged.id(lambda: uuid.uuid4().hex[:8])[0],
            resume="allow",
            dir=self._folder,
            config=self._config,
            settings=wandb.Settings(**PRIVATE, **PATIENCE),
            **self._keywords,
        )

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self._logged.once("step", step, lambda: self._run.log(metrics, step=step))

    def on_eval(self, step: int, figures: dict[str, float], samples: list[dict]) -> None:
        named = {f"eval/{name}": value for name, value in figures.items()}
        self._logged.once("eval", step, lambda: self._run.log(named, step=step))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
