"""Private standardisation over silos that keep their own rows: as in a simulation, paid by silos and server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client.office import Office
from client.policy import Policy
from privacy.chain import load
from privacy.events import Composed, Event, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from server.book import Book
from server.remote import RemoteLink, Unreachable
from simulations.deploying.connecting import terms
from simulations.deploying.public import federation
from simulations.running import ActiveRun, train
from simulations.running import run as simulate
from strategies.envelope import EnvelopeError, Expected, Reply, Task, decode_reply, decode_task, encode
from strategies.experiment import Experiment, digest
from strategies.loading import parse
from strategies.messages import MOMENTS
from tests.server.posts import FakePost, Time
from tests.simulations.silos import DIGITS, RUN, SILO, apart, asked, experiment, hello, office, policy, said

NOISE = 5.0
STANDARDIZE = {"name": "private", "low": 0.0, "high": 1.0, "noise_multiplier": NOISE}
DATA: dict[str, Any] = {**DIGITS["data"], "standardize": STANDARDIZE}
GUARDED: dict[str, Any] = {"unprotected": False, "simulated_noise": True, "silo": {"epsilon": 90.0, "delta": 1e-2}}
CONSTANTS = torch.tensor([[0.3], [0.4]], dtype=torch.float64)  # Images: one channel.


def private(**changes: Any) -> Experiment:
    return experiment(**{"data": DATA, "privacy": {"silo": SILO, "noise": "simulated"}, **changes})


def charged(folder: Path, unit: str = "silo") -> list[tuple[int, Event]]:
    [path] = (folder / "ledgers").glob("*.jsonl")
    return [(e.round, e.event) for e in load(path).chain.counted() if e.unit == unit and e.event is not None]


def task(run: Experiment, *, attempt: int = 1) -> bytes:
    return encode(Task(kind="moments", run=RUN, digest=digest(run), attempt=attempt))


def moments_of(data: bytes) -> Reply:
    return decode_reply(data, Expected({MOMENTS: 2}))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    with ExitStack() as opened:
        yield lambda rules=None, number=0: opened.enter_context(
            closing(office(tmp_path / f"silo{number}", rules or policy(**GUARDED), number=number))
        )


# Whole runs.


@pytest.mark.parametrize("strategy", ["fedavg", "mr_mtl"])  # The second keeps vectors in the silos.
def test_the_release_the_model_and_the_claims_are_those_of_a_simulation(strategy: str, tmp_path: Path) -> None:
    noise = 0.2  # Small enough for the spread to be one: 0.2 * 2^1/2 / 2 / 4 = .035 on means of numbers within 1/2.
    run = private(data={**DATA, "standardize": {**STANDARDIZE, "noise_multiplier": noise}}, strategy=strategy)
    here = simulate(run, out=tmp_path / "here").result
    with ExitStack() as opened:
        there, post = apart(run, tmp_path / "there", policy(simulated_noise=True, strategies=[strategy]), opened)
    assert [task.round for _, task in post.asked("moments")] == [0] * 4
    assert len(post.asked("train")) == 12  # Told beforehand, nobody has to be asked twice.
    for name in ("mean", "std"):
        assert there["standardize"][name] == pytest.approx(here["standardize"][name], abs=1e-6)
    assert 0.2 < here["standardize"]["std"][0] < 0.6  # Of pixels between 0 and 1, not the least that is divided by.
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("here", "there/run")]
    for tensor in models[0]:
        torch.testing.assert_close(models[0][tensor], models[1][tensor], rtol=0, atol=1e-6)
    for section in ("privacy", "updates", "communication"):
        assert here[section] == there[section]
    ledgers = [load(tmp_path / name / "ledger.jsonl").chain.counted() for name in ("here", "there/run")]
    assert [(e.round, e.event) for e in ledgers[0]] == [(e.round, e.event) for e in ledgers[1]]
    assert (ledgers[0][0].round, ledgers[0][0].event) == (0, Gaussian(noise))


def test_a_silo_pays_for_its_moments_and_for_each_round_what_the_server_pays(tmp_path: Path) -> None:
    with ExitStack() as opened:
        apart(private(), tmp_path, policy(**GUARDED), opened)
    for number in range(4):
        due = [(0, Gaussian(NOISE)), *((n, Gaussian(2.0)) for n in (1, 2, 3))]
        assert charged(tmp_path / f"silo{number}") == due


def test_where_cohorts_are_secret_the_whole_run_is_paid_with_the_moments(tmp_path: Path) -> None:
    run = private(cohort={"sampling": "poisson", "rate": 0.5})
    with ExitStack() as opened:
        apart(run, tmp_path, policy(**GUARDED), opened)
    whole = Composed((Gaussian(NOISE), Repeated(Sampled(Poisson(0.5), Gaussian(2.0)), 3)))
    for number in range(4):
        (first, *later) = charged(tmp_path / f"silo{number}")
        assert first == (0, whole)
        assert all(event == Composed(()) for _, event in later)


def test_another_attempt_at_moments_is_paid_beside_the_whole_run(make: Callable[..., Office]) -> None:
    run, silo = private(cohort={"sampling": "poisson", "rate": 0.5}), make()
    silo.handle(hello(run))
    for attempt in (1, 3):  # The second one asked others.
        silo.handle(task(run, attempt=attempt))
    assert [event for _, event in charged(silo.folder)][1:] == [Repeated(Gaussian(NOISE), 2)]


class Federation:
    """Four silos that a test can take away and bring back."""

    def __init__(self, folder: Path, opened: ExitStack, **changes: Any) -> None:
        self.folder, self.time = folder, Time()
        self.post = FakePost(self.time)
        self.handlers = {}
        for number in range(4):
            silo = opened.enter_context(closing(office(folder / f"silo{number}", policy(**GUARDED), number=number)))
            self.handlers[number] = self.post.silos[number] = silo.handle
        run = private(**changes)
        self.run = replace(run, engine=replace(run.engine, kind="flower", deadline_s=5.0))

    def go(self, *, resume: bool = False) -> dict[str, Any]:
        def connect(active: ActiveRun) -> RemoteLink:
            book = Book(active.folder / "federation.json")
            return RemoteLink(self.post, book, terms(active), clock=self.time.clock)

        with ActiveRun(self.run, self.folder / "run", connect=connect, resume=resume) as active:
            train(active)
            return active.finish().result


def test_nothing_is_released_without_a_silo_and_all_are_asked_and_charged_again(tmp_path: Path) -> None:
    with ExitStack() as opened:
        all_ = Federation(tmp_path, opened)
        del all_.post.silos[2]
        with pytest.raises(
            Unreachable, match=r"^silo 2: silo is not connected; data\.standardize: private needs every"
        ):
            all_.go()
        assert not (tmp_path / "run" / "moments.json").exists()
        all_.post.silos[2] = all_.handlers[2]
        result = all_.go(resume=True)
    assert charged(tmp_path / "silo0")[:2] == [(0, Gaussian(NOISE))] * 2
    assert charged(tmp_path / "silo2")[0] == (0, Gaussian(NOISE))
    entries = load(tmp_path / "run" / "ledger.jsonl").chain.counted()
    assert [entry.round for entry in entries] == [0, 0, 1, 2, 3]
    assert result["privacy"]["silo"]["charged_rounds"] == 5


@pytest.mark.parametrize("noise", ["simulated", "system"])
def test_a_run_that_goes_on_asks_for_no_moments_again(noise: str, tmp_path: Path) -> None:
    with ExitStack() as opened:
        all_ = Federation(tmp_path, opened, privacy={"silo": SILO, "noise": noise})
        before = all_.post.silos[1]
        all_.post.silos[1] = lambda data: stopped(data, before)
        with pytest.raises(KeyboardInterrupt):
            all_.go()
        released = json.loads((tmp_path / "run" / "moments.json").read_text())
        all_.post.silos[1] = before
        result = all_.go(resume=True)
    assert {name: list(values) for name, values in result["standardize"].items()} == released
    assert len(all_.post.asked("moments")) == 4
    assert [round_ for round_, _ in charged(tmp_path / "silo0")].count(0) == 1


def stopped(data: bytes, handle: Callable[[bytes], bytes]) -> bytes:
    """A server that is killed as it asks for the first update."""
    if decode_task(data).kind == "train":
        raise KeyboardInterrupt
    return handle(data)


def test_columns_of_silos_files_are_centred_by_the_mean_over_silos(tmp_path: Path) -> None:
    """Hardly any noise: .001 * 4^1/2 / 2 / 3 = .00033 of a bound's width, so .0033 of 10; 5 of it, once in 10^6."""
    rng = np.random.default_rng(0)
    tables = [rng.normal((2.0 + silo, 50.0), (1.0, 20.0), (30 + 10 * silo, 2)) for silo in range(3)]
    for name, rows in (*((f"rows-{silo}.csv", rows) for silo, rows in enumerate(tables)), ("public.csv", tables[0])):
        lines = "".join(f"{a!r},{b!r},{'yes' if a > 2 else 'no'}\n" for a, b in rows.tolist())
        (tmp_path / name).write_text(f"a,b,answer\n{lines}")
    bounds = {"low": [0.0, 0.0], "high": [10.0, 100.0]}
    run = parse(
        {
            "rounds": 1,
            "task": "logistic",
            "data": {
                "path": str(tmp_path / "public.csv"),
                "target": "answer",
                "silos": 3,
                "standardize": {"name": "private", **bounds, "noise_multiplier": 1e-3},
            },
            "train": {"steps": 1},
            "privacy": {"silo": SILO, "noise": "system"},
            "engine": {"kind": "flower"},
        }
    )
    post = FakePost(Time())
    with ExitStack() as opened:
        for silo in range(3):
            made = office(tmp_path / f"silo{silo}", policy(), number=silo, data=str(tmp_path / f"rows-{silo}.csv"))
            post.silos[silo] = opened.enter_context(closing(made)).handle

        def connect(active: ActiveRun) -> RemoteLink:
            return RemoteLink(post, Book(active.folder / "federation.json"), terms(active), clock=post.time.clock)

        with ActiveRun(run, tmp_path / "run", connect=connect, federation=federation(run)) as active:
            train(active)
            found = active.finish().result["standardize"]
    held = [np.clip(rows, (0, 0), (10, 100)) for rows in tables]
    mean = np.mean([rows.mean(0) for rows in held], 0)
    square = np.mean([np.square(rows).mean(0) for rows in held], 0)
    assert np.abs(np.array(found["mean"]) - mean).max() <= 5 * 0.033
    assert np.abs(np.array(found["mean"]) - mean)[0] <= 5 * 0.0033
    assert np.array(found["std"]) == pytest.approx(np.sqrt(square - mean**2), rel=0.1)


