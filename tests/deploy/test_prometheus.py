"""A real Prometheus scrapes the exporter of a live run; alerts and dashboard speak of metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulations.metrics.names import METRICS, PREFIX
from simulations.running import run
from strategies.loading import parse

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "confide.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PATIENCE_S = 90

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def tools() -> None:
    for name in ("prometheus", "promtool"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install prometheus")


def promtool(*arguments: object) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    assert "8 rules found" in promtool("check", "config", ALERTS.with_name("prometheus.yml"))


LABELS = 'run="r"'
STAGED: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # Alert: series, a value every minute; further labels of the alert.
    "ConfideExporterDown": ({'up{job="confide",instance="x"}': "0x10"}, {"job": "confide", "instance": "x"}),
    "ConfideRunStalled": (
        {
            f"confide_round_last_commit_timestamp_seconds{{{LABELS}}}": "0x30",
            f'confide_run_state{{{LABELS},state="open"}}': "1x30",
        },
        {"run": "r"},
    ),
    "ConfideBudgetNearlySpent": (
        {
            f'confide_privacy_epsilon_remaining{{{LABELS},unit="silo"}}': "0.3x30",
            f'confide_privacy_epsilon_budget{{{LABELS},unit="silo"}}': "4x30",
        },
        {"run": "r", "unit": "silo"},
    ),
    "ConfideMeasuredAboveClaimed": ({f"confide_privacy_alarm{{{LABELS}}}": "1x30"}, {"run": "r"}),
    "ConfideQuorumMissed": (
        {f'confide_silos{{{LABELS},state="arrived"}}': "4x30", f'confide_silos{{{LABELS},state="asked"}}': "10x30"},
        {"run": "r"},
    ),
    "ConfideUpdatesNotFinite": (
        {f'confide_silo_failures_total{{{LABELS},reason="update is not finite"}}': "0+1x30"},
        {"run": "r", "reason": "update is not finite"},
    ),
    "ConfideGroupBoundViolated": (
        {f'confide_group_bound_violation{{{LABELS},group="f"}}': "0.05x30"},
        {"run": "r", "group": "f"},
    ),
    "ConfideRunUnreadable": ({"confide_exporter_unreadable_runs": "1x30"}, {}),
}
CALM = {"0x10": "1x10", "0x30": "0+60x30", "0.3x30": "3x30", "1x30": "0x30", "4x30": "9x30", "0+1x30": "0x30"}
CALM |= {"0.05x30": "-0.05x30"}


@pytest.mark.parametrize("fault", [True, False], ids=["fault", "calm"])
@pytest.mark.parametrize("alert", STAGED)
def test_an_alert_fires_in_its_fault_and_in_nothing_else(alert: str, fault: bool, tmp_path: Path) -> None:
    series, labels = STAGED[alert]
    severity = "critical" if alert == "ConfideMeasuredAboveClaimed" else "warning"
    given = [
        {"series": name, "values": values if fault else CALM.get(values, values)} for name, values in series.items()
    ]
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        rule.pop("annotations")  # Their words are for people; a rule test would compare each.
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    expected = [{"exp_labels": labels | {"severity": severity}}] if fault else []
    test = {
        "interval": "1m",
        "input_series": given,
        "alert_rule_test": [
            {"eval_time": "20m" if "Stalled" in alert else "8m", "alertname": alert, "exp_alerts": expected}
        ],
    }
    staged = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(staged))
    promtool("test", "rules", tmp_path / "test.yml")


def test_every_alert_is_staged() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == set(STAGED)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(port: int, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)["data"]


def value(port: int, expression: str) -> dict[str, float]:
    """What an expression is now, by run."""
    return {
        each["metric"].get("run", ""): float(each["value"][1])
        for each in ask(port, "/api/v1/query", query=expression)["result"]
    }


def wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not _holds(condition):
        assert time.monotonic() < end, what
        time.sleep(0.3)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except (OSError, KeyError):  # Prometheus is not up yet, or knows no such series.
        return False


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Runs that between them show every metric of a simulation."""
    folder, rows = tmp_path / "store", tmp_path / "people.csv"
    base = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 20, "limit": 600, "test": 0.2}}
    silo = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
    private = {"privacy": {"silo": silo, "audit": {"canaries": 8}}, "budget": {"epsilon": 1000.0, "delta": 1e-3}}
    run(parse(base | private | {"name": "private"}), out=folder / "private")
    research = {"privacy": {"silo": silo}, "metrics": {"privacy": "research"}, "name": "research"}
    run(parse(base | research), out=folder / "research")
    wild = {"name": "wild", "rounds": 2, "train": {"learning_rate": 1e38, "steps": 3}}  # Its second round is refused.
    run(parse(base | wild), out=folder / "wild")
    attack = {"name": "pixel_patch", "fraction": 0.2, "target": 1, "size": 2, "poisoned": 0.2}
    attacked = {"name": "attacked", "strategy": {"name": "multi_krum", "malicious": 0.25}, "attacks": [attack]}
    run(parse(base | attacked), out=folder / "attacked")
    rows.write_text("a,b,sex,paid\n" + "".join(f"{i % 7},{i % 5},{'fm'[i % 2]},{(i // 3) % 2}\n" for i in range(200)))
    data = {"path": str(rows), "target": "paid", "group": "sex", "silos": 4, "public_test": 0.3}
    fair = {"name": "fair", "strategy": {"name": "bounded_group_loss", "zeta": 0.6}, "cohort": {"sampling": "all"}}
    run(parse(base | fair | {"data": data}), out=folder / "fair")
    return folder


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that end with the test."""
    found: list[subprocess.Popen[str]] = []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*command: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        found.append(process)
        return process

    yield start
    for process in found:
        process.terminate()
    for process in found:
        process.wait(timeout=30)


def expressions() -> list[str]:
    found = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])
    ]
    assert len(found) > 20
    return [each.replace("$__rate_interval", "5s").replace("$run", ".*") for each in found]


def test_prometheus_sees_a_live_run_move_and_answers_the_whole_dashboard(
    store: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    metrics, port = free_port(), free_port()
    confide = (sys.executable, "-m", "simulations")
    started(*confide, "metrics", "serve", "--store", store, "--port", metrics)
    config = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{metrics}"]
    config["rule_files"] = [str(ALERTS)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    started(
        "prometheus", "--config.file", tmp_path / "prometheus.yml", "--storage.tsdb.path", tmp_path / "tsdb",
        "--web.listen-address", f"127.0.0.1:{port}",
    )  # fmt: skip
    live = started(*confide, "run", "quickstart", "--out", store / "live", "--set", "rounds=100000", "--quiet")

    wait(lambda: value(port, 'up{job="confide"}') == {"": 1.0}, "the target is not up")
    wait(lambda: value(port, "confide_round")["live"] >= 1, "the live run is not seen")
    first = value(port, "confide_round")["live"]
    wait(lambda: value(port, "confide_round")["live"] > first + 3, "the live run does not move")
    wait(lambda: value(port, 'rate(confide_payload_bytes_total{direction="up"}[5s])')["live"] > 0, "no rate of bytes")
    assert value(port, 'confide_run_state{state="open"}')["live"] == 1

    known = set(ask(port, "/api/v1/label/__name__/values"))
    for metric in METRICS:  # Of the socket there is nothing to count in a simulation.
        names = [PREFIX + metric.name + end for end in (("_bucket", "_sum") if metric.kind == "histogram" else ("",))]
        assert known.issuperset(names) or metric.name in ("wire_bytes_total", "model_mean_squared_error"), names
    for expression in expressions():
        assert ask(port, "/api/v1/query", query=expression)["result"], expression
        assert known.issuperset(re.findall(r"confide_\w+", expression)), expression

    groups = ask(port, "/api/v1/rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == set(STAGED)
    assert all(rule["health"] == "ok" for group in groups for rule in group["rules"])

    live.terminate()
    assert live.wait(timeout=60) in (0, 130, 143)
    (store / "broken").mkdir()
    (store / "broken" / "experiment.yaml").write_text("- no experiment")
    wait(
        lambda: bool(ask(port, "/api/v1/query", query='ALERTS{alertname="ConfideRunUnreadable"}')["result"]), "no alert"
    )
