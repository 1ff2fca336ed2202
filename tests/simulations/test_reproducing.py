"""The command that a report shows makes the very same experiment."""

from __future__ import annotations

import pytest

from simulations import reproducing
from simulations.reproducing import command, source
from simulations.shipped import find, shipped
from strategies.codec import encode
from strategies.loading import load

STARTED = ["confide", "run", "quickstart"]


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_experiment_is_its_own_command(name: str) -> None:
    assert command(load(find(name))) == ["confide", "run", name]


@pytest.mark.parametrize(
    "assignments",
    [
        ["seed=3", "rounds=20"],
        ["train.learning_rate=1e-5"],
        ["privacy.silo=null", "privacy.audit.canaries=0"],
        ["strategy={name: mr_mtl, lam: 0.3}"],
        ["strategy.server={name: adam, learning_rate: 0.01}"],
        ["privacy.silo.channels=[{name: delta, clip_norm: 0.25, share: 1.0}]"],
        ["data.partition={name: dirichlet, alpha: 0.5}", "engine.stacked='off'"],
    ],
)
def test_changed_keys_come_back_from_the_command(assignments: list[str]) -> None:
    wanted = load(find("quickstart"), assignments)
    said = command(wanted)
    assert said[:3] == STARTED
    assert said[3::2] == ["--set"] * len(said[4::2])
    assert encode(load(find("quickstart"), said[4::2])) == encode(wanted)


def test_another_experiment_is_read_from_its_file() -> None:
    assert command(load(find("quickstart"), ["name=mine"])) == ["confide", "run", "experiment.yaml"]


def test_a_command_of_many_keys_is_no_easier_to_read_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducing, "MOST_KEYS", 2)
    assert command(load(find("quickstart"), ["seed=3", "rounds=2"]))[2] == "quickstart"
    changed = load(find("quickstart"), ["seed=3", "rounds=2", "train.steps=1"])
    assert command(changed) == ["confide", "run", "experiment.yaml"]


def test_what_was_imported_or_handed_over_is_asked_for_again() -> None:
    plain = load(find("quickstart"))
    assert command(plain, ["mine", "yours"])[3:] == ["--plugin", "mine", "--plugin", "yours"]
    own = load(find("quickstart"), ["name=own", "data.name=dataset"])
    assert command(own)[2:] == ["experiment.yaml", "--dataset", "MODULE:NAME"]


def test_a_changed_file_changes_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source.__wrapped__()
    assert whole == source() == source.__wrapped__()
    assert len(bytes.fromhex(whole)) == 32
    monkeypatch.setattr(reproducing, "PACKAGES", reproducing.PACKAGES[1:])
    assert source.__wrapped__() != whole
