"""The table of README.md: which tests hold which fault. Tests get the marker `fault` by it, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")
ROW = re.compile(r"^\| (F\d+) \| (?P<what>[^|]+) \| (?P<tests>[^|]+) \|$")
NAME = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


def claimed() -> Iterator[tuple[str, str, str]]:
    """Fault, file below tests/, and test in it (empty: all of the file)."""
    for line in TABLE.read_text().splitlines():
        if row := ROW.match(line):
            for file, test in NAME.findall(row["tests"]):
                yield row[1], file, test


def marks() -> dict[tuple[str, str], set[str]]:
    """File and test (empty: all of the file) to the faults that they hold."""
    found: dict[tuple[str, str], set[str]] = {}
    for fault, file, test in claimed():
        found.setdefault((file, test), set()).add(fault)
    return found
