"""The numbers of finished runs that can be averaged and compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from simulations.words import audit as audit_words

Result = Mapping[str, Any]

COLUMNS = (
    "accuracy",
    "mse",
    "loss",
    "epsilon",
    "server",
    "row epsilon",
    "measured",
    "row measured",
    "bytes_up",
    "bytes_down",
    "seconds",
)


def metric(result: Result) -> str:
    """What the score of a result is called."""
    return "mse" if "mse" in result["metrics"] else "accuracy"


def numbers(result: Result) -> dict[str, float | None]:
    """The numbers of a result that can be averaged and compared, by the names of `COLUMNS`."""
    metrics, privacy, sent = result["metrics"], result["privacy"], result["communication"]
    found: dict[str, float | None] = {metric(result): metrics[metric(result)], "loss": metrics["loss"]}
    if privacy["silo"] is not None:
        promised = privacy.get("selection", privacy["silo"])  # Of a sweep: the choice included.
        found["epsilon"] = promised["epsilon_upper"]
    if privacy.get("local") is not None:
        found["server"] = privacy["local"]["epsilon_upper"]
    if privacy.get("example") is not None:
        found["row epsilon"] = privacy["example"]["epsilon_upper"]
    if privacy["measured"] is not None:
        found["measured"] = privacy["measured"]["epsilon"]
    row = audit_words.largest(privacy)
    if row is not None:
        found["row measured"] = row["epsilon"]
    return found | {"bytes_up": sent["bytes_up"], "bytes_down": sent["bytes_down"], "seconds": result["seconds"]}


def spread(results: Sequence[Result]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and sample standard deviation (n - 1) of every number that all runs have."""
    rows = [numbers(result) for result in results]
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        known = [value for value in values if value is not None]
        if rows and len(known) == len(rows):
            mean[name] = statistics.fmean(known)
            std[name] = statistics.stdev(known) if len(known) > 1 else None
    return mean, std
