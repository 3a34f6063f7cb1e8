"""Alert rules, dashboard and their settings: that they agree with what rljax tells, and when it is
healthy."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from benchmarks.scraped import DASHBOARD, MONITORING, ROOT, RULES, names, panels, queries, quicker
from rljax.health import ENOUGH_IN_BAND, SIGNS
from rljax.metrics import METRICS, PREFIX, prometheus_name

DOCS = (ROOT / "docs" / "monitoring.md").read_text()
TESTS = MONITORING / "rljax_rules_test.yml"
GROUPS = {group["name"]: group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"]}
ALERTS = {rule["alert"]: rule for rules in GROUPS.values() for rule in rules}
BOARD = json.loads(DASHBOARD.read_text())
PANELS = panels(BOARD)
COMPOSE = yaml.safe_load((MONITORING / "docker-compose.yml").read_text())["services"]
SCRAPE = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
BY_NAME = {sign.metric: sign for sign in SIGNS}
TOLD_BESIDE = {  # beside the metrics of a step and of an evaluation: by the endpoint of a run,
    *("rljax_step", "rljax_skipped_updates_total"),
    *("rljax_length_band_min_tokens", "rljax_length_band_max_tokens"),
    # and by that of a server
    *("rljax_responses_total", "rljax_length_violations_total"),
    *("rljax_response_length_tokens_bucket", "rljax_unmeasured_responses_total"),
}


def provisioned(kind: str) -> dict:
    (file,) = (MONITORING / "grafana" / "provisioning" / kind).iterdir()
    return yaml.safe_load(file.read_text())


def exported(bound: float | str) -> str:
    return PREFIX + bound if isinstance(bound, str) else str(bound)


# ---- the rules


def test_the_bounds_are_those_of_the_table_of_health():
    expected = set()
    for sign in SIGNS:
        spared = f" and rljax_in_band_ratio < {ENOUGH_IN_BAND}" * sign.low_unless_in_band
        if sign.low is not None:
            expected.add(f"{PREFIX}{sign.metric} < {exported(sign.low)}{spared}")
        if sign.high is not None:
            expected.add(f"{PREFIX}{sign.metric} > {exported(sign.high)}")
    assert {rule["expr"] for rule in GROUPS["rljax_health"]} == expected


@pytest.mark.parametrize(
    ("alert", "bound"),
    [
        ("RljaxServingOutOfBand", 1 - ENOUGH_IN_BAND),
        ("RljaxServingTruncated", BY_NAME["truncated_ratio"].high),
    ],
)
def test_serving_has_the_bounds_of_training(alert, bound):
    assert float(ALERTS[alert]["expr"].rpartition(" > ")[2]) == pytest.approx(bound)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert "$labels" in rule["annotations"]["summary"]
    text = rule["annotations"]["description"]
    assert "$value" in text or alert.endswith("Gone")
    assert len(text) > 50
    (row,) = (line for line in DOCS.splitlines() if line.startswith(f"| `{alert}` |"))
    time = f"{rule['for'].removesuffix('m')} min" if "for" in rule else "at once"
    assert row.split(" | ")[2] == time


def test_jobs_are_those_that_are_scraped():
    asked = {job for rule in ALERTS.values() for job in re.findall(r'job="(\w+)"', rule["expr"])}
    assert asked == {job["job_name"] for job in SCRAPE["scrape_configs"]}
    assert SCRAPE["rule_files"] == [RULES.name]


def promtool(*arguments: str) -> subprocess.CompletedProcess:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    return subprocess.run([found, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(MONITORING / "prometheus.yml")),
        ("check", "rules", str(RULES)),
        ("test", "rules", str(TESTS)),
    ],
    ids=" ".join,
)
def test_promtool(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_expected_by_a_test(tmp_path):
    """Where none fires, the tests miss them all."""
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    silent = [rule | {"expr": "absent_from_every_test"} for rule in ALERTS.values()]
    rules = {"groups": [{"name": "all", "rules": silent}]}
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    done = promtool("test", "rules", str(tmp_path / TESTS.name))
    assert done.returncode == 1
    assert [alert for alert in ALERTS if f'"{alert}"' not in done.stdout + done.stderr] == []


def test_quicker_rules_are_the_same_but_for_their_times(tmp_path):
    quick = quicker({"groups": [{"name": "all", "rules": list(ALERTS.values())}]}, 10)
    (tmp_path / "quick.yml").write_text(yaml.safe_dump(quick))
    for before, after in zip(ALERTS.values(), quick["groups"][0]["rules"], strict=True):
        time = r"(\[|offset )\w+"
        assert re.sub(time, "", before["expr"]) == re.sub(time, "", after["expr"])
        assert before["expr"].count("[") == len(re.findall(r"\[\d+ms\]", after["expr"]))
    assert quick["groups"][0]["rules"][0]["for"] == "60000ms"
    done = promtool("check", "rules", str(tmp_path / "quick.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the dashboard


def test_what_is_asked_for_is_told():
    told = {prometheus_name(re.sub(r"\{\w+\}", "x", metric.name))[0] for metric in METRICS}
    texts = [*(rule["expr"] for rule in ALERTS.values()), *(query.text for query in queries(BOARD))]
    assert [text for text in texts if not names(text) and not re.search("ALERTS|up{", text)] == []
    asked = set().union(*map(names, texts))
    assert asked >= TOLD_BESIDE | {PREFIX + metric for metric in BY_NAME}
    assert asked - TOLD_BESIDE <= told


def test_panels_have_what_grafana_needs():
    assert (BOARD["uid"], BOARD["title"]) == ("rljax", "rljax")
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["expr"].count("(") == target["expr"].count(")")


def test_no_panel_covers_another():
    taken = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]


def test_one_may_choose_data_source_source_and_run():
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "source", "run"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD["panels"])))
    assert used == {*variables, "__rate_interval"}


@pytest.mark.parametrize("metric", ["length_penalty_mean", "reward_shaping_ratio"])
def test_the_bounds_are_drawn(metric):
    sign, drawn = BY_NAME[metric], []
    for panel in PANELS:
        asked = [names(target["expr"]) for target in panel.get("targets", [])]
        if asked == [{PREFIX + metric}]:
            drawn.append(panel["type"])
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            bounds = [step["value"] for step in steps if step["value"] is not None]
            assert bounds == [bound for bound in (sign.low, sign.high) if bound is not None]
    assert drawn == ["stat", "timeseries"]


def test_training_and_serving_are_drawn_together_within_the_band():
    band = {"rljax_length_band_min_tokens", "rljax_length_band_max_tokens"}
    (p95,) = (p for p in PANELS if p["title"] == "Length, 95th percentile, and the band")
    asked = [target["expr"] for target in p95["targets"]]
    assert set().union(*map(names, asked)) == band | {"rljax_response_length_p95"}
    assert all('source=~"$source", run=~"$run|"' in text for text in asked)


# ---- how they are started


def test_all_listen_on_loopback_only():
    for service in COMPOSE.values():
        assert service["network_mode"] == "host"  # so that localhost is the run's
        assert not {"ports", "expose", "privileged"} & set(service)
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
    assert "--web.listen-address=127.0.0.1:9090" in COMPOSE["prometheus"]["command"]
    assert COMPOSE["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    asked = {job["job_name"]: job["static_configs"] for job in SCRAPE["scrape_configs"]}
    assert asked["rljax_training"] == [{"targets": ["localhost:9400"]}]
    assert asked["rljax_serving"] == [{"targets": ["localhost:8000"]}]


def test_nobody_is_an_administrator():
    environment = COMPOSE["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not any("PASSWORD" in name for name in environment)


def test_grafana_finds_prometheus_and_the_dashboard():
    (source,) = provisioned("datasources")["datasources"]
    assert source["url"] == "http://localhost:9090"
    assert source["jsonData"]["timeInterval"] == SCRAPE["global"]["scrape_interval"]
    (provider,) = provisioned("dashboards")["providers"]
    mounts = dict(
        mount.removesuffix(":ro").split(":")
        for service in COMPOSE.values()
        for mount in service["volumes"]
    )
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert all((MONITORING / host).exists() for host in mounts if host.startswith("./"))
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
