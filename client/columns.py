"""The columns of a text file, coded as numbers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
import torch
from numpy.typing import NDArray

from client.errors import DataError
from client.tables import MOST_CLASSES, Kind, Table, kind_of, require_classes

MOST_CATEGORIES = 256  # More different words are names or identifiers: as one-hot columns they only memorise rows.
TYPOS = 0.01  # Of a column's cells: so few words among numbers are mistakes, and never fewer than one is.
DIFFERENT = 20  # Cells: fewer may be codes, one of which is a word.
MISSING = frozenset({"", "nan", "na", "n/a", "null"})


@dataclass(frozen=True)
class Grid:
    """Cells of a text file as they were read, column by column.

    Attributes:
        where: the file, for messages.
        lines: line number of each row in that file.
        cells: column name to its cells, stripped.
    """

    where: str
    lines: Sequence[int]
    cells: Mapping[str, Sequence[str]]

    def error(self, column: str, row: int, what: str) -> DataError:
        """The error that one cell causes."""
        return DataError(f"{self.where}, line {self.lines[row]}, column {column!r}: {what}")

    def require(self, option: str, column: str | None) -> None:
        """Requires that a column asked for exists."""
        if column is not None and column not in self.cells:
            known = ", ".join(list(self.cells)[:12]) + (", ..." if len(self.cells) > 12 else "")
            raise DataError(f"{self.where}: no column {column!r}; set {option} to one of: {known}")


def tabulate(
    grid: Grid,
    *,
    kind: Kind | None,
    target: str,
    silo: str | None = None,
    group: str | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Codes a grid as numbers; all columns but target, silo and group are features.

    Args:
        grid: the cells.
        kind: "classification" (target words are classes) or "regression" (target cells are numbers); None: what the
            target's cells tell, see `client.tables.kind_of`.
        target: column to predict.
        silo: column that names each row's silo.
        group: column that names each row's group.
        categories: column to its publicly known words; columns left out are coded by the words found.

    Raises:
        DataError: a column that is missing, an empty cell, a cell that is no finite number, a single class.
    """
    for option, column in (("target", target), ("silo", silo), ("group", group)):
        grid.require(option, column)
    if not grid.lines:
        raise DataError(f"{grid.where}: no rows below the header; give a file with data")
    public = categories or {}
    blocks, names, notes = features(grid, [c for c in grid.cells if c not in (target, silo, group)], public)
    classes: tuple[str, ...] = ()
    if kind is None:
        kind = _kind(grid, target)
    if kind == "regression":
        targets = torch.from_numpy(numbers(grid, target))
    else:
        require_classes_written(grid, target)
        codes, classes = coded(grid, target, public.get(target))
        targets = torch.from_numpy(codes)
        require_classes(grid.where, len(classes), f"column {target!r}")
        notes.append(f"classes of {target!r}: " + ", ".join(f"{k} = {name}" for k, name in enumerate(classes)))
    named = {column: coded(grid, column, public.get(column)) for column in (silo, group) if column is not None}
    return Table(
        kind=kind,
        features=torch.from_numpy(np.stack(blocks, axis=1)),
        targets=targets,
        classes=len(classes) if classes else None,
        silo=None if silo is None else torch.from_numpy(named[silo][0]),
        groups=None if group is None else torch.from_numpy(named[group][0]),
        silo_names=() if silo is None else named[silo][1],
        group_names=() if group is None else named[group][1],
        feature_names=tuple(names),
        class_names=classes,
        notes=tuple(notes),
    )


def features(
    grid: Grid, columns: Sequence[str], public: Mapping[str, Sequence[str]]
) -> tuple[list[NDArray[np.float32]], list[str], list[str]]:
    """Feature columns: numbers as they are, words as one column of 0 and 1 per category; values, names and notes."""
    if not columns:
        raise DataError(f"{grid.where}: no feature column is left beside target, silo and group; add one")
    blocks: list[NDArray[np.float32]] = []
    names: list[str] = []
    found: list[str] = []
    for column in columns:
        if column not in public and numeric(grid.cells[column]):
            blocks.append(numbers(grid, column))
            names.append(column)
            continue
        if column not in public:
            require_words(grid, column)
        codes, words = coded(grid, column, public.get(column))
        if len(words) > MOST_CATEGORIES:
            what = f"{len(words)} different words, for example {words[0]!r}"
            raise DataError(f"{grid.where}, column {column!r}: {what}; drop the column or write it in numbers")
        blocks.extend((codes == code).astype(np.float32) for code in range(len(words)))
        names.extend(f"{column}={word}" for word in words)
        if column not in public:
            found.append(column)
    note = "one-hot columns in sorted order, categories read off the rows and taken to be public: "
    return blocks, names, [note + ", ".join(found)] if found else []


