"""The rows of one silo, with nobody else's beside them, in the form that a server asks for.

A federation of which all other silos are empty: so streams, personal vectors and batches know the silo by the number
that it has everywhere, and what it computes is what a simulation of all silos would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.columns import Grid, numeric, tabulate
from client.errors import DataError, Refused
from client.examples import Examples, Shards
from client.files import read_grid, read_npz
from client.tables import Kind, Table
from privacy.streams import generator
from simulations.data.federation import Federation, build
from simulations.data.splits import hold_out, scale, scaled
from strategies.experiment import Experiment
from strategies.messages import Schema

FILES = (".csv", ".npz")


def is_file(data: str) -> bool:
    """Whether `--data` names a file and no data set that confide knows."""
    return Path(data).suffix.lower() in FILES


def named(experiment: Experiment, *, number: int) -> tuple[Federation, str]:
    """One silo of a data set by name, as a simulation deals it, and the fingerprint of the whole.

    Raises:
        DataError: cannot be had.
        Refused: it has no such silo.
    """
    whole = build(experiment.data, seed=experiment.seed)
    require_number(number, len(whole.train))
    return only(whole, number), whole.fingerprint


def of_file(path: str, experiment: Experiment, schema: Schema, *, number: int, silos: int) -> tuple[Federation, str]:
    """All rows of a file as one silo, and the fingerprint of the file, whatever the experiment reads of it.

    Raises:
        DataError: rows that cannot be read, or not as the experiment asks; it may quote them.
        Refused: columns that are not those of the schema.
    """
    require_number(number, silos)
    data = experiment.data
    source = scaled(data, _table(path, experiment, schema))
    seed = data.seed if data.seed is not None else experiment.seed
    order = torch.randperm(len(source), generator=generator(seed, "data", "order"))
    train, validation, test = hold_out(data, [order])
    rows = Examples(source.features, source.targets, source.groups)
    raw = Shards.gather(rows, train)

    def ready(parts: list[Tensor] | None) -> Shards | None:
        if parts is None:
            return None
        own = Shards.gather(rows, parts).rows
        return _alone(replace(own, features=scale(data, own.features, raw.rows.features)), number, silos)

    fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    trained = ready(train)
    assert trained is not None
    found = Federation(
        name=Path(path).name,
        kind=source.kind,
        classes=schema.classes,
        train=trained,
        validation=ready(validation),
        test=ready(test),
        public_test=None,
        silo_names=tuple(f"silo-{index}" for index in range(silos)),
        group_names=schema.group_names if source.groups is not None else (),
        notes=source.notes,
        fingerprint=fingerprint,
        deal="",
        feature_names=source.feature_names,
        class_names=schema.class_names,
    )
    return found, fingerprint


def only(whole: Federation, number: int) -> Federation:
    """A federation of which one silo alone has rows."""

    def kept(shards: Shards | None) -> Shards | None:
        if shards is None:
            return None
        rows = shards.silo(number)
        copy = rows.select(torch.arange(len(rows)))  # Not a view: the rows of others are let go.
        return _alone(copy, number, len(shards))

    train = kept(whole.train)
    assert train is not None
    return replace(whole, train=train, validation=kept(whole.validation), test=kept(whole.test), public_test=None)


def require_number(number: int, silos: int) -> None:
    """Requires that there is such a silo.

    Raises:
        Refused: there is not.
    """
    if not 0 <= number < silos:
        raise Refused("data", f"this is silo {number}, the experiment has silos 0 to {silos - 1}")


def _alone(rows: Examples, number: int, silos: int) -> Shards:
    offsets = torch.zeros(silos + 1, dtype=torch.int64)
    offsets[number + 1 :] = len(rows)
    return Shards(rows, offsets)


def _table(path: str, experiment: Experiment, schema: Schema) -> Table:
    if Path(path).suffix.lower() == ".csv":
        return _csv(path, experiment, schema)
    table = read_npz(path, kind="regression" if schema.kind == "regression" else "classification")
    targets, groups = table.targets, table.groups
    if schema.kind == "classification":
        targets = _renumbered("class", targets, table.class_names, schema.class_names)
    if groups is not None:
        groups = _renumbered("group", groups, table.group_names, schema.group_names)
    return replace(table, targets=targets, groups=groups, silo=None, silo_names=())


def _csv(path: str, experiment: Experiment, schema: Schema) -> Table:
    """A CSV file with the columns, words and classes of the schema, in its order."""
    data, grid = experiment.data, read_grid(path)
    if data.target is None:
        raise DataError(f"{path}: the experiment has no data.target for CSV files; give an npz file")
    categories = _categories(grid, schema)
    columns = list(dict.fromkeys(_column(name, grid) for name in schema.feature_names))
    extra = [data.target] + ([data.group] if data.group is not None else [])
    for name in (*columns, *extra):
        if name not in grid.cells:
            raise Refused("schema", f"the silo's rows have no column {name!r}, which the experiment needs")
    for name in grid.cells:
        if name not in columns and name not in extra:
            raise Refused("schema", f"the silo's rows have a column {name!r}, which is none of the experiment's")
    for name in columns:
        if name in schema.feature_names and not numeric(grid.cells[name]):
            raise Refused("schema", f"the silo's column {name!r} holds words where the experiment has numbers")
    words = {data.target: schema.class_names} if schema.kind == "classification" else {}
    if data.group is not None and schema.group_names:
        words[data.group] = schema.group_names
    ordered = Grid(grid.where, grid.lines, {name: grid.cells[name] for name in (*columns, *extra)})
    kind: Kind = "regression" if schema.kind == "regression" else "classification"
    return tabulate(ordered, kind=kind, target=data.target, group=data.group, categories={**categories, **words})


def _column(name: str, grid: Grid) -> str:
    """The column that a feature comes from: `colour=red` is one of the words of `colour`."""
    return name if name in grid.cells else name.partition("=")[0]


def _categories(grid: Grid, schema: Schema) -> Mapping[str, list[str]]:
    """The publicly known words of each column, as the names of features say them."""
    found: dict[str, list[str]] = {}
    for name in schema.feature_names:
        column, equals, word = name.partition("=")
        if name not in grid.cells and equals:
            found.setdefault(column, []).append(word)
    return found


def _renumbered(what: str, codes: Tensor, own: tuple[str, ...], public: tuple[str, ...]) -> Tensor:
    """Codes in the numbers that the schema gives their names."""
    number = {name: code for code, name in enumerate(public)}
    if strange := [name for name in own if name not in number]:
        raise DataError(f"{what} {strange[0]!r} is none of the experiment's; correct it, or drop the rows")
    return torch.from_numpy(np.array([number[name] for name in own], dtype=np.int64))[codes]
