"""A run of MLflow."""

import os
import re
import time
from pathlib import Path
from typing import Any

from rljax.errors import UserError
from rljax.host.listeners import Listener
from rljax.host.sinks.logged import Kind, Logged
from rljax.host.sinks.packages import needed
from rljax.trees import by_path

FILE = "mlflow.json"  # in the run's folder
AT_ONCE = 100  # parameters, as the server takes them
LONGEST = 500  # characters of one, as every server takes them
REFUSED = re.compile(r"[^\w\-. :/]", re.ASCII)  # in the name of a metric


def check_mlflow(tracking_uri: str | None) -> None:
    """Raises ``UserError`` if the client that is installed does not reach such a place."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    needed("mlflow")
    from mlflow import MlflowClient

    try:
        MlflowClient(tracking_uri=tracking_uri)
    except Exception as error:
        why = " ".join(str(error).split())
        raise UserError(
            "metrics.mlflow: name a server, as metrics.mlflow.tracking_uri=http://127.0.0.1:5000; "
            f"or pip install mlflow, all of it, for a database: {why}"
        ) from error


def mlflow_sink(
    folder: Path,
    config: dict[str, Any],
    *,
    experiment: str,
    tracking_uri: str | None,
    run_name: str | None,
) -> Listener:
    """``config`` becomes its parameters. In a name, an @ becomes ``_at_``.

    Steps that come again after a resume are not told again.
    """
    run = _Run(folder, config, experiment, tracking_uri, run_name or folder.resolve().name)
    return Listener(
        "metrics.mlflow",
        begin=run.begin,
        on_step=run.on_step,
        on_eval=run.on_eval,
        close=run.close,
    )


def mlflow_name(name: str) -> str:
    """A name as MLflow takes it.

    >>> mlflow_name("eval/pass@4")
    'eval/pass_at_4'
    """
    return REFUSED.sub("_", name.replace("@", "_at_"))


class _Run:
    def __init__(
        self, folder: Path, config: dict[str, Any], experiment: str, uri: str | None, name: str
    ):
        self._folder, self._config = folder, config
        self._experiment, self._uri, self._name = experiment, uri, name
        self._client: Any = None
        self._logged: Any = None
        self._id = ""

    def begin(self, step: int, metrics: dict[str, float], figures: dict[str, float]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        place = f"{self._client.tracking_uri}, {self._experiment}"
        self._logged = Logged(self._folder / FILE, place)
        run, is_new = self._logged.id(self._new_run)
        if not is_new:
            self._client.update_run(run, status="RUNNING")
        self._id = run

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self._log("step", step, metrics)

    def on_eval(self, step: int, figures: dict[str, float], samples: list[dict]) -> None:
        self._log("eval", step, {f"eval/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        if self._id:
            self._client.set_terminated(self._id)

    def _new_run(self) -> str:
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(self._experiment)
        where = known.experiment_id if known else self._client.create_experiment(self._experiment)
        run = self._client.create_run(where, run_name=self._name).info.run_id
        params = [
            Param(mlflow_name(name), str(value)[:LONGEST])
            for name, value in by_path(self._config).items()
        ]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(run, params=params[first : first + AT_ONCE])
        return run

    def _log(self, kind: Kind, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(mlflow_name(name), value, now, step) for name, value in values.items()]
        self._logged.once(kind, step, lambda: self._client.log_batch(self._id, metrics=metrics))