def _kind(grid: Grid, target: str) -> Kind:
    cells = grid.cells[target]
    if not numeric(cells):
        require_words(grid, target)
        return "classification"
    values = np.array([float(cell) for cell in cells if cell.lower() not in MISSING])
    return kind_of(values, where=f"{grid.where}, column {target!r}")


def require_classes_written(grid: Grid, target: str) -> None:
    """Requires that a target of classes does not hold amounts, each of which would be a class.

    Raises:
        DataError: many different numbers, one of them not whole.
    """
    cells = grid.cells[target]
    if not numeric(cells) or len(set(cells)) <= MOST_CLASSES:
        return
    for row, cell in enumerate(cells):
        value = number(cell)
        if value is not None and value.is_finite() and value != value.to_integral_value():
            raise grid.error(target, row, f"{cell!r} is an amount, no class; use a task for regression (linear, mlp)")


def require_words(grid: Grid, column: str) -> None:
    """Requires that a column that is not all numbers is not meant to be: one typo would make a category of each number.

    Raises:
        DataError: a cell that is no number in a column of many different ones.
    """
    cells = grid.cells[column]
    held = [row for row, cell in enumerate(cells) if cell.lower() not in MISSING]
    odd = [row for row in held if number(cells[row]) is None]
    if 0 < len(odd) <= max(1, TYPOS * len(held)) and len({cells[row] for row in held}) > DIFFERENT:
        what = f"{cells[odd[0]]!r} is not a number, and {len(held) - len(odd)} of {len(held)} cells here are"
        raise grid.error(column, odd[0], f"{what}; correct it, or drop the row")


def numeric(cells: Sequence[str]) -> bool:
    """Whether every cell that is not missing is a number."""
    return all(number(cell) is not None for cell in cells if cell.lower() not in MISSING)


def number(cell: str) -> Decimal | None:
    """The cell's exact value, or None for a word."""
    try:
        float(cell)  # Refuses what Decimal reads and numpy does not, such as "sNaN".
        return Decimal(cell)
    except (ValueError, InvalidOperation):
        return None


def numbers(grid: Grid, column: str) -> NDArray[np.float32]:
    """A column as finite float32 numbers."""
    cells = grid.cells[column]
    for row, cell in enumerate(cells):
        if cell.lower() in MISSING:
            raise grid.error(column, row, f"missing value {cell!r}; fill it in or drop the row")
        if number(cell) is None:
            raise grid.error(column, row, f"{cell!r} is not a number; correct it")
    with np.errstate(over="ignore"):  # What overflows is reported below, with its line.
        values = np.array([float(cell) for cell in cells]).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise grid.error(column, int(bad[0]), f"{cells[bad[0]]!r} is not finite in float32; correct it")
    return values


def coded(grid: Grid, column: str, public: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A column of words as int64 codes, and the words: the public ones, or those found, numbers by size."""
    cells = grid.cells[column]
    for row, cell in enumerate(cells):
        if cell.lower() in ("", "nan"):  # "NA" and "null" may be words.
            raise grid.error(column, row, f"missing value {cell!r}; fill it in or drop the row")
    words = tuple(public) if public is not None else ordered(grid, column)
    code = {word: index for index, word in enumerate(words)}
    for row, cell in enumerate(cells):
        if cell not in code:
            raise grid.error(column, row, f"{cell!r} is none of the declared categories; correct it")
    return np.array([code[cell] for cell in cells], dtype=np.int64), words


def ordered(grid: Grid, column: str) -> tuple[str, ...]:
    """The different words of a column, sorted; by size where all are numbers."""
    words = sorted(set(grid.cells[column]))
    values = [number(word) for word in words]
    sizes = [value for value in values if value is not None and value.is_finite()]
    if len(sizes) < len(words):
        return tuple(words)
    pairs = sorted(zip(sizes, words))
    for (left, first), (right, second) in itertools.pairwise(pairs):
        if left == right:  # "1" and "1.0" as two classes would be a silent mistake.
            what = f"{first!r} and {second!r} are one number written in two ways"
            raise DataError(f"{grid.where}, column {column!r}: {what}; write it in one way")
    return tuple(word for _, word in pairs)
