"""Data of one's own: a CSV file of made-up hospitals, from the few keys that say what it is to a finished run."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.data.federation import build
from simulations.running import run
from strategies.experiment import Data, Experiment, digest
from strategies.loading import parse
from strategies.partitions import Column, Iid
from strategies.schema import ConfigError

torch.set_num_threads(1)

HOSPITALS, PATIENTS = 40, 25


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Length of stay = 2 + 3 severity + 0.5 on Mondays, and noise of 0.1; one line a patient."""
    draw = random.Random(7)
    path = tmp_path / "stays.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["hospital", "severity", "day", "stay"])
        for hospital in range(HOSPITALS):
            for _ in range(PATIENTS):
                severity, monday = draw.gauss(0, 1), draw.random() < 0.5
                stay = 2 + 3 * severity + 0.5 * monday + draw.gauss(0, 0.1)
                table.writerow([f"h{hospital}", f"{severity:.4f}", "mon" if monday else "tue", f"{stay:.4f}"])
    return path


def experiment(rows: Path, task: str = "linear", **data: Any) -> Experiment:
    given = {"name": "csv", "path": str(rows), "target": "stay", "silo": "hospital"} | data
    sections = {"rounds": 20, "task": task, "train": {"epochs": 1, "batch_size": 5, "learning_rate": 0.05}}
    return parse(sections | {"data": {key: value for key, value in given.items() if value is not None}})


def test_four_keys_are_enough_for_regression_over_hospitals(rows: Path, tmp_path: Path) -> None:
    config = experiment(rows)
    assert (config.data.kind, config.data.partition) == ("regression", Column())
    outcome = run(config, out=tmp_path / "run")
    assert outcome.result["silos"] == HOSPITALS
    # Noise alone is 0.01; the spread of the stays, which is what a mean predicts, is above 9.
    assert outcome.result["metrics"]["mse"] < 0.02


def test_every_spelling_is_one_experiment(rows: Path) -> None:
    short = experiment(rows)
    spelt = {"name": None, "kind": "regression", "partition": "column"}
    for data in ({"name": None}, {"kind": "regression"}, {"partition": "column"}, spelt):
        assert digest(experiment(rows, **data)) == digest(short)
    assert digest(experiment(rows, target="severity")) != digest(short)
    npz = {"path": "rows.npz", "target": None, "silo": None, "silos": 3}
    assert experiment(rows, **npz, name="npz") == experiment(rows, **npz, name=None)


@pytest.mark.parametrize(
    ("task", "kind"), [("linear", "regression"), ("logistic", "classification"), ("mlp", None), ("cnn", None)]
)
def test_the_kind_is_what_the_task_is_for(rows: Path, task: str, kind: str | None) -> None:
    assert experiment(rows, task).data.kind == kind


def test_where_the_task_is_for_both_the_target_tells(rows: Path) -> None:
    assert build(experiment(rows, "mlp").data, seed=0).kind == "regression"
    assert build(experiment(rows, "mlp", target="day").data, seed=0).kind == "classification"


def test_silos_that_the_file_names_are_the_partition() -> None:
    assert Data(path="a.csv", silo="hospital").partition == Column()
    assert Data(path="a.csv").partition == Iid()
    assert Data(name="digits").partition == Iid()


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"partition": "iid"},
        "data.partition: found iid, but data.silo: hospital says whose row it is; use partition: column",
    ),
    ({"silos": 5}, "data.silos: found 5, but partition: column takes the silos of the data; remove it"),
    ({"path": None}, "data.path: missing, name: csv needs the file's path"),
    ({"name": "npz"}, "does not end in .npz; correct one of them"),
    ({"name": "digits"}, "data: give one of name and path, found both"),
    (
        {"name": "digits", "path": None, "kind": "regression", "silo": None, "target": None, "silos": 3},
        "data.kind: found",
    ),
]


@pytest.mark.parametrize(("data", "line"), CONTRADICTIONS)
def test_what_contradicts_itself_is_one_line(rows: Path, data: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        experiment(rows, **data)
    assert [line in problem for problem in error.value.problems] == [True]


def test_a_dataset_of_ones_own_may_be_for_regression(rows: Path) -> None:
    own = {"name": "dataset", "path": None, "target": None, "silo": None, "silos": 3}
    assert experiment(rows, **own).data.kind == "regression"
