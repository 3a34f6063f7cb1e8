"""A Prometheus of its own with the rules of ``launch/monitoring``, and what the dashboard asks."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.processes import ROOT

MONITORING = ROOT / "launch" / "monitoring"
RULES = MONITORING / "rljax_rules.yml"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "rljax.json"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SCRAPE_SECONDS = 1
START_SECONDS = 30


class Query(NamedTuple):
    """Of a panel of the dashboard."""

    panel: str
    text: str


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def quicker(rules: Mapping[str, Any], by: float) -> dict[str, Any]:
    """The rules, all of whose times are shorter by a factor; their bounds stay.

    >>> rule = {"expr": "rate(x[5m]) > 0.1", "for": "2m"}
    >>> quicker({"groups": [{"name": "a", "rules": [rule]}]}, 10)["groups"][0]["rules"]
    [{'expr': 'rate(x[30000ms]) > 0.1', 'for': '12000ms'}]
    """

    def shorter(match: re.Match) -> str:
        return f"{match[1]}{round(1000 * int(match[2]) * UNITS[match[3]] / by)}ms"

    def changed(rule: dict) -> dict:
        times = {"expr": re.sub(r"(\[|offset )(\d+)([smhd])\b", shorter, rule["expr"])}
        if "for" in rule:
            times["for"] = re.sub(r"()(\d+)([smhd])", shorter, rule["for"])
        return rule | times

    groups = [group | {"rules": [*map(changed, group["rules"])]} for group in rules["groups"]]
    return {"groups": groups}


class Prometheus:
    """Answers of a server, whose port on loopback is given."""

    def __init__(self, port: int):
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: Any) -> Any:
        """Of its API; raises ``ValueError`` with what it says of a query that it cannot read."""
        address = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {json.load(error)['error']}") from error

    def over(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """The series of a query from one time to another, each with ``metric`` and ``values``."""
        step = max(SCRAPE_SECONDS, (end - start) / 2000)
        return self.ask("query_range", query=query, start=start, end=end, step=step)["result"]

    def is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, tuple[str, list[int]]], by: float
) -> Iterator[Prometheus]:
    """A server that asks ``targets``, a path and ports by the names of their jobs, every second,
    and whose rules are ``quicker``. It is ended, whatever happens."""
    command = shutil.which("prometheus")
    if command is None:
        sys.exit("prometheus is not installed; Debian's package prometheus has it")
    rules = quicker(yaml.safe_load(RULES.read_text()), by)
    every = f"{round(1000 * SCRAPE_SECONDS)}ms"
    scraped = [
        {
            "job_name": job,
            "metrics_path": path,
            "static_configs": [{"targets": [f"localhost:{port}" for port in ports]}],
        }
        for job, (path, ports) in targets.items()
    ]
    settings = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": scraped,
    }
    folder.mkdir()
    for name, tree in (("rules.yml", rules), ("prometheus.yml", settings)):
        (folder / name).write_text(yaml.safe_dump(tree))
    port = free_port()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                command,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        answers, deadline = Prometheus(port), time.monotonic() + START_SECONDS
        while not answers.is_ready():
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"prometheus did not start: {(folder / 'log').read_text()}")
            time.sleep(0.1)
        yield answers
    finally:
        server.terminate()
        server.wait()


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a dashboard, within its rows too."""
    every = [[panel, *panel.get("panels", [])] for panel in dashboard["panels"]]
    return [panel for some in every for panel in some]


def queries(dashboard: Mapping[str, Any], rate_interval: str = "5m") -> list[Query]:
    """What the panels ask of Prometheus where everything is chosen in the dashboard's lists."""
    chosen = {"$__rate_interval": rate_interval}
    chosen |= {f"${v['name']}": v.get("allValue", "") for v in dashboard["templating"]["list"]}
    found = []
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            text = target["expr"]
            for name in sorted(chosen, key=len, reverse=True):
                text = text.replace(name, chosen[name])
            found.append(Query(panel["title"], text))
    return found


def names(query: str) -> set[str]:
    """The metrics of rljax that a query asks for; those of a pattern, one by one.

    >>> sorted(names('rljax_step > 0 unless {__name__=~"rljax_(policy|value)_grad_norm"}'))
    ['rljax_policy_grad_norm', 'rljax_step', 'rljax_value_grad_norm']
    """
    found = set()
    for pattern in re.findall(r'__name__=~"([^"]*)"', query):
        for one in pattern.split("|") if "(" not in pattern else [pattern]:
            before, _, rest = one.partition("(")
            inside, _, after = rest.partition(")")
            found |= {f"{before}{part}{after}" for part in inside.split("|")}
    text = re.sub(r'"[^"]*"', "", query)
    return found | set(re.findall(r"\brljax_\w+", text))
