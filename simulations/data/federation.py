"""From rows to silos: one table is shuffled, split, dealt, held out and standardised, in that order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.errors import DataError
from client.examples import Examples, Shards
from client.files import read_csv, read_npz
from client.tables import Kind, Table
from privacy.streams import generator
from simulations.data import folders, sources
from simulations.data.splits import deal, draw_public, finish, hold_out, scale, scaled
from strategies.experiment import Data

SPLITS = ("train", "validation", "test")
FACTS = (
    *("name", "kind", "classes", "silo_names", "group_names", "feature_names", "class_names", "notes"),
    *("fingerprint", "deal"),
)


@dataclass(frozen=True)
class Federation:
    """The rows of all silos of a simulation, and the public test.

    Attributes:
        name: of the source.
        kind: what the targets are.
        classes: number of classes, or size of the vocabulary; None for regression.
        train: training rows, silo after silo; no silo is without.
        validation: rows held out in each silo to choose with, or None; same silos, of which some may have no row.
        test: rows held out in each silo to test on, or None; likewise.
        public_test: rows that are nobody's, or None.
        silo_names: one per silo.
        group_names: what the numbers in `Examples.groups` mean.
        notes: how words were coded, what standardisation assumed, what was left out; part of every result.
        feature_names: one per feature, where the data names them; see `client.tables.Table`.
        class_names: one per class, where the data names them.
        fingerprint: SHA-256 of the source's features and targets, whatever the partition (hexadecimal).
        deal: SHA-256 of whose each row is: silos of two federations with one deal hold no row of another's silo.
    """

    name: str
    kind: Kind
    classes: int | None
    train: Shards
    validation: Shards | None
    test: Shards | None
    public_test: Examples | None
    silo_names: tuple[str, ...]
    group_names: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    deal: str
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row's features: `(1, 8, 8)` for images, `(80,)` for windows of text."""
        return tuple(self.train.rows.features.shape[1:])

    def save(self, folder: str | Path) -> None:
        """Writes it into a new folder of .npy files that worker processes can map into memory.

        Raises:
            DataError: the folder already holds one, or cannot be written.
        """
        arrays: dict[str, Tensor] = {}
        for split in SPLITS:
            if (shards := getattr(self, split)) is not None:
                arrays |= columns(split, shards.rows) | {f"{split}.offsets": shards.offsets}
        if self.public_test is not None:
            arrays |= columns("public_test", self.public_test)
        folders.save(folder, arrays, facts={fact: getattr(self, fact) for fact in FACTS})

    @classmethod
    def load(cls, folder: str | Path) -> Federation:
        """Maps a saved federation into memory.

        Raises:
            DataError: no federation there, or one of another version.
        """
        arrays, facts = folders.load(folder)
        if facts.keys() != set(FACTS) or "train.offsets" not in arrays:
            raise DataError(f"{folder}: no federation that this version wrote; save it again")
        splits = {
            split: Shards(examples(split, arrays), arrays[f"{split}.offsets"])
            for split in SPLITS
            if f"{split}.offsets" in arrays
        }
        return cls(
            name=facts["name"],
            kind=facts["kind"],
            classes=facts["classes"],
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits.get("test"),
            public_test=examples("public_test", arrays) if "public_test.targets" in arrays else None,
            silo_names=tuple(facts["silo_names"]),
            group_names=tuple(facts["group_names"]),
            notes=tuple(facts["notes"]),
            fingerprint=facts["fingerprint"],
            deal=facts["deal"],
            feature_names=tuple(facts["feature_names"]),
            class_names=tuple(facts["class_names"]),
        )


def columns(split: str, rows: Examples) -> dict[str, Tensor]:
    """The tensors of some rows, by the name of their file."""
    tensors = {"features": rows.features, "targets": rows.targets, "groups": rows.groups}
    return {f"{split}.{name}": tensor for name, tensor in tensors.items() if tensor is not None}


def examples(split: str, arrays: Mapping[str, Tensor]) -> Examples:
    """The inverse of `columns`."""
    return Examples(arrays[f"{split}.features"], arrays[f"{split}.targets"], arrays.get(f"{split}.groups"))


