"""A run that is killed, by a real SIGKILL at every seam of a round, goes on as if nothing had happened.

Runs live in processes of their own: `DRIVER` imports everything once and forks a process for every attempt, so that
dozens of kills cost seconds. One test does without the fork and starts fresh interpreters.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.events import Gaussian, Poisson, Repeated, Sampled

ROUNDS, SILOS, CHUNKS, KILLED = 5, 6, 3, 3

PLUGIN = '''
"""A strategy with a personal vector that every round builds on, and that every update depends on."""

from dataclasses import dataclass

from strategies.base import Strategy, Update
from strategies.registry import strategy


@strategy("keepsake")
@dataclass(frozen=True)
class Keepsake(Strategy):
    """Each silo trains a model of its own, pulled to the mean."""

    def personal(self, size):
        return {"own": size}

    def init(self, model, rng, layout):
        return {"model": model, "initial": model}

    def local(self, silo, instruction):
        mean = instruction["model"]
        after = silo.fit(silo.state.get("own", mean), correct=lambda w, g: g + 0.5 * (w - mean))
        silo.state["own"] = after
        return Update({"delta": after - mean})

    def aggregate(self, state, release, rng):
        return dict(state) | {"model": state["model"] + release.mean("delta")}
'''

DRIVER = '''
"""Runs attempts one after the other, each in a process of its own, and says how each ended."""

import itertools, json, os, shutil, signal, sys
from pathlib import Path

import torch
torch.set_num_threads(1)

from client.host import SiloHost
from client.personal import PersonalStore
from privacy.accountant import epsilon
from privacy.events import Gaussian
from privacy.ledger import Ledger
from server.store import RunStore
from simulations import results
from simulations.engines.local import LocalLink
from simulations.running import ActiveRun, train
from strategies.loading import parse
from strategies.plugins import load_plugins

epsilon(Gaussian(1.0), 1e-5)
load_plugins(["keepsake"])
OWNERS = {owner.__name__: owner for owner in (Ledger, RunStore, LocalLink, SiloHost, PersonalStore, Path)}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half(file, line):
    file.write(line)
    file.flush()
    os.fsync(file.fileno())
    die()


def torn(self, *args, **kwargs):
    if isinstance(self, Ledger):
        half(self._file, b'{"kind": "reserve", "neighbours": "add_')
    with open(self.rounds, "a") as file:
        half(file, args[0][: len(args[0]) // 2])


def arm(seam):
    owner, calls = OWNERS[seam["owner"]], itertools.count(1)
    original = getattr(owner, seam["name"])

    def hooked(self, *args, **kwargs):
        counts = seam["target"] is None or Path(args[0]).name == seam["target"]
        now = counts and next(calls) == seam["call"]
        if now and seam["when"] == "torn":
            torn(self, *args)
        if now and seam["when"] == "before":
            die()
        value = original(self, *args, **kwargs)
        if now:
            die()
        return value

    setattr(owner, seam["name"], hooked)


def attempt(config, folder, seam):
    if seam is not None:
        arm(seam)
    with ActiveRun(parse(config), folder, resume=(folder / "experiment.yaml").exists()) as active:
        train(active)
        active.finish()


def forked(config, folder, seam):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        attempt(config, folder, seam)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    for job in json.load(sys.stdin):
        folder, ends = Path(job["folder"]), []
        for number, seam in enumerate(job["seams"]):
            if job["fork"]:
                ends.append(forked(job["config"], folder, seam))
            else:
                attempt(job["config"], folder, seam)
            if ends and ends[-1] == -signal.SIGKILL:
                shutil.copytree(folder, folder.with_name(f"{folder.name}-{number}"))
        print(json.dumps(ends), flush=True)
'''


@dataclass(frozen=True)
class Seam:
    """Where a process kills itself: around the `call`-th call of a method (whose first argument is named `target`)."""

    owner: str
    name: str
    when: str
    call: int
    target: str | None = None


@dataclass(frozen=True)
class Case:
    """A seam of a round; `paid`: its reserve is on the disk; `done`: its checkpoint is; `torn`: half the reserve is."""

    at: Callable[[int], Seam]
    paid: bool
    done: bool
    torn: bool = False


def around(owner: str, name: str, when: str, *, target: str | None = None) -> Callable[[int], Seam]:
    return lambda round_: Seam(owner, name, when, round_, target)


CASES = {
    "before the reserve": Case(around("Ledger", "reserve", "before"), paid=False, done=False),
    "in the middle of the reserve": Case(around("Ledger", "reserve", "torn"), paid=False, done=False, torn=True),
    "after the reserve": Case(around("Ledger", "reserve", "after"), paid=True, done=False),
    "before the first chunk": Case(around("LocalLink", "ask", "before"), paid=True, done=False),
    "after the first chunk": Case(
        lambda round_: Seam("SiloHost", "contribute", "after", CHUNKS * (round_ - 1) + 1), paid=True, done=False
    ),
    "after the last chunk": Case(
        lambda round_: Seam("SiloHost", "contribute", "after", CHUNKS * round_), paid=True, done=False
    ),
    "before staging": Case(around("LocalLink", "stage", "before"), paid=True, done=False),
    "before the checkpoint": Case(around("RunStore", "save", "before"), paid=True, done=False),
    "between the checkpoint's write and its rename": Case(
        around("Path", "replace", "before", target="checkpoint.safetensors"), paid=True, done=False
    ),
    "after the rename": Case(around("Path", "replace", "after", target="checkpoint.safetensors"), paid=True, done=True),
    "before the personal commit": Case(around("LocalLink", "commit", "before"), paid=True, done=True),
    "after the personal rows were copied": Case(
        around("Path", "replace", "before", target="round"), paid=True, done=True
    ),
    "before staged rows are dropped": Case(around("PersonalStore", "discard", "before"), paid=True, done=True),
    "before the ledger's commit": Case(around("Ledger", "commit", "before"), paid=True, done=True),
    "after the ledger's commit": Case(around("Ledger", "commit", "after"), paid=True, done=True),
    "in the middle of the round's line": Case(around("RunStore", "append", "torn"), paid=True, done=True),
    "after the round's line": Case(around("RunStore", "append", "after"), paid=True, done=True),
}
PERSONAL_ONLY = {"after the personal rows were copied", "before staged rows are dropped"}
DISCARDS = 1  # Calls of `discard` before round 1: the recovery of a fresh start.


def seam_of(name: str, round_: int) -> Seam:
    seam = CASES[name].at(round_)
    return Seam(**asdict(seam) | {"call": seam.call + DISCARDS}) if seam.name == "discard" else seam


class Place:
    """A folder with the driver, the plugin and the data of a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "keepsake.py").write_text(PLUGIN)
        (path / "driver.py").write_text(DRIVER)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 4))
        np.savez(path / "data.npz", x=x, y=(x @ rng.normal(size=4) > 0).astype(int))

    def config(self, strategy: str, rounds: int = ROUNDS) -> dict[str, Any]:
        return {
            "rounds": rounds,
            "task": "logistic",
            "strategy": strategy,
            "data": {"path": str(self.path / "data.npz"), "silos": SILOS},
            "cohort": {"sampling": "all"},
            "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.5, "momentum": 0.5},
            "privacy": {
                "silo": {"clip_norm": 0.5, "noise_multiplier": 2.0, "delta": 1e-3},
                "audit": {"canaries": 4},
            },
            "engine": {"chunk": SILOS // CHUNKS},
        }

    def start(self, jobs: Sequence[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([os.getcwd(), str(self.path)])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", str(self.path / "driver.py")]
        return subprocess.run(
            command, input=json.dumps(jobs), capture_output=True, text=True, env=environment, timeout=300
        )

    def job(self, name: str, config: dict[str, Any], seams: Sequence[Seam | None], *, fork: bool = True) -> Any:
        coded = [None if seam is None else asdict(seam) for seam in seams]
        return {"folder": str(self.path / name), "config": config, "seams": coded, "fork": fork}

    def go(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Runs jobs; every attempt but a job's last must have been killed, and the last have come to its end."""
        done = self.start(jobs)
        assert done.returncode == 0, done.stderr
        ends = [json.loads(line) for line in done.stdout.splitlines()]
        expected = [[-signal.SIGKILL] * (len(job["seams"]) - 1) + [0] for job in jobs]
        assert ends == expected, done.stderr


class Left:
    """What is in a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "rounds.jsonl"
        self.lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        self.rows = [json.loads(line) for line in self.lines]

    @property
    def result(self) -> Any:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def scores(self) -> Any:
        return json.loads((self.folder / "audit.json").read_text())

    @property
    def reserves(self) -> int:
        lines = (self.folder / "ledger.jsonl").read_bytes().split(b"\n")[:-1]
        return sum(json.loads(line)["kind"] == "reserve" for line in lines)


def apart_from_the_attempt(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "epsilon")}


def check(whole: Left, resumed: Left, *, extra: int, rounds: int = ROUNDS, paid: int | None = None) -> None:
    """The laws of a run that was killed and resumed: the same model, and at least what it cost (`paid` rounds)."""
    assert resumed.result["model"]["sha256"] == whole.result["model"]["sha256"]
    assert resumed.result["metrics"] == whole.result["metrics"]
    for name in ("final", "iterates"):  # The largest cosines of all rounds are in the checkpoint.
        assert resumed.scores["silo"][name] == whole.scores["silo"][name]
    assert [apart_from_the_attempt(row) for row in resumed.rows] == [apart_from_the_attempt(row) for row in whole.rows]
    assert resumed.reserves == resumed.result["privacy"]["silo"]["charged_rounds"] == rounds + extra
    spent = [row["epsilon"] for row in resumed.rows]
    assert spent == sorted(spent)
    assert all(row["epsilon"] >= other["epsilon"] for row, other in zip(resumed.rows, whole.rows, strict=True))
    claimed = resumed.result["privacy"]["silo"]["epsilon_upper"]
    assert claimed == spent[-1] == epsilon(Repeated(Gaussian(2.0), (paid or rounds) + extra), 1e-3).upper


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("kill"))
    place.go([place.job(f"whole-{strategy}", place.config(strategy), [None]) for strategy in ("keepsake", "fedavg")])
    return place


def killed_at_every_seam(place: Place, strategy: str, round_: int) -> None:
    names = [name for name in CASES if strategy == "keepsake" or name not in PERSONAL_ONLY]
    folders = {name: f"{strategy}-{round_}-{number}" for number, name in enumerate(names)}
    config, whole = place.config(strategy), Left(place.path / f"whole-{strategy}")
    place.go([place.job(folders[name], config, [seam_of(name, round_), None]) for name in names])
    for name in names:
        case, killed, resumed = CASES[name], Left(place.path / f"{folders[name]}-0"), Left(place.path / folders[name])
        assert killed.reserves == round_ - (not case.paid), name
        committed = round_ if case.done else round_ - 1
        assert len(killed.lines) in ({committed, committed - 1} if case.done else {committed}), name
        assert resumed.lines[: len(killed.lines)] == killed.lines, name
        check(whole, resumed, extra=int((case.paid and not case.done) or case.torn))


def test_killed_at_any_seam_a_run_with_personal_state_ends_with_the_same_model(place: Place) -> None:
    killed_at_every_seam(place, "keepsake", KILLED)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("strategy", "round_"), [("keepsake", 1), ("keepsake", ROUNDS), ("fedavg", KILLED)])
def test_killed_at_any_seam_of_any_round(place: Place, strategy: str, round_: int) -> None:
    killed_at_every_seam(place, strategy, round_)


def test_killed_where_it_matters_a_run_with_correlated_noise_ends_with_the_same_model(place: Place) -> None:
    """Six silos in two groups, five rounds: three cycles, and one Gaussian more for each broken-off attempt."""
    config = place.config("fedavg")
    config["cohort"] = {"sampling": "cyclic", "separation": 2}
    config["privacy"]["silo"]["mechanism"] = "banded"
    config["engine"]["chunk"] = 1  # Three chunks a round.
    names = [
        "in the middle of the reserve",
        "after the reserve",
        "after the last chunk",
        "before the checkpoint",
        "after the rename",
        "before the ledger's commit",
    ]
    jobs = [place.job(f"banded-{n}", config, [seam_of(name, KILLED), None]) for n, name in enumerate(names)]
    place.go([place.job("whole-banded", config, [None]), *jobs])
    for number, name in enumerate(names):
        case, resumed = CASES[name], Left(place.path / f"banded-{number}")
        check(Left(place.path / "whole-banded"), resumed, extra=int((case.paid and not case.done) or case.torn), paid=3)


def test_the_personal_vectors_decide_the_model(place: Place) -> None:
    """Else the tests above could not tell a lost personal commit from one that was done."""
    models = {Left(place.path / f"whole-{strategy}").result["model"]["sha256"] for strategy in ("keepsake", "fedavg")}
    assert len(models) == 2


def test_killed_again_while_resuming(place: Place) -> None:
    """The mending is interrupted too: after the rename of round 3, then at each step of the recovery."""
    first = seam_of("after the rename", KILLED)
    again = {
        "before lines are cut": Seam("RunStore", "cut", "before", 1),
        "between the cut's write and its rename": Seam("Path", "replace", "before", 1, "rounds.jsonl"),
        "after lines were cut": Seam("RunStore", "cut", "after", 1),
        "before personal rows are copied": Seam("PersonalStore", "commit", "before", 1),
        "before the copy is noted": Seam("Path", "replace", "before", 1, "round"),
        "before the ledger's commit": Seam("Ledger", "commit", "before", 1),
        "after the ledger's commit": Seam("Ledger", "commit", "after", 1),
    }
    config, whole = place.config("keepsake"), Left(place.path / "whole-keepsake")
    jobs = [place.job(f"again-{n}", config, [first, seam, None]) for n, seam in enumerate(again.values())]
    place.go(jobs)
    for number in range(len(again)):
        check(whole, Left(place.path / f"again-{number}"), extra=0)


def test_every_attempt_at_a_round_is_paid(place: Place) -> None:
    config, whole = place.config("keepsake"), Left(place.path / "whole-keepsake")
    again = [Seam("LocalLink", "ask", "before", 1)] * 3
    place.go([place.job("thrice", config, [seam_of("after the last chunk", KILLED), *again, None])])
    check(whole, Left(place.path / "thrice"), extra=4)


def test_a_fresh_interpreter_goes_on_where_one_was_killed(place: Place) -> None:
    config, seam = place.config("keepsake"), seam_of("after the rename", KILLED)
    first = place.start([place.job("fresh", config, [seam], fork=False)])
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = place.start([place.job("fresh", config, [None], fork=False)])
    assert second.returncode == 0, second.stderr
    check(Left(place.path / "whole-keepsake"), Left(place.path / "fresh"), extra=0)


def test_silos_killed_around_their_own_reserve_pay_for_every_attempt(place: Place) -> None:
    example = {"clip_norm": 1.0, "noise_multiplier": 1.5, "delta": 1e-3, "rows": 10, "batch": 5}
    audit = {"examples": {"canaries": 4, "silos": [0, 5]}}  # In the first chunk and in the last.
    config = place.config("keepsake") | {"privacy": {"example": example, "audit": audit}, "train": {"steps": 2}}
    around_it = [
        (Seam("Ledger", "reserve_each", "before", KILLED), 0),
        (Seam("Ledger", "reserve_each", "after", KILLED), 1),
        (seam_of("after the last chunk", KILLED), 1),
        (seam_of("after the rename", KILLED), 0),
        (seam_of("before the ledger's commit", KILLED), 0),
    ]
    jobs = [place.job(f"silos-{n}", config, [seam, None]) for n, (seam, _) in enumerate(around_it)]
    place.go([place.job("silos", config, [None]), *jobs])
    step = Sampled(Poisson(0.5), Gaussian(1.5))
    whole, scores = Left(place.path / "silos").result, Left(place.path / "silos").scores["examples"]
    assert [each["silo"] for each in scores] == [0, 5]
    for number, (seam, extra) in enumerate(around_it):
        result = Left(place.path / f"silos-{number}").result
        assert result["model"]["sha256"] == whole["model"]["sha256"], seam
        spent = epsilon(Repeated(step, 2 * (ROUNDS + extra)), 1e-3).upper
        assert result["privacy"]["example"]["epsilon_upper"] == spent, seam
        found = Left(place.path / f"silos-{number}").scores["examples"]
        assert [each["final"] for each in found] == [each["final"] for each in scores], seam
        assert all(each["claim"] == spent for each in found), seam


def test_a_killed_round_is_paid_from_the_budget_of_examples_too(place: Place) -> None:
    """Where it is charged to the data set it counts, though no silo took a step; a budget gives no round for it."""
    example = {"clip_norm": 1.0, "noise_multiplier": 8.0, "delta": 1e-3, "rows": 10, "batch": 10}

    def after(rounds: int) -> float:
        return epsilon(Repeated(Gaussian(8.0), rounds), 1e-3).upper

    # A round charges the data set, and then the silos.
    seams = [
        (Seam("Ledger", "reserve_each", "before", 2 * KILLED - 1), 0, 0),
        (Seam("Ledger", "reserve_each", "after", 2 * KILLED - 1), 1, 0),
        (Seam("Ledger", "reserve_each", "after", 2 * KILLED), 1, 1),
        (seam_of("after the last chunk", KILLED), 1, 1),
        (seam_of("before the ledger's commit", KILLED), 0, 0),
    ]
    config = place.config("keepsake") | {"privacy": {"example": example}, "train": {"steps": 1}}
    config |= {"budget": {"example": {"epsilon": after(ROUNDS) * (1 + 1e-9), "delta": 1e-3}}}
    jobs = []
    for number, (seam, _, _) in enumerate(seams):  # Each has a data set for itself.
        arrays, own = dict(np.load(place.path / "data.npz")), place.path / f"data-{number}.npz"
        np.savez(own, x=arrays["x"] + number, y=arrays["y"])
        data = config["data"] | {"path": str(own)}
        jobs.append(place.job(f"budget-{number}", config | {"data": data}, [seam, None]))
    place.go(jobs)
    for number, (seam, extra, taken) in enumerate(seams):
        result = Left(place.path / f"budget-{number}").result
        assert result["rounds"] == ROUNDS - extra, seam
        assert result["privacy"]["cumulative_example"]["epsilon_upper"] == after(ROUNDS), seam
        assert result["privacy"]["example"]["epsilon_upper"] == after(ROUNDS - extra + taken), seam


@pytest.mark.integration
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))])
def test_twenty_rounds_under_random_kills(place: Place, seed: int) -> None:
    """Kills at random seams, a few rounds apart, until the run is done."""
    rounds, kills, rng = 20, 12, random.Random(seed)
    config = place.config("keepsake", rounds)
    seams = [seam_of(rng.choice(list(CASES)), rng.randint(1, 4)) for _ in range(kills)]
    jobs = [place.job(f"soak-{seed}-whole", config, [None]), place.job(f"soak-{seed}", config, [*seams, None])]
    done = place.start(jobs)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert set(ends[:-1]) <= {-signal.SIGKILL, 0}  # 0: so many kills later the run was done already.
    assert ends[-1] == 0
    assert ends.count(-signal.SIGKILL) >= 5
    left = Left(place.path / f"soak-{seed}")
    extra = left.reserves - rounds  # Each kill costs one more attempt at most.
    assert 0 <= extra <= kills
    check(Left(place.path / f"soak-{seed}-whole"), left, extra=extra, rounds=rounds)