# One silo.


def test_a_silo_trains_only_once_it_was_told_what_was_released(make: Callable[..., Office]) -> None:
    run, silo = private(), make()
    silo.handle(hello(run))
    assert said(silo.handle(asked(run))).code == "unknown_run"  # So the server says hello again, with the constants.
    silo.handle(hello(run, vectors={MOMENTS: CONSTANTS}))
    assert said(silo.handle(asked(run)), run).status == "ok"


def test_features_are_standardised_with_what_was_released(make: Callable[..., Office]) -> None:
    run = private()
    with_them = experiment(
        data={**DIGITS["data"], "standardize": {"name": "constants", "mean": [0.3], "std": [0.4]}},
        privacy={"silo": SILO, "noise": "simulated"},
    )
    one, other = make(number=0), make(number=1)
    one.handle(hello(run, vectors={MOMENTS: CONSTANTS}))
    update = said(one.handle(asked(run)), run)
    other.close()
    again = office(one.folder.parent / "plain", policy(**GUARDED), number=0)
    with closing(again):
        again.handle(hello(with_them))
        plain = said(again.handle(asked(with_them)), with_them)
    torch.testing.assert_close(update.channels["delta"], plain.channels["delta"], rtol=0, atol=1e-6)


def test_moments_are_sent_once_for_one_charge_and_again_for_another(make: Callable[..., Office]) -> None:
    run, silo = private(), make()
    silo.handle(hello(run))
    first = silo.handle(task(run))
    vector = moments_of(first).channels[MOMENTS]
    assert vector.shape == (2,)
    assert bool((vector.abs() <= 0.5).all())
    assert silo.handle(task(run)) == first
    assert charged(silo.folder) == [(0, Gaussian(NOISE))]
    assert torch.equal(moments_of(silo.handle(task(run, attempt=2))).channels[MOMENTS], vector)
    assert charged(silo.folder) == [(0, Gaussian(NOISE))] * 2
    assert said(silo.handle(task(run))).code == "stale"


