"""Every metric that the exporter may show: its name, what it counts, its labels.

Names follow the Prometheus rules: base units, `_total` for what only grows. No label holds a silo, a path or a host,
and what labels may say is bounded, so that a run has fewer than 500 series whatever the number of its silos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.monitor import BUCKETS

__all__ = [
    "BUCKETS",
    "BY_NAME",
    "GROUPS",
    "METRICS",
    "PHASES",
    "PREFIX",
    "REASONS",
    "RESULTS",
    "RUN",
    "SILO_METRICS",
    "WITHHELD",
    "Metric",
]

PREFIX = "confide_"
RUN = "run"  # The name of the run's folder: the first label of every metric but the exporter's own.


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: without the prefix; of a counter, with `_total`.
        kind: how it moves.
        about: one line.
        labels: beside the run.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    about: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric(
        "run_info", "gauge", "1 for every run, with what it is", ("experiment", "strategy", "data", "engine", "privacy")
    ),
    Metric("run_state", "gauge", "1 for the state that a run is in", ("state",)),
    Metric("round", "gauge", "Last committed round"),
    Metric("rounds_planned", "gauge", "Rounds of the experiment"),
    Metric("rounds_total", "counter", "Committed rounds, by what became of their updates", ("outcome",)),
    Metric("round_last_commit_timestamp_seconds", "gauge", "When the last round was committed, in Unix seconds"),
    Metric("round_duration_seconds", "histogram", "Seconds of a round's phases", ("phase",)),
    Metric("silos", "gauge", "Silos: of the experiment, and of the last round", ("state",)),
    Metric("silo_failures_total", "counter", "Updates that could not be used, by reason", ("reason",)),
    Metric("silo_train_duration_seconds", "histogram", "Seconds that a silo trained for; only where it may be shown"),
    Metric("payload_bytes_total", "counter", "Bytes of vectors as they are encoded", ("direction",)),
    Metric(
        "wire_bytes_total", "counter", "Bytes of whole messages, handed to a network or taken from it", ("direction",)
    ),
    Metric("update_density_ratio", "gauge", "Part of the model's numbers that travelled last round", ("direction",)),
    Metric("clip_norm", "gauge", "Clip norm of a channel in the last round", ("channel",)),
    Metric("clipped_ratio", "gauge", "Part of the last round's updates that were clipped; only where it may be shown"),
    Metric("noise_multiplier", "gauge", "Noise std over clip norm on the sum of the last charge"),
    Metric("noise_stddev", "gauge", "Std of the noise on a channel's sum in the last round", ("channel",)),
    Metric("privacy_epsilon_spent", "gauge", "Claimed epsilon after the last round; +Inf without privacy", ("unit",)),
    Metric("privacy_epsilon_reserved", "gauge", "Claimed epsilon, the round in flight included", ("unit",)),
    Metric("privacy_epsilon_budget", "gauge", "Epsilon that no round may pass", ("unit",)),
    Metric("privacy_epsilon_remaining", "gauge", "Budget less what is spent", ("unit",)),
    Metric("privacy_charges_total", "counter", "Charges in the ledger: every reserve without a void", ("unit",)),
    Metric("privacy_epsilon_empirical", "gauge", "Measured epsilon and its interval", ("method", "bound")),
    Metric("privacy_alarm", "gauge", "1 where the measured epsilon contradicts the claim"),
    Metric("privacy_stops_total", "counter", "Runs that their budget ended"),
    Metric("ledger_writes_total", "counter", "Lines of the run's ledger, and writes that failed", ("result",)),
    Metric("ledger_fsync_seconds", "histogram", "Seconds that the disk took for a charge in the ledger"),
    Metric("model_loss", "gauge", "Loss on the public test set"),
    Metric("model_accuracy_ratio", "gauge", "Accuracy on the public test set"),
    Metric("model_mean_squared_error", "gauge", "Mean squared error on the public test set"),
    Metric("train_loss", "gauge", "Mean loss in the silos' training; only where it may be shown"),
    Metric("group_loss", "gauge", "Loss of a group of rows at the end", ("group",)),
    Metric("group_bound_violation", "gauge", "Loss of a group less its bound: below 0 it is kept", ("group",)),
    Metric("attack_flags_total", "counter", "Silos asked, by what they are and whether they passed", ("verdict",)),
    Metric("attack_success_ratio", "gauge", "Part of an attack's own test rows that came out as it wants", ("attack",)),
    Metric("silo_score", "gauge", "Score of silos on their own rows, at quantiles; only where shown", ("quantile",)),
    Metric(
        "personalization_gap",
        "gauge",
        "Score of silos with their own models less that of a new silo, at quantiles; only where shown",
        ("quantile",),
    ),
    Metric("metrics_withheld", "gauge", "1 for every kind of number that privacy keeps out", ("metric",)),
    Metric("checkpoint_last_success_timestamp_seconds", "gauge", "When the checkpoint was last written"),
    Metric("checkpoint_bytes", "gauge", "Size of the checkpoint"),
)
SILO_METRICS = (
    Metric("silo_requests_total", "counter", "Tasks of servers, by what came of them", ("outcome",)),
    Metric("silo_rounds_total", "counter", "Rounds that this silo trained in, each attempt counted"),
    Metric("silo_training_seconds", "histogram", "Seconds that this silo trained for"),
    Metric("silo_bytes_total", "counter", "Bytes of tasks in, and of answers out", ("direction",)),
    Metric("silo_last_answer_timestamp_seconds", "gauge", "When a task was last answered or refused, in Unix seconds"),
    Metric("silo_epsilon_spent", "gauge", "Epsilon of all runs by this silo's own ledgers", ("unit",)),
    Metric("silo_epsilon_budget", "gauge", "Epsilon that the policy allows", ("unit",)),
    Metric("silo_epsilon_remaining", "gauge", "Budget less what is spent", ("unit",)),
    Metric("silo_charges_total", "counter", "Charges in this silo's own ledgers", ("unit",)),
    Metric("silo_ledgers", "gauge", "Ledgers, one a data set, by whether they can be read", ("state",)),
    Metric("silo_ledger_writes_total", "counter", "Lines of this silo's ledgers, and failed writes", ("result",)),
    Metric("silo_ledger_fsync_seconds", "histogram", "Seconds that the disk took for a charge in the ledger"),
    Metric("silo_dry_run", "gauge", "1 where the policy says that nothing is trained"),
)
"""What `confide silo --metrics` shows of itself, to its owner; without a run's name."""
BY_NAME = {metric.name: metric for metric in METRICS}

PHASES = ("reserve", "train", "aggregate", "audit", "account", "evaluate", "store")
WITHHELD = (
    "train_loss",
    "clipped_ratio",
    "silo_score",
    "personalization_gap",
    "silo_train_duration_seconds",
    "minority_silos",
)
"""Kinds of numbers that are computed on private rows: not shown, and not in a run's folder, where privacy is strict."""
RESULTS = ("ok", "torn", "failed")  # Of a write to a ledger; torn: cut off by a crash, and charged as the dearest.
REASONS = 20  # Reasons of failure that are told apart; later ones are "other".
GROUPS = 24  # Groups, channels and attacks likewise.
