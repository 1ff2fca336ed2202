"""The steps from rows to silos: a public test, the deal, held-out rows, and features as each silo sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from client.errors import DataError
from client.examples import Examples, Shards
from client.tables import Table
from privacy.streams import derive, generator
from strategies.experiment import Data


def draw_public(
    config: Data, source: Table, official: Table | None, order: Tensor, seed: int
) -> tuple[Examples | None, Tensor, list[str]]:
    """The public test (before standardisation), the order of the rows left for silos, and notes."""
    count = share(config.public_test, len(order))
    if config.public_test and not count:
        raise DataError(f"data.public_test: {config.public_test:g} of {len(order)} rows is none; raise it or use 0")
    if not count:
        return None, order, []
    notes = ["public test rows are not rotated"] if config.partition.name == "rotation" else []
    if official is None:
        if config.partition.name == "column":  # Elsewhere silos are made of what the public test leaves.
            notes.append(
                "public test rows were the silos' own: they are taken to be public, epsilon does not cover them"
            )
        rows = Examples(source.features, source.targets, source.groups)
        return rows.select(order[:count]), order[count:], notes
    chosen = torch.randperm(len(official), generator=generator(seed, "data", "official"))[:count]
    notes.append(f"public test: {len(chosen)} of {len(official)} rows of the official test set")
    return Examples(official.features, official.targets, official.groups).select(chosen), order, notes


def deal(config: Data, source: Table, order: Tensor, seed: int) -> tuple[list[Tensor], tuple[str, ...], list[str]]:
    """The rows of each silo (indices into the source, in shuffled order), the silos' names, and notes."""
    natural: Tensor | None = None
    notes: list[str] = []
    if config.partition.name == "column":
        if config.silos is not None:
            raise DataError(
                f"data.silos: found {config.silos}, but partition: column takes those of the data; remove it"
            )
        if source.silo is None:
            raise DataError("data.partition: column needs data that names silos; give data.silo or another partition")
        present, numbers = np.unique(source.silo[order].numpy(), return_inverse=True)  # From 0 without a gap.
        natural = torch.from_numpy(numbers)
        names = tuple(source.silo_names[index] for index in present)
        if absent := sorted(set(source.silo_names) - set(names)):
            notes.append(f"{len(absent)} silos have no row left beside the public test and limit: " + ", ".join(absent))
    elif config.silos is None:
        raise DataError("data.silos: missing; give the number of silos, or use partition: column")
    else:
        names = tuple(f"silo-{index:0{len(str(config.silos - 1))}d}" for index in range(config.silos))
    try:
        groups = None if source.groups is None else source.groups[order]
        dealt = config.partition.skewed(source.targets[order], groups)
        parts = config.partition.split(dealt, silos=len(names), key=derive(seed, "data", "partition"), natural=natural)
    except ValueError as error:
        raise DataError(f"data.{error}") from error
    return [order[part] for part in parts], names, notes


def hold_out(config: Data, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor] | None, list[Tensor] | None]:
    """Cuts every silo's rows, which are in random order, into training, validation and test rows."""
    tests = [share(config.test, len(part)) for part in parts]
    held = [test + share(config.validation, len(part)) for test, part in zip(tests, parts)]
    bare = sum(count >= len(part) for count, part in zip(held, parts))
    if bare:
        what = f"validation {config.validation:g} and test {config.test:g} leave {bare} of {len(parts)} silos"
        raise DataError(f"data: {what} without a training row; lower them or use fewer silos")
    splits: dict[str, list[Tensor] | None] = {"validation": None, "test": None}
    for option, fraction, starts, ends in (
        ("test", config.test, [0] * len(parts), tests),
        ("validation", config.validation, tests, held),
    ):
        if fraction and starts == ends:
            raise DataError(f"data.{option}: {fraction:g} of every silo's rows is none; raise it or use 0")
        if fraction:
            splits[option] = [part[start:end] for part, start, end in zip(parts, starts, ends)]
    return [part[count:] for part, count in zip(parts, held)], splits["validation"], splits["test"]


def scaled(config: Data, table: Table) -> Table:
    """The rows with targets in the units of `target_scale`, and a note that says so.

    Raises:
        DataError: a scale for classes.
    """
    units = config.target_scale
    if units is None:
        return table
    if table.kind != "regression":
        raise DataError(f"data.target_scale: the data is {table.kind}, whose targets are no quantities; remove it")
    note = f"targets are (target - {units.mean:g}) / {units.std:g}, by public constants; errors are in these units"
    return replace(table, targets=(table.targets - units.mean) / units.std, notes=(*table.notes, note))


def share(fraction: float, rows: int) -> int:
    """Rows in a fraction, rounded half up."""
    return int(fraction * rows + 0.5)


def finish(config: Data, shards: Shards, train: Shards) -> Shards:
    """Each silo's rows as that silo sees them: skewed by the partition, then standardised."""
    seen: list[Tensor] = []
    try:
        for index in range(len(shards)):
            skewed, reference = (
                config.partition.transform(part.silo(index).features, silo=index) for part in (shards, train)
            )
            seen.append(scale(config, skewed, reference))
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"data.{error}") from error
    rows = Examples(torch.cat(seen), shards.rows.targets, shards.rows.groups)
    return Shards(rows, shards.offsets)


def scale(config: Data, features: Tensor, reference: Tensor) -> Tensor:
    """Standardised features, their errors in the words of the data section."""
    try:
        return config.standardize.apply(features, reference=reference)
    except ValueError as error:
        raise DataError(f"data.{error}") from error
