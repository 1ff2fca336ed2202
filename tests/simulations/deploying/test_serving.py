"""Whole runs with silos in offices of their own, reached by bytes: what `flwr run .` does, without Flower."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client.office import Office
from client.policy import Allowance, Policy
from privacy.ledger import read as read_ledger
from server.remote import Unreachable
from server.store import StoreError
from simulations import run
from simulations.deploying.certificates import Folder, make, signing_key
from simulations.deploying.connecting import SIGNING
from simulations.deploying.opening import Opener
from simulations.deploying.serving import STOP, order, serve
from simulations.deploying.submitting import _resumed
from strategies.codec import decode, encode
from strategies.envelope import Task
from strategies.experiment import Metrics, digest
from strategies.loading import load
from strategies.schema import ConfigError
from strategies.yaml_text import yaml_of
from tests.server.posts import FakePost, Time

torch.set_num_threads(1)

SILOS = 4
SMALL = f"data.silos={SILOS}\ncohort.rate=1\nrounds=3\nprivacy.audit.canaries=0\nengine.deadline_s=20"
BARE, SEEDED = f"{SMALL}\nprivacy.silo=null", f"{SMALL}\nprivacy.noise=simulated"
MOMENTS = "data.standardize={name: private, low: [0], high: [1], noise_multiplier: 1.0}"
OPEN = Policy(
    unprotected=True, strategies=("fedavg", "mr_mtl"), tasks=("logistic",), metrics=("score", "loss", "train_loss")
)
GUARDED = Policy(
    silo=Allowance(epsilon=1000.0, delta=1e-4), strategies=("fedavg",), tasks=("logistic",), simulated_noise=True
)


OFFICES: list[Office] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OFFICES:
        OFFICES.pop().close()


def federation(folder: Path, policy: Policy, *, data: str = "digits", silos: int = SILOS) -> FakePost:
    """Silos whose policy is the same; with `{}` in `data`, each has a file of its own."""
    post = FakePost(Time())
    for number in range(silos):
        opener = Opener(data.format(number), number)
        office = Office(number=number, policy=policy, folder=folder / f"silo-{number}", open_run=opener)
        OFFICES.append(office)
        post.silos[number + 1] = office.handle
    return post


def settings(folder: Path, overrides: str, **more: str) -> dict[str, str]:
    return {"config": "quickstart", "set": overrides, "out": str(folder / "run"), **more}


def model(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def difference(one: Path, other: Path) -> float:
    first, second = model(one), model(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def result(folder: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def charged(ledger: Path) -> list[int]:
    """The rounds that a silo's ledger holds a charge of the whole silo for."""
    return [line["round"] for line in read_ledger(ledger) if line["kind"] == "reserve" and line["unit"] == "silo"]


def here(folder: Path, overrides: str, engine: str = "local") -> Path:
    """The same run in this process, or in a pool."""
    lines = [*overrides.splitlines(), f"engine.kind={engine}"]
    return run(
        "quickstart", out=folder / engine, overrides=[*lines, "engine.workers=1"] if engine == "pool" else lines
    ).folder


@pytest.mark.parametrize(
    ("overrides", "policy"),
    [
        (BARE, OPEN),
        (SEEDED, GUARDED),
        (f"{SEEDED}\nprivacy.audit.canaries=8", GUARDED),
        (f"{SEEDED}\n{MOMENTS}\nprivacy.audit.canaries=8\nwire.values=float16", GUARDED),
        (f"{BARE}\nwire.values=float16\nwire.feedback=true", OPEN),
        (f"{BARE}\nstrategy=mr_mtl\ndata.test=0.2\nmetrics.privacy=research", OPEN),
    ],
    ids=["bare", "noised", "audited", "standardised", "float16", "personal"],
)
def test_silos_apart_make_the_model_that_one_process_makes(tmp_path: Path, overrides: str, policy: Policy) -> None:
    """In every bit: a stack pads a silo as the silo alone does, here 359 rows and 360 rows to 368."""
    serve(federation(tmp_path, policy), settings(tmp_path, overrides))
    local = here(tmp_path, overrides)
    assert difference(tmp_path / "run", local) == 0
    assert difference(tmp_path / "run", here(tmp_path / "alone", f"{overrides}\nengine.chunk=1")) == 0
    one, other = result(tmp_path / "run"), result(local)
    assert one.keys() == other.keys()
    assert one["engine"] == "flower"
    assert one["updates"] == other["updates"]
    assert one["communication"] == other["communication"]
    assert one["privacy"].keys() == other["privacy"].keys()
    if one["privacy"]["silo"] is not None:
        assert one["privacy"]["silo"] == other["privacy"]["silo"]


