"""What the server itself holds of a federation's data: the form of the rows, and a public test.

A data set by name is public, and dealt as in a simulation. A file on the server is taken to be public as a whole: silos
have files of their own, with the same columns.
"""

from __future__ import annotations

from pathlib import Path

import torch

from client.errors import DataError
from client.examples import Examples, Shards
from simulations.data.federation import Federation, fingerprint, read
from simulations.data.splits import scale, scaled
from strategies.experiment import Experiment

NOTE = "public test: all rows of the server's own file; silos train on files of their own"


def federation(experiment: Experiment) -> Federation | None:
    """A federation whose silos are empty here, and whose public test is the server's file; None for data by name.

    Raises:
        DataError: the file cannot be read, or `data.silos` is missing.
    """
    data = experiment.data
    if data.path is None:
        return None
    if data.silos is None:
        raise DataError("data.silos: missing; silos with files of their own have to be counted")
    table = scaled(data, read(data)[0])
    rows = Examples(table.features, table.targets, table.groups)
    public = Examples(scale(data, rows.features, rows.features), rows.targets, rows.groups)
    standard = [] if data.standardize.note is None else [data.standardize.note]
    return Federation(
        name=Path(data.path).name,
        kind=table.kind,
        classes=table.classes,
        train=Shards(public.select(slice(0, 0)), torch.zeros(data.silos + 1, dtype=torch.int64)),
        validation=None,
        test=None,
        public_test=public if data.public_test and len(public) else None,
        silo_names=tuple(f"silo-{number}" for number in range(data.silos)),
        group_names=table.group_names,
        notes=(*table.notes, *standard, *([NOTE] if data.public_test else [])),
        fingerprint=fingerprint(table, None),
        deal=f"files of {data.silos} silos",
        feature_names=table.feature_names,
        class_names=table.class_names,
    )
