"""A real Prometheus scrapes the exporter of a live run; alerts and dashboard speak of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from simulations.metrics.names import METRICS, PREFIX, SILO_METRICS
from simulations.metrics.serving import serve
from simulations.metrics.silo import SiloExporter
from simulations.running import run
from strategies.loading import parse
from tests.deploy.watching import ALERTS, CONFIDE, ROOT, Start, ask, free_port, value, wait, watch
from tests.simulations.silos import apart, experiment, policy

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "confide.json"
GUARDED = policy(silo={"epsilon": 100.0, "delta": 1e-2}, unprotected=False, simulated_noise=True)

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
    assert "10 rules found" in promtool("check", "config", ALERTS.with_name("prometheus.yml"))


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
    "ConfideLedgerFailed": (
        {
            f'confide_ledger_writes_total{{{LABELS},result="failed"}}': "1x30",
            f'confide_run_state{{{LABELS},state="open"}}': "1x30",
        },
        {"run": "r", "result": "failed"},
    ),
    "ConfideAttackSpike": (
        {
            f'confide_attack_flags_total{{{LABELS},verdict="benign flagged"}}': "0+6x30",
            f'confide_attack_flags_total{{{LABELS},verdict="benign passed"}}': "0+7x30",
        },
        {"run": "r"},
    ),
    "ConfideRunUnreadable": ({"confide_exporter_unreadable_runs": "1x30"}, {}),
}
CALM = {"0x10": "1x10", "0x30": "0+60x30", "0.3x30": "3x30", "1x30": "0x30", "4x30": "9x30", "0+1x30": "0x30"}
CALM |= {"0.05x30": "-0.05x30", "0+6x30": "0+2x30"}


@pytest.mark.parametrize("fault", [True, False], ids=["fault", "calm"])
@pytest.mark.parametrize("alert", STAGED)
def test_an_alert_fires_in_its_fault_and_in_nothing_else(alert: str, fault: bool, tmp_path: Path) -> None:
    series, labels = STAGED[alert]
    severity = "critical" if alert in ("ConfideMeasuredAboveClaimed", "ConfideLedgerFailed") else "warning"
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
    number = {"name": "amounts", "task": "linear", "data": data | {"target": "a", "group": None}}
    run(parse(base | number), out=folder / "amounts")
    personal = {"name": "personal", "strategy": "mr_mtl", "data": base["data"] | {"test": 0.2}}
    run(parse(base | personal), out=folder / "personal")
    with ExitStack() as opened:  # Silos apart, for what only a network has; each with a folder of its own.
        away = experiment(privacy={"silo": silo | {"noise_multiplier": 2.0, "delta": 1e-2}, "noise": "simulated"})
        apart(away, tmp_path, GUARDED, opened, folder / "apart")
    return folder


def expressions() -> list[str]:
    found = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])
    ]
    assert len(found) > 20
    return [each.replace("$__rate_interval", "5s").replace("$run", ".*") for each in found]


def test_prometheus_sees_a_live_run_move_and_answers_the_whole_dashboard(
    store: Path, tmp_path: Path, started: Start
) -> None:
    metrics = free_port()
    started(*CONFIDE, "metrics", "serve", "--store", store, "--port", metrics)
    silo, stop = serve(SiloExporter(tmp_path / "silo0", GUARDED), address="127.0.0.1", port=0)
    try:
        port = watch(started, tmp_path, {"confide": metrics, "confide-silo": silo})
        live = started(*CONFIDE, "run", "quickstart", "--out", store / "live", "--set", "rounds=100000", "--quiet")
        _look(port)
    finally:
        stop()
    live.terminate()
    assert live.wait(timeout=60) in (0, 130, 143)


def _look(port: int) -> None:
    wait(lambda: value(port, 'up{job="confide"}') == {"": 1.0}, lambda: "the target is not up")
    wait(lambda: value(port, "confide_round")["live"] >= 1, lambda: "the live run is not seen")
    first = value(port, "confide_round")["live"]
    wait(lambda: value(port, "confide_round")["live"] > first + 3, lambda: "the live run does not move")
    for moves in ('confide_payload_bytes_total{direction="up"}', "confide_ledger_fsync_seconds_count"):
        wait(lambda moves=moves: value(port, f"rate({moves}[5s])")["live"] > 0, lambda: "no rate")
    assert value(port, 'confide_run_state{state="open"}')["live"] == 1
    ahead = 'confide_privacy_epsilon_reserved{unit="silo"} - confide_privacy_epsilon_spent{unit="silo"}'
    assert value(port, ahead)["live"] >= 0

    known = set(ask(port, "/api/v1/label/__name__/values"))
    for metric in (*METRICS, *SILO_METRICS):
        names = [PREFIX + metric.name + end for end in (("_bucket", "_sum") if metric.kind == "histogram" else ("",))]
        assert known.issuperset(names), names
    for expression in expressions():
        assert ask(port, "/api/v1/query", query=expression)["result"], expression
        assert known.issuperset(re.findall(r"confide_\w+", expression)), expression

    groups = ask(port, "/api/v1/rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == set(STAGED)
    assert all(rule["health"] == "ok" for group in groups for rule in group["rules"])
