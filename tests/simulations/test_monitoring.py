"""The names that are shown are those that are written down, and what the machine did reaches them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from privacy.ledger import LedgerError
from simulations.metrics.names import METRICS
from simulations.running import ActiveRun, train
from tests.simulations.test_metrics import PRIVATE, copied, experiment, one, shown


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")


def test_a_ledger_that_could_not_be_written_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("ledger.jsonl"):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    with pytest.raises(LedgerError), ActiveRun(experiment(privacy=PRIVATE), tmp_path / "run") as active:
        monkeypatch.setattr(os, "fsync", failing)
        train(active)
    assert one(shown(tmp_path), "ledger_writes_total", result="failed") == 1
    assert one(shown(tmp_path), "ledger_writes_total", result="ok") == 0


def test_bytes_of_a_network_and_torn_lines_are_added_up(tmp_path: Path) -> None:
    with ActiveRun(experiment(privacy=PRIVATE), tmp_path / "run") as active:
        train(active)
        active.finish()
    copied(tmp_path / "run", tmp_path / "live", 4)
    with open(tmp_path / "live" / "monitor.jsonl", "w") as file:
        file.write('{"round": 1, "wire": {"up": 5, "down": 7, "aside": 9}}\n')
        file.write(
            '{"round": 2, "wire": {"up": 10, "down": 20}, "fsync": {"counts": {"0.1": 2, "7": 3}, "sum": 0.12}}\n'
        )
        file.write('{"round": 3, "fsync": 4, "wire": [1]}\nno line\n{"round": 3, "reserved": 77.5}\n')
    with open(tmp_path / "live" / "ledger.jsonl", "a") as file:
        file.write('{"kind": "reserve", "unit": "silo", "torn": true}\n')
    found = shown(tmp_path)
    assert {way: one(found, "wire_bytes_total", run="live", direction=way) for way in ("up", "down")} == {
        "up": 15, "down": 27
    }  # fmt: skip
    assert one(found, "ledger_fsync_seconds_count", run="live") == 2
    assert one(found, "ledger_fsync_seconds_sum", run="live") == pytest.approx(0.12)
    assert one(found, "ledger_writes_total", run="live", result="torn") == 1
    spent = one(found, "privacy_epsilon_spent", run="live", unit="silo")
    assert one(found, "privacy_epsilon_reserved", run="live", unit="silo") == 77.5 > spent