@pytest.mark.parametrize(("overrides", "policy"), [(BARE, OPEN), (SEEDED, GUARDED)], ids=["bare", "noised"])
def test_the_whole_quickstart_is_one_model_wherever_it_runs(tmp_path: Path, overrides: str, policy: Policy) -> None:
    """60 rounds, in one process, in a pool and with silos apart, within 1e-6 of each other.

    With noise of std 1 on a sum of four silos weights come to 50, where neighbouring float32 numbers are 4e-6 apart:
    this holds because all engines compute the same bits.
    """
    whole = f"{overrides}\nrounds=60\nmetrics.every=60"
    serve(federation(tmp_path, policy), settings(tmp_path, whole))
    for engine in ("local", "pool"):
        assert difference(tmp_path / "run", here(tmp_path, whole, engine)) <= 1e-6


def test_workers_make_the_same_model_too(tmp_path: Path) -> None:
    serve(federation(tmp_path, OPEN), settings(tmp_path, BARE))
    assert difference(tmp_path / "run", here(tmp_path, f"{BARE}\nengine.chunk=1", "pool")) == 0


def test_every_silo_charges_its_own_ledger(tmp_path: Path) -> None:
    serve(federation(tmp_path, GUARDED), settings(tmp_path, SEEDED))
    for number in range(SILOS):
        [ledger] = (tmp_path / f"silo-{number}" / "ledgers").glob("*.jsonl")
        paid = charged(ledger)
        assert paid == [1, 2, 3]


def test_noise_is_the_systems_unless_asked_for(tmp_path: Path) -> None:
    serve(federation(tmp_path, replace(GUARDED, simulated_noise=False)), settings(tmp_path, SMALL))
    assert "noise: system" in (tmp_path / "run" / "experiment.yaml").read_text()
    assert not any("simulated noise" in note for note in result(tmp_path / "run")["notes"])


def test_simulated_noise_is_the_silos_to_allow(tmp_path: Path) -> None:
    strict = replace(GUARDED, simulated_noise=False)
    with pytest.raises(Unreachable, match=r"no silo takes part .*policy: .*noise"):
        serve(federation(tmp_path, strict), settings(tmp_path, f"{SEEDED}\nengine.deadline_s=0.2"))


def test_the_defaults_of_noise() -> None:
    """Without anything to protect there is no noise to keep secret, and the digest stays that of other engines."""
    assert order({"config": "quickstart"}).experiment.privacy.noise == "system"
    assert order({"config": "quickstart", "set": BARE}).experiment.privacy.noise == "simulated"
    assert load(Path("simulations/configs/quickstart.yaml")).privacy.noise == "simulated"


def test_a_run_that_is_resumed_elsewhere_may_have_other_sinks(tmp_path: Path) -> None:
    sinks = ["wandb", {"name": "mlflow", "store": "x.db"}]
    config = order({"config": "quickstart", "set": BARE}).experiment
    (tmp_path / "experiment.yaml").write_text(yaml_of(encode(config)))
    asked = replace(config, metrics=decode(Metrics, {"sinks": sinks}))
    again = order(_resumed(asked, tmp_path))
    assert again.resume
    assert again.experiment.metrics.sinks == asked.metrics.sinks
    assert digest(again.experiment) == digest(config)


def test_silos_that_name_their_server_train_for_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ours", "theirs"):
        make(Folder(tmp_path / name), hosts=[], nodes=[])
    key = signing_key(Folder(tmp_path / "ours").signing_key).public_key().public_bytes_raw().hex()
    named = replace(OPEN, server_keys=(key,))
    monkeypatch.setenv(SIGNING, str(Folder(tmp_path / "theirs").signing_key))
    with pytest.raises(Unreachable, match="signature"):
        serve(Unsigned.of(federation(tmp_path, named)), settings(tmp_path, f"{BARE}\nengine.deadline_s=0.2"))
    monkeypatch.setenv(SIGNING, str(Folder(tmp_path / "ours").signing_key))
    serve(Unsigned.of(federation(tmp_path / "again", named)), settings(tmp_path / "again", BARE))
    assert result(tmp_path / "again" / "run")["updates"]["arrived"] == 3 * SILOS


class Unsigned(FakePost):
    """A fake post whose notes are of what is under a signature."""

    @classmethod
    def of(cls, post: FakePost) -> Unsigned:
        return cls(post.time, post.silos)

    def note(self, node: int, data: bytes) -> None:
        super().note(node, data[4 + 32 + 64 :])


class Killed(Exception):
    """The server's process is gone."""


