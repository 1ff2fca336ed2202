"""MLflow: a run in a store that is an SQLite file on this machine."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.sinks.base import Notes, Row, Told, numbers, summary
from strategies.sinks import MLflow

BATCH = 100  # Parameters that the store takes at once.
LONGEST = 500  # Characters of a parameter's value.


class Tracking:
    """Logs metrics with the round as their step; a resumed run goes on with its run in the store.

    Args:
        settings: which store.
    """

    def __init__(self, settings: MLflow) -> None:
        self._settings = settings

    def open(self, told: Told, *, resumed: bool) -> None:
        """Begins a run in the store, or finds the one that was begun; logs what it missed."""
        self._client = _client(Path(self._settings.store) if self._settings.store else told.folder.parent / "mlflow.db")
        self._notes = Notes(told.folder / "sinks" / "mlflow.json")
        self._id = self._known(self._notes.read()) if resumed else None
        if self._id is None:
            self._notes.kept = {}
            self._id = self._begun(told)
            self._notes.keep(run=self._id)
        else:
            self._client.set_terminated(self._id, status="RUNNING")
        self._catch_up(told.rows())

    def round(self, row: Row) -> None:
        """Logs a round's numbers in one transaction."""
        self._log(row, numbers(row))
        self._notes.keep(round=row["round"])

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Logs the result's numbers as `final/...`, and says how the run ended."""
        if result is None:
            self._client.set_terminated(self._id, status="FAILED")
            return
        finals = {f"final/{name}": value for name, value in summary(result).items()}
        self._log({"round": result["rounds"]}, finals)
        self._client.set_tag(self._id, "confide.stopped", str(result.get("stopped") or ""))
        self._client.set_terminated(self._id, status="KILLED" if result.get("stopped") == "interrupted" else "FINISHED")

    def _known(self, kept: Mapping[str, Any]) -> str | None:
        """The run that was begun; None where the store does not have it any more."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_run(str(kept["run"])).info.run_id)
        except (KeyError, MlflowException):
            return None

    def _begun(self, told: Told) -> str:
        from mlflow.entities import Param

        tags = {"confide.experiment": told.name}
        found = self._client.create_run(self._experiment(), run_name=told.label, tags=tags).info.run_id
        params = [Param(_named(name), str(value)[:LONGEST]) for name, value in told.config.items()]
        for at in range(0, len(params), BATCH):
            self._client.log_batch(found, params=params[at : at + BATCH])
        return str(found)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._settings.experiment
        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # Another run was quicker.
                found = self._client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r} cannot be made in the store")
        return str(found.experiment_id)

    def _catch_up(self, rows: Sequence[Row]) -> None:
        """Rounds after the last one that was noted; the first of these may be there already."""
        missing = rows[self._notes.round :]
        had = {metric.step for metric in self._client.get_metric_history(self._id, "cohort")} if missing else set()
        for row in missing:
            if row["round"] not in had:
                self.round(row)

    def _log(self, row: Row, found: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(_named(name), value, now, row["round"]) for name, value in found.items()]
        self._client.log_batch(self._id, metrics=metrics)


def _client(store: Path) -> Any:
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}  # Before its modules are loaded.
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    store.absolute().parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=f"sqlite:///{store.absolute()}")


def _named(name: str) -> str:
    """A name of letters that the store takes."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace(".", "/"), flags=re.ASCII)