def test_moments_are_charged_before_they_are_computed(
    make: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, silo = private(), make()
    silo.handle(hello(run))

    def killed(*_: object) -> None:
        raise RuntimeError("a row holds 17")

    monkeypatch.setattr("simulations.standardization.contribution", killed)
    answer = said(silo.handle(task(run)))
    assert (answer.code, "17" in answer.reason) == ("training_failed", False)
    assert charged(silo.folder) == [(0, Gaussian(NOISE))]


def test_a_run_without_moments_sends_none(make: Callable[..., Office]) -> None:
    run, silo = experiment(privacy={"silo": SILO, "noise": "simulated"}), make()
    silo.handle(hello(run))
    assert said(silo.handle(task(run))).code == "stale"
    assert not list((silo.folder / "ledgers").glob("*.jsonl")) or charged(silo.folder) == []


def test_what_a_policy_says_of_noise_holds_for_moments(make: Callable[..., Office]) -> None:
    rules = policy(**{**GUARDED, "silo": {"epsilon": 90.0, "delta": 1e-2, "least_noise": 1.5}})
    weak = private(data={**DATA, "standardize": {**STANDARDIZE, "noise_multiplier": 1.4}})
    answer = said(make(rules).handle(hello(weak)))
    assert answer.code == "policy"
    assert "noise multiplier 1.4 of moments is below 1.5; raise data.standardize.noise_multiplier" in answer.reason


def test_moments_that_would_pass_the_budget_do_not_leave(make: Callable[..., Office]) -> None:
    tight: Policy = policy(**{**GUARDED, "silo": {"epsilon": 0.1, "delta": 1e-2}})
    run, silo = private(), make(tight)
    silo.handle(hello(run))
    assert said(silo.handle(task(run))).code == "budget"
    assert charged(silo.folder) == []


@pytest.mark.parametrize(
    "constants",
    [
        CONSTANTS.float(),
        CONSTANTS[:1],
        torch.tensor([[0.3], [0.0]], dtype=torch.float64),
        torch.tensor([[0.3], [float("nan")]], dtype=torch.float64),
        torch.tensor([[float("inf")], [0.4]], dtype=torch.float64),
        torch.tensor([[0.3, 0.3], [0.4, 0.4]], dtype=torch.float64),
    ],
    ids=["float32", "one row", "no spread", "nan", "infinite", "too many"],
)
def test_constants_that_nobody_releases_are_refused(constants: torch.Tensor, make: Callable[..., Office]) -> None:
    run, silo = private(), make()
    assert said(silo.handle(hello(run, vectors={MOMENTS: constants}))).code in ("schema", "malformed")


def test_constants_belong_to_an_experiment_that_asks_for_them(make: Callable[..., Office]) -> None:
    assert said(make().handle(hello(experiment(), vectors={MOMENTS: CONSTANTS}))).code in ("schema", "policy")
    with pytest.raises(EnvelopeError, match="a hello carries no vectors"):
        hello(private(), vectors={"model": CONSTANTS})
    with pytest.raises(EnvelopeError, match="moments are released in round 0"):
        Task(kind="moments", run=RUN, digest="d" * 64, round=1)


def test_units_that_a_run_does_not_protect_are_noted_with_the_moments(make: Callable[..., Office]) -> None:
    run, silo = private(), make()
    silo.handle(hello(run))
    silo.handle(task(run))
    assert [type(event) for _, event in charged(silo.folder, "example")] == [NonPrivate]