def build(config: Data, *, seed: int, table: Table | None = None) -> Federation:
    """Builds the silos of an experiment.

    The public test is drawn before rows are dealt; a source with an official test set (Fashion-MNIST, Adult) gives
    rows of that instead, as many, and keeps all others for the silos. `limit` is applied first of all.

    Args:
        config: the experiment's data section.
        seed: the experiment's seed; `data.seed` takes its place here.
        table: rows already read (`client.files.read_dataset`), instead of what `config` names.

    Raises:
        DataError: data that cannot be read or dealt as asked.
    """
    source, official = (table, None) if table is not None else read(config)
    if not source.features.is_floating_point() and config.standardize.name != "none":
        raise DataError("data.standardize: tokens are no quantities; use standardize: none")
    identity = fingerprint(source, official)  # Of the rows as they are: a budget knows them in any units.
    source, official = scaled(config, source), None if official is None else scaled(config, official)
    seed = config.seed if config.seed is not None else seed
    order = torch.randperm(len(source), generator=generator(seed, "data", "order"))[: config.limit]
    public, order, notes = draw_public(config, source, official, order, seed)
    parts, silo_names, absent = deal(config, source, order, seed)
    notes = [*source.notes, *notes, *absent]
    train, validation, test = hold_out(config, parts)
    rows = Examples(source.features, source.targets, source.groups)
    raw = Shards.gather(rows, train)
    for option, held in (("validation", validation), ("test", test)):
        if held is not None and (empty := sum(len(part) == 0 for part in held)):
            notes.append(f"{empty} silos are too small for a {option} row")
    if config.standardize.note is not None:
        notes.append(config.standardize.note)

    def ready(parts: list[Tensor] | None) -> Shards | None:
        return None if parts is None else finish(config, Shards.gather(rows, parts), raw)

    if public is not None:
        public = Examples(scale(config, public.features, public.features), public.targets, public.groups)
    return Federation(
        name=config.name or (Path(config.path).name if config.path is not None else "dataset"),
        kind=source.kind,
        classes=source.classes,
        train=finish(config, raw, raw),
        validation=ready(validation),
        test=ready(test),
        public_test=public,
        silo_names=silo_names,
        group_names=source.group_names,
        notes=tuple(notes),
        fingerprint=identity,
        deal=dealt(config, source, parts, silo_names),
        feature_names=source.feature_names,
        class_names=source.class_names,
    )


def read(config: Data) -> tuple[Table, Table | None]:
    """The rows that an experiment names, and their official test set where there is one."""
    if config.name is not None:
        for option, value in (("target", config.target), ("silo", config.silo)):
            if value is not None:
                raise DataError(f"data.{option}: found {value!r}, but {config.name} has its own; remove it")
        return sources.load(config.name, group=config.group)
    if config.path is None:
        raise DataError("data: neither name nor path; give one")
    suffix = Path(config.path).suffix.lower()
    if suffix == ".csv":
        if config.target is None:
            raise DataError(f"data.target: missing; name the column of {config.path} to predict")
        found = read_csv(config.path, target=config.target, silo=config.silo, group=config.group, kind=config.kind)
        return found, None
    if suffix == ".npz":
        for option, value in (("target", config.target), ("silo", config.silo), ("group", config.group)):
            if value is not None:
                raise DataError(f"data.{option}: npz arrays are named x, y, silo and group; remove data.{option}")
        return read_npz(config.path, kind=config.kind), None
    raise DataError(f"data.path: {config.path} ends in {suffix or 'nothing'!r}; give a .csv or .npz file")


def fingerprint(source: Table, official: Table | None) -> str:
    """SHA-256 of features and targets as read: before shuffling, limits, partitions and standardisation."""
    digest = hashlib.sha256()
    for table in (source, official):
        for tensor in () if table is None else (table.features, table.targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().reshape(-1).data)
    return digest.hexdigest()


def dealt(config: Data, source: Table, parts: Sequence[Tensor], names: Sequence[str]) -> str:
    """SHA-256 of whose each row is, so that the number of a silo means the same wherever this is the same.

    Where the data itself names silos, a row is of the silo that it names, whatever was drawn for the public test.
    """
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    if config.partition.name == "column" and source.silo is not None:
        parts = [source.silo]
    for part in parts:
        digest.update(f"{len(part)}\n".encode())
        digest.update(part.to(torch.int64).contiguous().numpy().data)
    return digest.hexdigest()
