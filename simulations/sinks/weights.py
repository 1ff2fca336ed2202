"""Weights & Biases, offline: files that `wandb sync` uploads if somebody wants that; nothing here goes anywhere."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations.sinks.base import Notes, Row, Told, numbers, summary
from strategies.sinks import WeightsAndBiases

OFFLINE = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "DO_NOT_TRACK": "true"}


class Weights:
    """Logs with the round as the step.

    wandb keeps rounds in memory for a while, and loses them where its process is killed. So a resumed run writes all of
    them again, to files of the same id, and then removes the older ones.

    Args:
        settings: for which project.
    """

    def __init__(self, settings: WeightsAndBiases) -> None:
        self._settings = settings

    def open(self, told: Told, *, resumed: bool) -> None:
        """Begins an offline run, with all rounds that were committed."""
        os.environ |= OFFLINE  # Before its modules are loaded, and whatever the user's own settings say.
        import wandb

        self._notes = Notes(told.folder / "sinks" / "wandb.json")
        if resumed:
            self._notes.read()
        self._notes.keep(run=self._notes.kept.get("run") or secrets.token_hex(4))
        self._run = wandb.init(
            project=self._settings.project,
            name=told.label,
            id=str(self._notes.kept["run"]),
            resume="allow",
            reinit="create_new",  # A process may have several runs.
            dir=str(told.folder.absolute()),
            config={"experiment": told.name, **told.config},
            settings=_quiet(wandb),
        )
        for row in told.rows():
            self.round(row)
        written = Path(self._run.dir).parent
        for older in written.parent.glob(f"offline-run-*-{self._notes.kept['run']}"):
            if older != written:
                shutil.rmtree(older)

    def round(self, row: Row) -> None:
        """Logs a round's numbers."""
        self._run.log(numbers(row) | {"round": row["round"]}, step=row["round"], commit=True)

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Adds the result's numbers to the summary, and ends."""
        if result is not None:
            self._run.summary.update(summary(result) | {"stopped": result.get("stopped") or ""})
        self._run.finish(exit_code=0 if result is not None else 1)


def _quiet(wandb: Any) -> Any:
    """Offline, and with nothing of this machine: no name, hardware, packages, source, console."""
    return wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        host="local",
    )
