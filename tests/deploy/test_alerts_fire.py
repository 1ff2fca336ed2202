"""Every alert fires in a real Prometheus, over runs with the fault that it is for; over a calm run none does."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from privacy.ledger import LedgerError
from privacy.mechanism import GaussianSum
from simulations.running import ActiveRun, run, train
from strategies.loading import parse
from tests.deploy.watching import ALERTS, CONFIDE, Start, ask, free_port, wait, watch

pytestmark = pytest.mark.integration

SILO = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
BASE: dict[str, Any] = {
    "rounds": 3,
    "task": "logistic",
    "data": {"name": "digits", "silos": 20, "limit": 600, "test": 0.2},
}
FIRES = {
    "ConfideRunStalled": "stalled",
    "ConfideBudgetNearlySpent": "spent",
    "ConfideMeasuredAboveClaimed": "bare",
    "ConfideQuorumMissed": "wild",
    "ConfideUpdatesNotFinite": "wild",
    "ConfideGroupBoundViolated": "unfair",
    "ConfideLedgerFailed": "unwritten",
    "ConfideAttackSpike": "attacked",
    "ConfideRunUnreadable": None,
    "ConfideExporterDown": None,
}


@pytest.fixture(autouse=True)
def tools() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")


def spent(folder: Path) -> None:
    """A budget that three rounds leave less than a tenth of."""
    private = BASE | {"privacy": {"silo": SILO}}
    costs = run(parse(private), out=folder / "calm").result["privacy"]["silo"]["epsilon_upper"]
    run(parse(private | {"budget": {"epsilon": 1.05 * costs, "delta": 1e-3}}), out=folder / "spent")


def bare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Noise that is claimed and not there."""
    audited = {"privacy": {"silo": SILO | {"noise_multiplier": 8.0}, "audit": {"canaries": 64}}}
    with patch.context() as context:
        context.setattr(GaussianSum, "privatize", lambda self, total, source, *, stream: total)
        assert run(parse(BASE | audited), out=folder / "bare").result["privacy"]["measured"]["alarm"]


def unfair(folder: Path) -> None:
    """A bound on groups' losses that no model keeps."""
    rows = folder.parent / "people.csv"
    rows.write_text("a,b,sex,paid\n" + "".join(f"{i % 7},{i % 5},{'fm'[i % 2]},{(i // 3) % 2}\n" for i in range(200)))
    data = {"path": str(rows), "target": "paid", "group": "sex", "silos": 4, "public_test": 0.3}
    fair = {"strategy": {"name": "bounded_group_loss", "zeta": 0.1}, "cohort": {"sampling": "all"}, "data": data}
    run(parse(BASE | fair), out=folder / "unfair")


def unwritten(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A disk that fails under the ledger."""
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("ledger.jsonl"):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    private = parse(BASE | {"privacy": {"silo": SILO}})
    with patch.context() as context, pytest.raises(LedgerError), ActiveRun(private, folder / "unwritten") as active:
        context.setattr(os, "fsync", failing)
        train(active)


def attacked(folder: Path) -> None:
    """A crew so large that the strategy leaves out more than 30% of those asked."""
    attack = {"name": "sign_flip", "fraction": 0.4}
    krum = {"strategy": {"name": "multi_krum", "malicious": 0.4}, "cohort": {"sampling": "all"}, "attacks": [attack]}
    run(parse(BASE | krum), out=folder / "attacked")


def later(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is still to come of two runs, which are cut to their first round: counters move only while one looks."""
    for name in ("wild", "attacked"):
        path = folder / name / "rounds.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(lines[0])
        yield path, "".join(lines[1:])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run for every fault."""
    folder = tmp_path / "store"
    folder.mkdir()
    spent(folder)
    bare(folder, monkeypatch)
    unfair(folder)
    unwritten(folder, monkeypatch)
    attacked(folder)
    wild = {"rounds": 2, "train": {"learning_rate": 1e38, "steps": 3}}  # Its second round is refused.
    run(parse(BASE | wild), out=folder / "wild")
    with ActiveRun(parse(BASE | {"rounds": 5}), folder / "stalled") as active:
        for result in active:
            if result.round == 2:
                break
    long_ago = time.time() - 7200
    os.utime(folder / "stalled" / "rounds.jsonl", (long_ago, long_ago))
    (folder / "broken").mkdir()
    (folder / "broken" / "experiment.yaml").write_text("- no experiment")
    return folder


def hurried(folder: Path) -> Path:
    """The shipped rules with nothing changed but how long a fault must last."""
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = "1s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
    return folder / "alerts.yml"


def test_every_alert_fires_over_its_fault_and_none_over_a_calm_run(store: Path, tmp_path: Path, started: Start) -> None:
    rest, port = list(later(store)), free_port()
    exporter = started(*CONFIDE, "metrics", "serve", "--store", store, "--port", port)
    prometheus = watch(started, tmp_path, {"confide": port}, hurried(tmp_path))

    def firing() -> set[tuple[str, str | None]]:
        found = ask(prometheus, "/api/v1/alerts")["alerts"]
        return {(each["labels"]["alertname"], each["labels"].get("run")) for each in found if each["state"] == "firing"}

    def due() -> set[tuple[str, str | None]]:
        return {(name, whose) for name, whose in FIRES.items() if name != "ConfideExporterDown"}

    rounds = 'confide_rounds_total{run="wild"}'
    wait(lambda: len(ask(prometheus, "/api/v1/query", query=rounds)["result"]) == 3, lambda: "nothing is scraped")
    for path, lines in rest:
        with open(path, "a") as file:
            file.write(lines)
    wait(lambda: due() <= firing(), lambda: f"not firing: {sorted(map(str, due() - firing()))}")
    assert [name for name, whose in firing() if whose == "calm"] == []
    exporter.terminate()
    wait(lambda: ("ConfideExporterDown", None) in firing(), lambda: "nobody says that the exporter is gone")


def test_all_alerts_are_staged() -> None:
    text = ALERTS.read_text()
    assert set(re.findall(r"- alert: (\w+)", text)) == set(FIRES)
    assert json.dumps(yaml.safe_load(text)).count('"for"') == 3  # All others fire at once.
