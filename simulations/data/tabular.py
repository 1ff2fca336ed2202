"""Tables that come in carriers: UCI Adult, and three data sets of pupils in schools."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import torch

from client.columns import Grid, tabulate
from client.errors import DataError
from client.files import read_grid
from client.tables import Table
from simulations.data.carriers import locate

INCOME = "income"
LEFT_OUT = "fnlwgt"  # The census bureau's sampling weight, no property of the person.
AGES = {"<35": range(35), "35-50": range(35, 51), ">50": range(51, 200)}  # Words of the groups by age, and their years.
SCALES = {"age": 100.0, "education-num": 16.0, "capital-gain": 1e5, "capital-loss": 5e3, "hours-per-week": 100.0}

# Item to its target, its silo column, and what is left out: identifiers, and columns that repeat others centred.
SCHOOLS: dict[str, tuple[str, str, frozenset[str]]] = {
    "exam": ("normexam", "school", frozenset({"student"})),
    "hsb82": ("mAch", "school", frozenset({"cses"})),
    "chem97": ("score", "lea", frozenset({"school", "student", "gcsecnt"})),
}


def adult(group: str | None) -> tuple[Table, Table]:
    """UCI Adult (Kohavi 1996): its 32,561 training rows and its 16,281 official test rows.

    Categories come from the data's own documentation and numbers are divided by fixed constants, so that nothing is
    read off the rows. An unknown value ("?") is a category of its own.

    Args:
        group: "sex", "race", "age" (in three bands) or None; the group's column is then no feature.
    """
    folder = locate("adult")
    columns = documented(folder / "adult.names")
    return read_adult(folder / "adult.data", columns, group), read_adult(folder / "adult.test", columns, group)


def documented(path: Path) -> dict[str, tuple[str, ...]]:
    """The columns that `adult.names` lists, in order; to their categories, or to () for numbers."""
    columns: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, words = line.partition(":")
        if colon and line.endswith(".") and not line.startswith("|"):
            values = [word.strip() for word in words.rstrip(".").split(",")]
            columns[name] = () if values == ["continuous"] else (*values, "?")
    if len(columns) != 14:
        raise DataError(f"adult: adult.names lists {len(columns)} columns, expected 14; fetch the carrier again")
    return columns


def read_adult(path: Path, columns: dict[str, tuple[str, ...]], group: str | None) -> Table:
    """One of Adult's two files as a table."""
    lines: list[int] = []
    rows: list[list[str]] = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if len(row) == len(columns) + 1:  # The test file starts with a remark, both end in a blank line.
                lines.append(number)
                rows.append([*row[:-1], row[-1].rstrip(".")])
    cells = dict(zip([*columns, INCOME], map(list, zip(*rows))))
    grid = Grid(path.name, lines, {name: column for name, column in cells.items() if name != LEFT_OUT})
    if group == "age":
        grid = replace(grid, cells={**grid.cells, group: [_band(years) for years in grid.cells[group]]})
        columns = columns | {group: tuple(AGES)}
    public = {name: words for name, words in columns.items() if words} | {INCOME: ("<=50K", ">50K")}
    if group is not None:
        public[group] = tuple(word for word in public[group] if word != "?")
    table = tabulate(grid, kind="classification", target=INCOME, group=group, categories=public)
    scale = torch.tensor([SCALES.get(name, 1.0) for name in table.feature_names])
    note = f"{LEFT_OUT} left out; categories as documented; numbers divided by public constants: " + ", ".join(
        f"{name} / {constant:g}" for name, constant in SCALES.items() if name in table.feature_names
    )
    return replace(table, features=table.features / scale, notes=(*table.notes, note))


def _band(years: str) -> str:
    return next(word for word, band in AGES.items() if int(years) in band)


def schools(item: str, group: str | None) -> Table:
    """Pupils in schools or authorities, which are the silos; the target is a score.

    Args:
        item: "exam" (Goldstein et al. 1993), "hsb82" (Raudenbush and Bryk 2002) or "chem97" (Yang and Woodhouse 2001).
        group: a column of the data or None; the group's column is then no feature.
    """
    target, silo, left_out = SCHOOLS[item]
    grid = read_grid(locate("schools") / f"{item.capitalize()}.csv")
    kept = {name: column for name, column in grid.cells.items() if name not in left_out}
    table = tabulate(replace(grid, cells=kept), kind="regression", target=target, silo=silo, group=group)
    return replace(table, notes=(*table.notes, "left out: " + ", ".join(sorted(left_out))))
