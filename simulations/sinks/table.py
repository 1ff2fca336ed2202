"""rounds.csv: the lines of rounds.jsonl as a table, for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from privacy.durable import atomic_write
from simulations.sinks.base import Row, Told, numbers

NAME = "rounds.csv"
FIRST = ("round", "cohort", "arrived", "failures", "epsilon", "accuracy", "mse", "loss")
REASONS = "failure_reasons"


class Table:
    """Writes the table; its bytes follow from the rounds alone, however often the run was resumed.

    A round may bring a number that none had before it: then the whole table is written again with one more column.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []

    def open(self, told: Told, *, resumed: bool) -> None:
        """Writes what was committed: after a crash the table may lack a round, or hold half of one."""
        self._path, self._rows = told.folder / NAME, told.rows
        if resumed:
            self._write()

    def round(self, row: Row) -> None:
        """Adds a line."""
        if set(_cells(row)) <= set(self._columns) and self._path.exists():
            with open(self._path, "a", newline="") as file:
                file.write(_lines([row], self._columns))
        else:
            self._write()

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Nothing is left to do."""

    def _write(self) -> None:
        rows = self._rows()
        self._columns = _columns(rows)
        header = ",".join(self._columns) + "\r\n" if rows else ""
        atomic_write(self._path, (header + _lines(rows, self._columns)).encode())


def _cells(row: Row) -> dict[str, str]:
    cells = {name: repr(value) if value % 1 else f"{value:.0f}" for name, value in numbers(row).items()}
    # A cell of a spreadsheet that begins with = is a formula, and reasons may come from elsewhere: JSON begins with {.
    reasons = json.dumps(row.get(REASONS) or {}, sort_keys=True)
    return {"round": str(row["round"]), REASONS: reasons} | cells


def _columns(rows: Iterable[Row]) -> list[str]:
    found = {name for row in rows for name in _cells(row)}
    return [*(name for name in FIRST if name in found), *sorted(found - set(FIRST))]


def _lines(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    for row in rows:
        cells = _cells(row)
        writer.writerow([cells.get(name, "") for name in columns])
    return text.getvalue()
