"""Sinks: a CSV file always, others where they are asked for; one that fails stops nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.loop import RoundResult
from simulations.cli import main
from simulations.folders import reopen
from simulations.running import INTERRUPTED, ActiveRun, Outcome, train
from simulations.sinks import telling
from simulations.sinks.base import Row, Told, numbers
from strategies.experiment import Experiment, digest
from strategies.loading import parse
from strategies.schema import ConfigError
from strategies.sinks import SINKS

SILO = {"clip_norm": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}


def experiment(**changes: Any) -> Experiment:
    config = {
        "name": "sunk",
        "rounds": 5,
        "task": "logistic",
        "data": {"name": "digits", "silos": 6, "limit": 200},
        "metrics": {"every": 2},
    }
    found: Experiment = parse(config | changes)
    return found


def trained(config: Experiment, folder: Path, *, stop_after: int | None = None, resume: bool = False) -> Outcome:
    done: list[RoundResult] = []
    with ActiveRun(config, folder, resume=resume) as active:
        train(active, done.append, stop=lambda: stop_after is not None and len(done) >= stop_after)
        return active.finish()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "rounds.csv", newline="") as file:
        return list(csv.DictReader(file))


class Listener:
    """Keeps what it is told; raises where it is asked to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told, self.opened = fails, list[Row](), list[tuple[Told, bool]]()
        self.results: list[Mapping[str, Any] | None] = []
        self.calls: list[str] = []

    def _at(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails:
            raise RuntimeError(f"no {what}\nfor you")

    def open(self, told: Told, *, resumed: bool) -> None:
        self.opened.append((told, resumed))
        self._at("open")

    def round(self, row: Row) -> None:
        self.told.append(row)
        self._at(f"round {row['round']}")

    def close(self, result: Mapping[str, Any] | None) -> None:
        self.results.append(result)
        self._at("close")


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts listeners into the place of what an experiment names."""

    def put(**listeners: Listener) -> None:
        monkeypatch.setattr(telling, "_installed", lambda module: True)
        monkeypatch.setattr(telling, "made", lambda settings: listeners[settings.name])

    return put


def sunk(*names: str, **changes: Any) -> Experiment:
    return experiment(metrics={"every": 2, "sinks": list(names)}, **changes)


def test_the_csv_file_has_the_numbers_of_every_round(tmp_path: Path) -> None:
    trained(experiment(), tmp_path / "run")
    lines, found = rows(tmp_path / "run"), table(tmp_path / "run")
    assert [int(line["round"]) for line in found] == [1, 2, 3, 4, 5]
    for line, row in zip(found, lines):
        assert {name: float(line[name]) for name in numbers(row)} == numbers(row)
        empty = {name for name, cell in line.items() if cell == ""}
        assert empty == set(line) - set(numbers(row)) - {"round", "failure_reasons"}
        assert json.loads(line["failure_reasons"]) == {}
    assert list(found[0])[:4] == ["round", "cohort", "arrived", "failures"]
    assert (found[0]["accuracy"], found[1]["accuracy"]) == ("", repr(lines[1]["accuracy"]))


@pytest.mark.parametrize("harm", ["nothing", "torn", "behind", "missing", "ahead"])
def test_a_resumed_run_neither_loses_nor_repeats_a_line(tmp_path: Path, harm: str) -> None:
    trained(experiment(), tmp_path / "run", stop_after=3)
    path = tmp_path / "run" / "rounds.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    harmed = {"torn": [*lines[:-1], lines[-1][:7]], "behind": lines[:-2], "ahead": [*lines, b"4,1,1\r\n"]}
    path.write_bytes(b"".join(harmed.get(harm, lines)))
    if harm == "missing":
        path.unlink()
    trained(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    assert [int(line["round"]) for line in table(tmp_path / "run")] == [1, 2, 3, 4, 5]
    for line, row in zip(table(tmp_path / "run"), rows(tmp_path / "run")):
        assert {name: float(line[name]) for name in numbers(row)} == numbers(row)


def test_a_run_that_was_killed_after_its_last_round_has_its_whole_table(tmp_path: Path) -> None:
    with ActiveRun(experiment(), tmp_path / "run") as active:
        train(active)
    path = tmp_path / "run" / "rounds.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    trained(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    assert [int(line["round"]) for line in table(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_reason_from_elsewhere_is_no_formula(tmp_path: Path) -> None:
    from simulations.sinks.table import Table

    row = {"round": 1, "failures": 1, "failure_reasons": {'=cmd|"/c calc"!A1': 1}}
    written = Table()
    written.open(Told("x", tmp_path, {}, lambda: [row]), resumed=False)
    written.round(row)
    (line,) = table(tmp_path)
    assert all(cell[0] in "{0123456789" for cell in line.values())
    assert json.loads(line["failure_reasons"]) == row["failure_reasons"]


def test_a_sink_is_told_every_round_once_also_over_a_resume(tmp_path: Path, listen: Any) -> None:
    first, second = Listener(), Listener()
    listen(tensorboard=first)
    trained(sunk("tensorboard"), tmp_path / "run", stop_after=2)
    listen(tensorboard=second)
    trained(reopen(tmp_path / "run"), tmp_path / "run", resume=True)
    assert [row["round"] for row in first.told] == [1, 2]
    assert [row["round"] for row in second.told] == [3, 4, 5]
    assert [resumed for _, resumed in (*first.opened, *second.opened)] == [False, True]
    assert [row["round"] for row in second.opened[0][0].rows()] == [1, 2, 3, 4, 5]
    (result,) = second.results
    assert result is not None
    assert result["metrics"]["loss"] == second.told[-1]["loss"]
    (stopped,) = first.results
    assert stopped is not None
    assert stopped["stopped"] == INTERRUPTED


@pytest.mark.parametrize(
    ("fails", "when", "told"),
    [
        ("open", "as it was opened", []),
        ("round 3", "in round 3", [1, 2, 3]),
        ("close", "as it was closed", [1, 2, 3, 4, 5]),
    ],
)
def test_a_sink_that_fails_is_reported_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listen: Any, fails: str, when: str, told: Sequence[int]
) -> None:
    failing, good = Listener(fails), Listener()
    listen(mlflow=failing, wandb=good)
    result = trained(sunk("mlflow", "wandb"), tmp_path / "run").result
    said = f"confide: sink mlflow failed {when} and is left out: RuntimeError: no {fails} for you; the run goes on\n"
    assert capsys.readouterr().err == said
    why = f"failed {when}: RuntimeError: no {fails} for you"
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["sinks"] == result["sinks"] == {"csv": None, "mlflow": why, "wandb": None}
    assert result["rounds"] == 5
    assert [row["round"] for row in failing.told] == told
    assert failing.calls[-1] == fails  # Nothing more.
    assert [row["round"] for row in good.told] == [1, 2, 3, 4, 5]
    plain = trained(experiment(), tmp_path / "plain").result
    assert result["model"]["sha256"] == plain["model"]["sha256"]


def test_a_full_disk_under_the_csv_file_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"

    def fill(result: RoundResult) -> None:
        if result.round == 2:
            (folder / "rounds.csv").unlink()
            (folder / "rounds.csv").symlink_to("/dev/full")

    with ActiveRun(experiment(), folder) as active:
        train(active, fill)
        outcome = active.finish()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("confide: sink csv failed in round 3 and is left out: OSError: [Errno 28] No space left")
    assert outcome.result["sinks"]["csv"].startswith("failed in round 3: OSError")
    assert len(rows(folder)) == 5


def test_a_run_that_is_broken_off_closes_its_sinks_without_a_result(tmp_path: Path, listen: Any) -> None:
    sink = Listener()
    listen(wandb=sink)
    with pytest.raises(KeyboardInterrupt), ActiveRun(sunk("wandb"), tmp_path / "run") as active:
        next(iter(active))
        raise KeyboardInterrupt
    assert sink.results == [None]


def test_sinks_are_given_no_private_number_of_a_strict_run(tmp_path: Path, listen: Any) -> None:
    strict, research = Listener(), Listener()
    listen(wandb=strict)
    private = {"silo": SILO}
    trained(sunk("wandb", privacy=private), tmp_path / "strict")
    listen(wandb=research)
    metrics = {"every": 2, "sinks": ["wandb"], "privacy": "research"}
    trained(experiment(privacy=private, metrics=metrics), tmp_path / "research")
    for name in telling.PRIVATE:
        assert all(row.get(name) is not None for row in research.told)
        assert all(row.get(name) is None for row in strict.told)
        assert name not in table(tmp_path / "strict")[0]
        assert name in table(tmp_path / "research")[0]


def test_a_private_number_in_a_line_by_mistake_goes_nowhere(tmp_path: Path) -> None:
    sink = Listener()
    sinks = telling.Sinks({"a": sink}, private=False)
    row = {"round": 1, "train_loss": 0.5, "clip_fraction": 0.5, "loss": 1.0}
    sinks.open(Told("x", tmp_path, {}, lambda: [row]), resumed=True)
    sinks.round(row)
    assert sink.told == [{"round": 1, "loss": 1.0}]
    assert sink.opened[0][0].rows() == sink.told


def test_what_goes_to_a_tracker_holds_no_path_and_no_seed_that_noise_follows_from(tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("a,b,y\n" + "1,2,0\n2,1,1\n" * 20)
    data = {"path": str(path), "target": "y", "silos": 2}
    exact = telling.config_of(experiment(data=data))
    private = telling.config_of(experiment(data=data, privacy={"silo": SILO}))
    assert exact["seed"] == 0
    assert "seed" not in private
    for config in (exact, private):
        assert not any(str(tmp_path) in str(value) for value in config.values())
        assert not any(name.startswith(("metrics", "engine", "data.path")) for name in config)
        assert config["strategy.name"] == "fedavg"
        assert config["train.learning_rate"] == 0.1
    secret = experiment(privacy={"silo": SILO, "noise": "system"})
    assert telling.config_of(secret)["seed"] == 0


def test_trackers_tell_seeds_of_different_experiments_apart(tmp_path: Path) -> None:
    for folder, label in (("a", "a"), ("a/seed-3", "a-seed-3")):
        assert Told("x", tmp_path / folder, {}, list).label == label


def test_sinks_are_no_part_of_the_digest() -> None:
    plain = digest(experiment())
    for sinks in (["tensorboard"], [{"name": "mlflow", "store": "x.db"}, "wandb"]):
        assert digest(experiment(metrics={"every": 2, "sinks": sinks})) == plain


def test_a_run_is_resumed_with_other_sinks(tmp_path: Path, listen: Any) -> None:
    trained(experiment(), tmp_path / "run", stop_after=2)
    sink = Listener()
    listen(tensorboard=sink)
    trained(reopen(tmp_path / "run", ["metrics.sinks=[tensorboard]"]), tmp_path / "run", resume=True)
    assert [row["round"] for row in sink.told] == [3, 4, 5]
    assert [row["round"] for row in sink.opened[0][0].rows()][:2] == [1, 2]  # From which it takes what it missed.


@pytest.mark.parametrize("name", sorted(SINKS))
def test_a_missing_package_is_one_line_with_the_remedy_before_the_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(telling, "_installed", lambda module: False)
    folder = tmp_path / "run"
    assert main(["run", "quickstart", "--sink", name, "--out", str(folder)]) == 2
    wanted = " ".join(f"'{each}'" for each in SINKS[name].install)
    said = f"confide: metrics.sinks[0]: {name} is not installed; use: python -m pip install {wanted}\n"
    assert capsys.readouterr().err == said
    assert not folder.exists()


def test_a_folder_of_files_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "confide_no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not telling._installed("confide_no_such_package")
    assert telling._installed("json")


@pytest.mark.parametrize(
    ("sinks", "said"),
    [
        (["wandb", "wandb"], "metrics.sinks[1]: wandb is there twice; remove one"),
        (["wandbe"], "metrics.sinks[0].name: unknown 'wandbe', "),
        ([{"name": "mlflow", "uri": "http://x"}], "metrics.sinks[0].uri: unknown key, "),
        ("wandb", "metrics.sinks: expected a list of sections with a name, found "),
    ],
)
def test_a_mistake_in_sinks_is_one_line(sinks: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_installed", lambda module: True)
    with pytest.raises(ConfigError) as caught:
        telling.require(experiment(metrics={"sinks": sinks}))
    assert str(caught.value).startswith(said)
    assert len(caught.value.problems) == 1


def test_the_extras_are_what_a_missing_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name, sink in SINKS.items():
        assert tuple(project["optional-dependencies"][name]) == sink.install
