"""TensorBoard: event files with a scalar for every number of a round, at the step of its round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from simulations.sinks.base import Notes, Row, Told, numbers, summary


class Events:
    """Writes with torch's own writer; a resumed run goes on in the same folder.

    Steps after the last one that was written for certain are purged, as TensorBoard calls it, and written again: none
    is missing or shown twice, wherever the run was killed.
    """

    def open(self, told: Told, *, resumed: bool) -> None:
        """Opens a new event file, and writes what it missed."""
        from torch.utils.tensorboard import SummaryWriter

        self._notes = Notes(told.folder / "sinks" / "tensorboard.json")
        begun = resumed and bool(self._notes.read())
        done = self._notes.round
        self._writer = SummaryWriter(str(told.folder / "tensorboard"), purge_step=done + 1 if begun else None)
        self._notes.keep(round=done)
        if not begun:
            self._text("experiment", {"name": told.name, **told.config})
        for row in told.rows()[done:]:
            self.round(row)

    def round(self, row: Row) -> None:
        """A scalar for every number; they are in the file when this returns."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name.replace(".", "/"), value, row["round"])
        self._writer.flush()
        self._notes.keep(round=row["round"])

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Writes the result as a text, and ends the file."""
        if result is not None:
            self._text("result", summary(result))
        self._writer.close()

    def _text(self, name: str, found: Mapping[str, Any]) -> None:
        text = json.dumps(found, indent=2).replace("\n", "\n    ")  # As Markdown shows code.
        self._writer.add_text(name, f"    {text}", 0)
