"""A data holder's own files: CSV, npz, or a torch Dataset that they bring along."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.columns import Grid, tabulate
from client.errors import DataError
from client.tables import Kind, Table, from_arrays

ARRAYS = ("x", "y", "silo", "group")


def read_csv(
    path: str | Path,
    *,
    target: str,
    silo: str | None = None,
    group: str | None = None,
    kind: Kind | None = "classification",
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Reads a comma-separated file with a header; columns that hold words become one-hot columns.

    Args:
        path: the file, UTF-8.
        target: column to predict; silo and group columns are not features either.
        silo: column that names each row's silo.
        group: column that names each row's group.
        kind: "classification" or "regression"; None: what the target's values tell.
        categories: column to its publicly known words; see `tabulate`.

    Raises:
        DataError: one line with file, line and column, what was found and what to do.
    """
    grid = read_grid(path)
    return tabulate(grid, kind=kind, target=target, silo=silo, group=group, categories=categories)


def read_grid(path: str | Path) -> Grid:
    """The cells of a comma-separated file with a header."""
    require_file(path)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:  # A blank line.
                    continue
                if len(row) != len(header):
                    what = f"{len(row)} cells, the header has {len(header)}"
                    raise DataError(f"{path}, line {reader.line_num}: {what}; correct the line")
                lines.append(reader.line_num)
                rows.append([cell.strip() for cell in row])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; correct the line") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file that can be read") from error
    double = sorted({name for name in header if header.count(name) > 1 or not name})
    if double or not header:
        what = f"column name {double[0]!r} is empty or used twice" if double else "empty file"
        raise DataError(f"{path}, line 1: {what}; give every column a name of its own")
    columns = zip(*rows) if rows else ([] for _ in header)
    return Grid(str(path), lines, {name: list(cells) for name, cells in zip(header, columns)})


def read_npz(path: str | Path, *, kind: Kind | None = "classification") -> Table:
    """Reads an npz file with arrays `x` and `y`, and `silo` and `group` where there are any.

    Args:
        path: the file; arrays of Python objects are refused, since reading them runs code.
        kind: "classification" or "regression"; None: what the target's values tell.

    Raises:
        DataError: one line with file and array, what was found and what to do.
    """
    require_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a single array; save several with numpy.savez(path, x=..., y=...)")
        with loaded as archive:
            arrays = {name: archive[name] for name in ARRAYS if name in archive.files}
            found = ", ".join(archive.files)
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: no npz file of plain arrays ({reason}); write it with numpy.savez") from error
    missing = [name for name in ("x", "y") if name not in arrays]
    if missing:
        raise DataError(f"{path}: no array {missing[0]!r}, found: {found}; name the arrays x, y, silo, group")
    return from_arrays(**{"group": None, "silo": None, **arrays}, where=str(path), kind=kind)


def read_dataset(dataset: Any, *, kind: Kind | None = "classification", where: str = "dataset") -> Table:
    """Reads a torch Dataset whose items are `(x, y)` or `(x, y, silo)`.

    The caller has imported it, from a name on the user's own command line: a file never names code.

    Args:
        dataset: an object with `len()` and items by index.
        kind: "classification" or "regression"; None: what the target's values tell.
        where: its name, for messages.

    Raises:
        DataError: no length, no rows, items of another form or of differing shapes.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"{where}: {type(dataset).__name__} has no length or no items; give an indexable Dataset")
    items = [dataset[index] for index in range(len(dataset))]
    widths = {len(item) if isinstance(item, tuple | list) else 0 for item in items}
    if widths not in ({2}, {3}):
        found = ", ".join(map(str, sorted(widths))) or "no items"
        raise DataError(f"{where}: items of {found} parts; every item must be (x, y), or every one (x, y, silo)")
    columns = [list(map(np.asarray, column)) for column in zip(*items)]
    for name, column in zip(ARRAYS, columns):
        if len({cell.shape for cell in column}) > 1:
            shapes = sorted({str(cell.shape) for cell in column})
            raise DataError(f"{where}, {name}: shapes {shapes[0]} and {shapes[1]}; make all rows one shape")
    return from_arrays(*map(np.stack, columns), where=where, kind=kind)


def require_file(path: str | Path) -> None:
    """Requires an existing path that is no folder."""
    if not Path(path).exists():
        raise DataError(f"{path}: no such file; check the path")
    if Path(path).is_dir():
        raise DataError(f"{path}: a folder; give the file in it")
