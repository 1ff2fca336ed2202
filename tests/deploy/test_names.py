"""What is exported is what METRICS.md says, and all that operations ask for is there."""

from __future__ import annotations

import re
from pathlib import Path

from simulations.metrics.names import METRICS, PREFIX, SILO_METRICS

WRITTEN = Path(__file__).parents[2] / "deploy" / "prometheus" / "METRICS.md"
ASKED_FOR = """round rounds_total round_last_commit_timestamp_seconds round_duration_seconds silos silo_failures_total
silo_train_duration_seconds payload_bytes_total wire_bytes_total update_density_ratio clip_norm clipped_ratio
noise_multiplier noise_stddev privacy_epsilon_spent privacy_epsilon_reserved privacy_epsilon_budget
privacy_epsilon_remaining privacy_epsilon_empirical privacy_stops_total ledger_writes_total ledger_fsync_seconds
model_loss model_accuracy_ratio group_loss group_bound_violation attack_flags_total personalization_gap
checkpoint_last_success_timestamp_seconds"""
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", re.M)


def test_the_metrics_are_those_that_are_written_down() -> None:
    found = [
        {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), about) for name, kind, labels, about in ROW.findall(part)}
        for part in WRITTEN.read_text().split("## Of a silo")
    ]
    shown = [
        {PREFIX + each.name: (each.kind, each.labels, each.about) for each in metrics}
        for metrics in (METRICS, SILO_METRICS)
    ]
    assert found == shown
    assert set(ASKED_FOR.split()) <= {metric.name for metric in METRICS}
