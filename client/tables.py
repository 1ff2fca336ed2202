"""Tables: what every reader of data returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.errors import DataError

Kind = Literal["classification", "regression", "sequence"]
MOST_CLASSES = 20  # More different whole numbers than this may as well be amounts.


@dataclass(frozen=True)
class Table:
    """All rows of one source, before anything is dealt to silos.

    Attributes:
        kind: what the targets are.
        features: `(rows, ...)` float32, or `(rows, length)` int64 for tokens, of sequences and of texts in classes.
        targets: `(rows,)` int64 classes, `(rows,)` float32 numbers, or `(rows, length)` int64.
        classes: number of classes, or size of the vocabulary of a sequence; None for regression.
        silo: `(rows,)` int64 index into `silo_names`, where the data names silos.
        groups: `(rows,)` int64 index into `group_names`, where a group was asked for.
        feature_names: one per feature, for tables with named columns; `colour=red` is a column of 0 and 1.
        class_names: one per class, where the data names its classes.
        notes: how words were coded and what was left out; part of every result.
    """

    kind: Kind
    features: Tensor
    targets: Tensor
    classes: int | None = None
    silo: Tensor | None = None
    groups: Tensor | None = None
    silo_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def kind_of(values: NDArray[Any], *, where: str) -> Kind:
    """What numbers are where nobody says: amounts if one is not whole, classes if they are few.

    Raises:
        DataError: many different whole numbers, which may be either.
    """
    if not bool((values == np.floor(values)).all()):
        return "regression"
    different = len(np.unique(values))
    if different <= MOST_CLASSES:
        return "classification"
    what = f"{different} different whole numbers, which may be classes or amounts"
    raise DataError(f"{where}: {what}; set data.kind to classification or regression")


def require_classes(where: str, classes: int, what: str) -> None:
    """Requires at least two classes."""
    if classes < 2:
        raise DataError(f"{where}, {what}: one class only, nothing to learn; give rows of at least two classes")


def from_arrays(x: Any, y: Any, silo: Any = None, group: Any = None, *, where: str, kind: Kind | None) -> Table:
    """A table from arrays, as npz files and torch Datasets hold them.

    Args:
        x: `(rows, ...)` numbers.
        y: `(rows,)` integers or words for classification, numbers for regression.
        silo: `(rows,)` names or numbers, or None.
        group: likewise.
        where: the source, for messages.
        kind: "classification" or "regression"; None: as `kind_of` tells, words are classes.

    Raises:
        DataError: shapes that do not agree, no rows, values that are not finite, a single class.
    """
    rows, values = np.asarray(x), np.asarray(y)
    if rows.ndim < 2 or values.ndim != 1 or len(rows) != len(values) or not rows.size:
        shapes = f"x has shape {rows.shape}, y {values.shape}"
        raise DataError(f"{where}: {shapes}; give x as (rows, features, ...) and y as (rows,), at least one row")
    finite = floats(rows, where=f"{where}, x")
    names: tuple[str, ...] = ()
    notes: list[str] = []
    if kind is None:
        kind = kind_of(values, where=f"{where}, y") if values.dtype.kind in "iuf" else "classification"
    if kind == "regression":
        targets: NDArray[Any] = floats(values, where=f"{where}, y")
    elif values.dtype.kind in "biuU":
        found, targets = np.unique(values, return_inverse=True)
        names = tuple(map(str, found))
        require_classes(where, len(names), "y")
        notes.append("classes of y: " + ", ".join(f"{code} = {name}" for code, name in enumerate(names)))
    else:
        raise DataError(f"{where}, y: {values.dtype} values are no classes; give integers or set kind: regression")
    silo_index, silo_names = labels(silo, len(values), where=f"{where}, silo")
    group_index, group_names = labels(group, len(values), where=f"{where}, group")
    return Table(
        kind=kind,
        features=torch.from_numpy(finite),
        targets=torch.from_numpy(np.ascontiguousarray(targets)),
        classes=len(names) or None,
        silo=silo_index,
        groups=group_index,
        silo_names=silo_names,
        group_names=group_names,
        class_names=names,
        notes=tuple(notes),
    )


def floats(values: NDArray[Any], *, where: str) -> NDArray[np.float32]:
    """An array as finite float32 numbers."""
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where}: {values.dtype} values are no numbers; convert them")
    with np.errstate(over="ignore"):  # Overflow is reported below.
        result = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(result).all():
        row = int(np.argwhere(~np.isfinite(result))[0][0])
        raise DataError(f"{where}, row {row}: a value that is not finite in float32; correct it or drop the row")
    return result


def labels(values: Any, rows: int, *, where: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Silo or group labels as int64 indices and their sorted names."""
    if values is None:
        return None, ()
    array = np.asarray(values)
    if array.shape != (rows,) or array.dtype.kind not in "biuU":
        what = f"{array.dtype} values of shape {array.shape}"
        raise DataError(f"{where}: {what}; give one integer or word per row, shape ({rows},)")
    found, index = np.unique(array, return_inverse=True)
    return torch.from_numpy(index.astype(np.int64)), tuple(str(name) for name in found)
