from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from strategies.codec import encode
from strategies.loading import load, parse
from strategies.partitions import Dirichlet
from strategies.schema import ConfigError
from strategies.yaml_text import override

SMALL: dict[str, Any] = {"rounds": 3, "task": "logistic", "data": {"name": "digits", "silos": 10}}


def test_load_reads_a_file_and_then_the_overrides_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\ntask: {name: mlp, hidden: [16]}\ndata: {name: digits, silos: 10}\n")
    overrides = [
        "rounds=4",
        "rounds=5",
        "data.partition=dirichlet",
        "data.partition.alpha=1e-1",
        "task.activation=tanh",
    ]
    experiment = load(path, overrides)
    assert experiment.rounds == 5
    assert experiment.data.partition == Dirichlet(0.1)
    assert encode(experiment)["task"] == {"name": "mlp", "hidden": [16], "activation": "tanh"}


def test_stacking_is_switched_off_by_the_word_off(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\ntask: logistic\ndata: {name: digits, silos: 10}\nengine: {stacked: off}\n")
    assert load(path).engine.stacked == "off"
    assert load(path, ["engine.stacked=auto", "engine.stacked=off"]).engine.stacked == "off"


def test_standardisation_by_one_constant_is_written_as_one_number() -> None:
    listed = parse(override(SMALL, "data.standardize={name: constants, mean: [0.3], std: [1.0]}"))
    assert parse(override(SMALL, "data.standardize={name: constants, mean: 0.3, std: 1}")) == listed


def test_every_bad_override_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path, ["a", "b=!x 1"])
    assert [line.split(":")[0] for line in caught.value.problems] == ["--set a", "--set b"]


def test_a_file_cannot_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "booby.py").write_text("raise SystemError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text("rounds: 3\ntask: booby:Trap\ndata: {name: digits, silos: 10}\n")
    with pytest.raises(ConfigError, match=r"--plugin booby$"):
        load(path)
    assert "booby" not in sys.modules