@pytest.mark.parametrize("overrides", [SEEDED, f"{BARE}\nstrategy=mr_mtl"], ids=["noised", "personal"])
def test_a_killed_run_goes_on_in_another(tmp_path: Path, overrides: str) -> None:
    """Killed in round 2, after silos 0 and 1 were asked: round 2 is their second attempt, charged twice there."""
    policy = GUARDED if overrides is SEEDED else OPEN
    post, tasks = federation(tmp_path, policy), []
    third = post.silos[3]

    def kills(data: bytes) -> bytes | None:
        tasks.append(data)
        if len(tasks) == 3:  # Hello, round 1, round 2.
            post.silos = {}  # Nobody hears of it.
            raise Killed
        return third(data)

    silos = dict(post.silos)
    post.silos[3] = kills
    with pytest.raises(Killed):
        serve(post, settings(tmp_path, overrides))
    post.silos = silos
    serve(post, {"resume": str(tmp_path / "run")})
    assert {(task.round, task.attempt) for _, task in post.asked("train")} == {(1, 1), (2, 1), (2, 2), (3, 1)}
    assert difference(tmp_path / "run", here(tmp_path, overrides)) <= 1e-6
    if policy is GUARDED:
        paid = []
        for number in range(SILOS):
            [ledger] = (tmp_path / f"silo-{number}" / "ledgers").glob("*.jsonl")
            paid.append(charged(ledger))
        assert paid == [[1, 2, 2, 3], [1, 2, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_a_done_run_is_not_begun_again(tmp_path: Path) -> None:
    post = federation(tmp_path, OPEN)
    serve(post, settings(tmp_path, BARE))
    with pytest.raises(StoreError, match="nothing to resume"):
        serve(post, {"resume": str(tmp_path / "run")})


def test_a_file_ends_a_run_after_the_round_in_flight(tmp_path: Path) -> None:
    post = federation(tmp_path, OPEN)
    first = post.silos[1]

    def stops(data: bytes) -> bytes | None:
        if post.asked("train"):
            (tmp_path / "run" / STOP).touch()
        return first(data)

    post.silos[1] = stops
    serve(post, settings(tmp_path, BARE))
    assert result(tmp_path / "run")["rounds"] == 1
    assert result(tmp_path / "run")["stopped"] == "interrupted"
    post.silos[1] = first
    serve(post, {"resume": str(tmp_path / "run")})
    assert result(tmp_path / "run")["rounds"] == 3


def test_a_silo_that_dies_is_counted_and_the_sum_is_of_the_others(tmp_path: Path) -> None:
    """Silo 2 answers round 1 only: 4 + 3 + 3 updates."""
    post = federation(tmp_path, OPEN)
    dies = post.silos[3]
    post.silos[3] = lambda data: dies(data) if len(post.asked("train")) <= SILOS else None
    serve(post, settings(tmp_path, BARE))
    assert result(tmp_path / "run")["updates"] == {
        "arrived": 10,
        "failed": 2,
        "reasons": {"relay of the silo failed": 2},
    }


def test_silos_with_files_of_their_own(tmp_path: Path) -> None:
    """Two classes that one column tells apart; the server's file is public, and silos' rows are in no other's."""
    rng = np.random.default_rng(0)

    def write(path: Path, rows: int) -> None:
        x = rng.normal(size=(rows, 2))
        words = ["yes" if row[0] > 0 else "no" for row in x]
        path.write_text("a,b,answer\n" + "".join(f"{u:.4f},{v:.4f},{word}\n" for (u, v), word in zip(x, words)))

    for number in range(3):
        write(tmp_path / f"rows-{number}.csv", 40)
    write(tmp_path / "public.csv", 50)
    config = tmp_path / "config.yaml"
    config.write_text(
        "rounds: 5\ntask: logistic\n"
        f"data: {{path: {tmp_path / 'public.csv'}, target: answer, silos: 3}}\n"
        "train: {epochs: 5, learning_rate: 1.0}\n"
    )
    post = federation(tmp_path, OPEN, data=str(tmp_path / "rows-{}.csv"), silos=3)
    serve(post, {"config": str(config), "out": str(tmp_path / "run")})
    found = result(tmp_path / "run")
    assert found["silos"] == 3
    assert found["updates"] == {"arrived": 15, "failed": 0, "reasons": {}}
    assert found["metrics"]["accuracy"] >= 0.9  # Of 50 rows; a coin gets 0.9 of them right once in 10^8.
    told: list[Task] = [task for _, task in post.asked("hello")]
    assert str(tmp_path) not in str(told[0].experiment)  # Where the server's file lies is nobody's concern.


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "names no experiment"),
        ({"config": "quickstart", "set": "rounds=0"}, "rounds: must be >= 1"),
        ({"experiment": "rounds: 1\ntasks: 1\n"}, "tasks: unknown key"),
        ({"config": "quickstart", "set": "engine.quorum=0.5"}, "under privacy a round never ends on a count"),
        ({"config": "quickstart", "set": "attacks=[sign_flip]"}, "attacks"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_file(tmp_path: Path, given: dict[str, str], line: str) -> None:
    status = tmp_path / "status.json"
    with pytest.raises(ConfigError):
        serve(FakePost(Time()), {**given, "status": str(status)})
    told = json.loads(status.read_text())
    assert told["code"] == 2
    assert any(line in each for each in told["lines"])


def test_how_a_run_ended_is_told_in_a_file(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    serve(federation(tmp_path, OPEN), settings(tmp_path, BARE, status=str(status)))
    assert json.loads(status.read_text()) == {"code": 0, "lines": []}
