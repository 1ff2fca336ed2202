from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privacy import streams
from privacy.accountant import epsilon
from privacy.contributions import Contributions, Partial
from privacy.events import Composed, Event, Gaussian, Poisson, Repeated, Sampled
from privacy.ledger import Charge, Ledger, LedgerError
from privacy.ledger import read as read_ledger
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise, SystemNoise, grid, noised
from privacy.release import Release
from server import loop
from server.checkpoint import read as read_checkpoint
from server.link import Request
from server.loop import BudgetSpent, Diverged, RoundResult, Training
from server.odometer import Odometer
from server.sampler import FullCohort, PoissonCohort, Sampler
from server.store import RunStore, StoreError
from strategies import wire
from strategies.base import Evaluation, Instruction, Split, State, Strategy
from strategies.layout import Layout

torch.set_num_threads(1)

SIZE, SILOS, DELTA = 3, 8, 1e-3
NOISE = GaussianSum(clip_norm=1.0, noise_multiplier=2.0)
EVENT = Sampled(Poisson(0.5), Gaussian(2.0))


@dataclass(frozen=True)
class Walk(Strategy):
    """The model moves by the mean; the sum of all means is kept beside it."""

    def init(self, model: Tensor, rng: torch.Generator, layout: Layout) -> State:
        return {"model": model, "path": model}

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        mean = release.mean("delta")
        return {"model": state["model"] + mean, "path": state["path"] + mean.abs()}


@dataclass
class Echo:
    """A link whose silo k sends `0.01 * (k + 1)` on every coordinate; notes what it is told."""

    trace: list[str] = field(default_factory=list)
    update: Callable[[int, int], float] = lambda silo, round_: 0.01 * (silo + 1)
    population: int = SILOS

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        self.trace.append("ask")
        [request] = requests
        for chunk, silo in enumerate(request.silos):
            sums = Contributions(mechanisms, {"delta": SIZE})
            sums.add({"delta": torch.full((SIZE,), self.update(silo, request.instruction.round))}, 1.0, [silo])
            yield sums.partial(chunk, [0.5] if record else [])

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        return Evaluation((), (), (), ())

    def stage(self) -> None:
        self.trace.append("stage")

    def commit(self, round_: int) -> None:
        self.trace.append(f"link commit {round_}")

    def recover(self, round_: int) -> None:
        self.trace.append(f"recover {round_}")

    def close(self) -> None:
        self.trace.append("close")


def training(sampler: Sampler | None = None, *, mechanism: Mechanism = NOISE, **changes: Any) -> Training:
    sampler = sampler if sampler is not None else PoissonCohort(0.5, SILOS)
    base = Training(
        strategy=Walk(),
        model=torch.zeros(SIZE),
        layout=Layout(("weight",), ((SIZE,),)),
        sampler=sampler,
        mechanisms={"delta": mechanism},
        rounds=6,
        seed=1,
        noise=SimulatedNoise(1),
        expected=sampler.expected,
        neighbours="add_remove",
        delta=DELTA if mechanism.private else None,
        budget=None,
        before=(),
        record=False,
        every=1,
        evaluate=None,
        identity={"experiment": "e", "data": "d"},
    )
    return replace(base, **changes)


class Run:
    """A run's folder, opened anew for every stretch of rounds, as after a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, False

    def go(self, what: Training, link: Echo | None = None, *, stop_after: int | None = None) -> list[RoundResult]:
        store = RunStore(self.folder, resume=self.begun)
        try:
            if not self.begun:
                store.begin("name: test\n")
                self.begun = True
            ledger = Ledger(store.ledger, run="test", dataset="d")
            try:
                results: list[RoundResult] = []
                for result in loop.run(what, link if link is not None else Echo(), store, ledger):
                    results.append(result)
                    if result.round == stop_after:
                        break
                return results
            finally:
                ledger.close()
        finally:
            store.close()

    def ledger(self) -> list[dict[str, Any]]:
        path = self.folder / "ledger.jsonl"
        return list(read_ledger(path)) if path.exists() else []

    def charges(self) -> int:
        return sum(line["kind"] == "reserve" for line in self.ledger())

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]

    def final(self, what: Training) -> Any:
        ledger = Ledger(self.folder / "ledger.jsonl", run="test", dataset="d")
        try:
            return loop.final_epsilon(what, ledger)
        finally:
            ledger.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def price(rounds: int, event: Event = EVENT) -> float:
    return epsilon(Repeated(event, rounds), DELTA).upper


# The order of effects


def test_the_order_of_effects(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paid before asked; the checkpoint commits; what follows it can be done again."""
    link = Echo()

    def noted(owner: type, name: str, label: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            link.trace.append(label)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    noted(Ledger, "reserve", "reserve")
    noted(Ledger, "commit", "ledger commit")
    noted(RunStore, "save", "save")
    noted(RunStore, "append", "append")
    run.go(training(rounds=2), link)
    effects = ["reserve", "ask", "stage", "save", "link commit {}", "ledger commit", "append"]
    assert link.trace == ["recover 0", *(effect.format(round_) for round_ in (1, 2) for effect in effects)]


def test_the_reserve_is_on_the_disk_when_the_first_silo_is_asked(run: Run) -> None:
    seen: list[int] = []

    def look(silo: int, round_: int) -> float:
        seen.append(run.charges() - round_)
        return 0.0

    run.go(training(FullCohort(SILOS)), Echo(update=look))
    assert seen == [0] * (6 * SILOS)  # In round r, exactly r reserves stand in the file.


def test_a_ledger_that_cannot_be_written_stops_the_round_before_anything_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.go(training(rounds=2))
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("ledger.jsonl"):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    link = Echo()
    with monkeypatch.context() as patch, pytest.raises(LedgerError, match="No space left"):
        patch.setattr(os, "fsync", failing)
        run.go(training(rounds=3), link)
    assert "ask" not in link.trace
    assert len(run.rows()) == 2


def monitored(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "monitor.jsonl").read_text().splitlines()]


def test_what_a_round_will_have_cost_is_told_while_it_is_in_flight(run: Run) -> None:
    seen: list[tuple[int, float]] = []

    def look(silo: int, round_: int) -> float:
        last = monitored(run)[-1]
        seen.append((last["round"], last["reserved"]))
        return 0.0

    what = training(FullCohort(1), rounds=3)
    run.go(what, Echo(update=look))
    assert seen == [(round_, pytest.approx(price(round_, what.event))) for round_ in (1, 2, 3)]
    waits = [sum(line["fsync"]["counts"].values()) for line in monitored(run) if "fsync" in line]
    assert waits == [1, 1, 1]  # A reserve each; nothing waits for a commit.


def test_a_monitor_that_cannot_be_written_changes_nothing(run: Run, tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    last = whole.go(training())[-1].state["model"]
    (run.folder / "monitor.jsonl").mkdir(parents=True)
    assert torch.equal(run.go(training())[-1].state["model"], last)


# Secret noise


@dataclass
class Roll(Echo):
    """Notes who is asked; dies in the rounds named, once each, after the silos have answered."""

    population: int = 64
    asked: list[tuple[int, ...]] = field(default_factory=list)
    dies: list[int] = field(default_factory=list)

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        [request] = requests
        self.asked.append(tuple(request.silos))
        yield from super().ask(requests, mechanisms, record=record)
        if request.instruction.round in self.dies:
            self.dies.remove(request.instruction.round)
            raise KeyboardInterrupt


SECRET = PoissonCohort(0.5, 64)


def test_with_system_noise_neither_noise_nor_cohorts_follow_from_the_seed(tmp_path: Path) -> None:
    what, links = training(SECRET, noise=SystemNoise()), [Roll(), Roll()]
    models = [Run(tmp_path / str(at)).go(what, link)[-1].state["model"] for at, link in enumerate(links)]
    seeded = {tuple(SECRET.draw(what.seed, round_)) for round_ in range(1, 7)}
    cohorts = {*links[0].asked, *links[1].asked}
    assert len(cohorts) == 12  # Two of these 18 agree with probability below 2^-56.
    assert not cohorts & seeded
    assert not torch.equal(models[0], models[1])
    quiet = [Run(tmp_path / f"empty {at}").go(training(PoissonCohort(1e-9, 64), noise=SystemNoise())) for at in (0, 1)]
    assert not torch.equal(quiet[0][-1].state["model"], quiet[1][-1].state["model"])  # Noise alone.


def test_simulated_noise_has_the_cohorts_of_the_seed(run: Run) -> None:
    what, link = training(SECRET), Roll()
    run.go(what, link)
    assert link.asked == [tuple(SECRET.draw(what.seed, round_)) for round_ in range(1, 7)]


def test_a_round_that_is_done_again_with_system_noise_is_drawn_and_charged_again(run: Run) -> None:
    what, link = training(SECRET, noise=SystemNoise()), Roll(dies=[3])
    with pytest.raises(KeyboardInterrupt):
        run.go(what, link)
    assert [row["round"] for row in run.rows()] == [1, 2]
    rest = run.go(what, link)
    assert [result.round for result in rest] == [3, 4, 5, 6]
    assert len(link.asked) == run.charges() == 7
    assert link.asked[2] != link.asked[3]  # Both of round 3; they agree with probability 2^-64.
    assert rest[-1].row["epsilon"] == run.final(what).upper == price(7)


def lists_of_numbers(value: Any) -> list[Any]:
    """Every list in a JSON value that holds a number, which could be a silo's."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, list) and any(isinstance(item, int) for item in value) else []
    return own + [found for item in inner for found in lists_of_numbers(item)]


def test_nothing_in_the_folder_says_who_was_asked(run: Run) -> None:
    assert lists_of_numbers({"cohort": [3, 5]}) == [[3, 5]]  # What is looked for would be found.
    run.go(training(SECRET, noise=SystemNoise()), Roll())
    assert {path.name for path in run.folder.iterdir()} == {
        *("lock", "experiment.yaml", "ledger.jsonl", "rounds.jsonl", "checkpoint.safetensors", "monitor.jsonl")
    }
    monitored = [json.loads(line) for line in (run.folder / "monitor.jsonl").read_text().splitlines()]
    checkpoint = read_checkpoint(run.folder / "checkpoint.safetensors")
    assert set(checkpoint.state) == {"model", "path"}
    assert lists_of_numbers([run.rows(), run.ledger(), dict(checkpoint.meta), monitored]) == []


# What a round releases


def test_one_round_is_the_clipped_sum_plus_the_noise_over_the_expected_cohort(run: Run) -> None:
    def update(silo: int, round_: int) -> float:
        return 10.0 if silo == 0 else 0.01  # Silo 0 is far above the clip norm of 1.

    sampler = PoissonCohort(0.5, SILOS)
    [result] = run.go(training(sampler, rounds=1), Echo(update=update))
    cohort = sampler.draw(1, 1)
    clipped = {silo: 1 / 3**0.5 if silo == 0 else 0.01 for silo in cohort}
    total = torch.full((SIZE,), sum(clipped.values()), dtype=torch.float64)
    noise = 2.0 * torch.randn(SIZE, generator=streams.generator(1, "noise", 1, "delta"), dtype=torch.float64)
    torch.testing.assert_close(result.state["model"], ((total + noise) / 4.0).float(), rtol=1e-6, atol=grid(2.0))


def test_an_empty_cohort_is_noised_and_counted_like_any_other(run: Run) -> None:
    sampler = PoissonCohort(0.01, SILOS)
    assert all(sampler.draw(1, round_) == [] for round_ in (1, 2, 3))
    results = run.go(training(sampler, rounds=3))
    model = torch.zeros(SIZE)
    for result in results:
        noise = torch.randn(SIZE, generator=streams.generator(1, "noise", result.round, "delta"), dtype=torch.float64)
        model = model + (noised(torch.zeros_like(noise), 2.0, noise) / 0.08).float()
        assert torch.equal(result.state["model"], model)
        assert (result.row["cohort"], result.row["arrived"]) == (0, 0)
        assert result.row["epsilon"] > 0
    assert run.charges() == 3
    assert results[-1].row["epsilon"] == price(3, Sampled(Poisson(0.01), Gaussian(2.0)))


def test_without_privacy_the_mean_is_over_who_arrived(run: Run) -> None:
    def update(silo: int, round_: int) -> float:
        return float("nan") if silo == 0 else 8.0

    [result] = run.go(training(FullCohort(SILOS), mechanism=ExactSum(), rounds=1), Echo(update=update))
    assert torch.equal(result.state["model"], torch.full((SIZE,), 8.0))
    assert (result.row["arrived"], result.row["failures"]) == (7, 1)
    assert result.row["failure_reasons"] == {"update is not finite": 1}
    assert result.row["epsilon"] is None


def test_private_numbers_are_recorded_only_when_asked_for(run: Run, tmp_path: Path) -> None:
    [strict] = run.go(training(rounds=1))
    [research] = Run(tmp_path / "other").go(training(rounds=1, record=True))
    assert (strict.row["train_loss"], strict.row["clip_fraction"]) == (None, None)
    assert (research.row["train_loss"], research.row["clip_fraction"]) == (0.5, 0.0)
    assert "train_loss_silos" not in strict.row
    assert research.row["train_loss_silos"] == {"p10": 0.5, "p50": 0.5, "p90": 0.5}
    assert torch.equal(strict.state["model"], research.state["model"])


def test_what_goes_down_is_counted_as_it_is_encoded_and_what_comes_up_as_the_link_says(run: Run) -> None:
    [result] = run.go(training(FullCohort(SILOS), mechanism=ExactSum(), rounds=1))
    assert result.row["parameters_up"] == result.row["parameters_down"] == SILOS * SIZE
    assert result.row["bytes_up"] == 4 * SILOS * SIZE
    assert result.row["bytes_down"] == SILOS * wire.size(SIZE, SIZE)
    halves = training(FullCohort(SILOS), mechanism=ExactSum(), rounds=2, values="float16")
    assert run.go(halves)[-1].row["bytes_down"] == SILOS * wire.size(SIZE, SIZE, "float16")


def test_evaluation_is_due_every_so_many_rounds_and_at_the_end(run: Run) -> None:
    what = training(rounds=7, every=3, evaluate=lambda model: {"accuracy": float(model.sum())})
    results = run.go(what)
    assert [result.round for result in results if "accuracy" in result.row] == [3, 6, 7]
    for result in results:
        if "accuracy" in result.row:
            assert result.row["accuracy"] == float(result.state["model"].sum())


# Epsilon and budget


def test_epsilon_never_falls_and_ends_at_what_is_claimed(run: Run) -> None:
    what = training(rounds=40)
    rows = [result.row["epsilon"] for result in run.go(what)]
    assert rows == sorted(rows)
    assert all(rows[round_ - 1] >= price(round_) for round_ in (1, 2, 5, 11, 23, 39))
    assert rows[-1] == run.final(what).upper == price(40)


def test_rounds_asked_twice_are_paid_twice(run: Run) -> None:
    def dies(silo: int, round_: int) -> float:
        if round_ == 3:
            raise KeyboardInterrupt
        return 0.01

    what = training(rounds=5)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run.go(what, Echo(update=dies))
    assert len(run.rows()) == 2
    assert run.charges() == 6
    rows = [result.row["epsilon"] for result in run.go(what)]
    assert run.charges() == 9  # 5 rounds, and 4 attempts of which nobody knows what left.
    assert rows == sorted(rows)
    assert rows[-1] == run.final(what).upper == price(9)


@pytest.mark.parametrize("rounds", [1, 7, 29])
def test_the_budget_buys_exactly_the_rounds_that_it_affords(run: Run, rounds: int) -> None:
    what = training(rounds=30, budget=price(rounds) * (1 + 1e-9))
    with pytest.raises(BudgetSpent, match=f"round {rounds + 1} would bring epsilon to .* stopped after round {rounds}"):
        run.go(what)
    assert (len(run.rows()), run.charges()) == (rounds, rounds)
    assert all(row["epsilon"] <= what.budget for row in run.rows())
    assert run.final(what).upper <= what.budget


def test_a_stop_for_the_budget_charges_nothing_and_can_be_repeated(run: Run) -> None:
    what = training(rounds=30, budget=price(7))
    with pytest.raises(BudgetSpent):
        run.go(what)
    before = (run.folder / "ledger.jsonl").read_bytes(), (run.folder / "rounds.jsonl").read_bytes()
    link = Echo()
    with pytest.raises(BudgetSpent, match="stopped after round 7"):
        run.go(what, link)
    assert "ask" not in link.trace
    assert before == ((run.folder / "ledger.jsonl").read_bytes(), (run.folder / "rounds.jsonl").read_bytes())
    assert len(run.go(replace(what, rounds=9, budget=price(9)))) == 2  # A larger budget goes on where it stopped.


def test_a_crash_is_paid_from_the_budget(run: Run) -> None:
    def dies(silo: int, round_: int) -> float:
        raise KeyboardInterrupt

    what = training(FullCohort(SILOS), rounds=30, budget=price(4, Gaussian(2.0)))
    with pytest.raises(KeyboardInterrupt):
        run.go(what, Echo(update=dies))
    with pytest.raises(BudgetSpent, match="stopped after round 3"):
        run.go(what)
    assert (len(run.rows()), run.charges()) == (3, 4)


def test_a_budget_too_small_for_one_round_asks_nobody(run: Run) -> None:
    link = Echo()
    with pytest.raises(BudgetSpent, match="stopped after round 0"):
        run.go(training(budget=price(1) / 2), link)
    assert (link.trace, run.charges()) == (["recover 0"], 0)


def test_what_has_no_price_keeps_no_budget(run: Run) -> None:
    class Seen(Walk):
        reveals = True

    link = Echo()
    with pytest.raises(BudgetSpent, match="epsilon to infinity"):
        run.go(training(strategy=Seen(), budget=100.0), link)
    assert "ask" not in link.trace


BEFORE = (Gaussian(3.0),)


@pytest.mark.parametrize("before", [(), BEFORE])
@pytest.mark.parametrize("affordable", [None, 5, 66])
def test_an_odometer_never_says_less_than_the_price_and_never_falls(
    affordable: int | None, before: tuple[Event, ...]
) -> None:
    def exact(charges: int) -> float:
        return epsilon(Composed((*before, Repeated(EVENT, charges))), DELTA).upper

    budget = None if affordable is None else exact(affordable) * (1 + 1e-9)
    odometer = Odometer(EVENT, "add_remove", DELTA, 66, budget, before)
    counts = [0, 1, 2, 4, 5, 6, 33, 64, 65, 66, 67]  # 65 and 66: what is rounded up passes what is exact there.
    readings = [odometer.after(charges) or 0.0 for charges in counts]
    prices = [exact(charges) for charges in counts]
    assert readings == sorted(readings)
    assert all(reading >= price for reading, price in zip(readings, prices, strict=True))
    assert (readings[0], readings[-2:]) == (prices[0], prices[-2:])
    assert [odometer.affords(charges) for charges in counts] == [
        affordable is None or charges <= affordable for charges in counts
    ]


def test_what_was_released_before_round_one_counts_from_the_first_row_on(run: Run) -> None:
    def history(rounds: int) -> float:
        return epsilon(Composed((*BEFORE, Repeated(EVENT, rounds))), DELTA).upper

    what = training(rounds=30, before=BEFORE, budget=history(4))
    RunStore(run.folder, resume=False).close()
    ledger = Ledger(run.folder / "ledger.jsonl", run="test", dataset="d")
    ledger.commit(ledger.reserve(0, BEFORE[0], unit=loop.UNIT, neighbours="add_remove"))
    ledger.close()
    with pytest.raises(BudgetSpent, match="stopped after round 4"):
        run.go(what)
    rows = [row["epsilon"] for row in run.rows()]
    assert rows == sorted(rows)
    assert rows[0] >= history(1)
    assert rows[-1] == run.final(what).upper == history(4)


# Stops, divergence, resuming


def test_a_run_in_pieces_is_the_run_in_one(run: Run, tmp_path: Path) -> None:
    what, whole = training(), Run(tmp_path / "whole")
    expected = whole.go(what)[-1]
    for stop in (1, 2, 5, 6):
        last = run.go(what, stop_after=stop)[-1]
    assert last.state.keys() == expected.state.keys()
    assert all(torch.equal(last.state[name], expected.state[name]) for name in expected.state)
    assert [row | {"seconds": None} for row in run.rows()] == [row | {"seconds": None} for row in whole.rows()]
    assert run.charges() == whole.charges() == 6
    assert run.go(what) == []  # Done is done.


def test_a_model_that_is_not_finite_is_never_committed(run: Run) -> None:
    def update(silo: int, round_: int) -> float:
        return 3e38 if round_ == 3 else 0.0  # A finite update; eight of them overflow the model's float32.

    what = training(FullCohort(SILOS), mechanism=ExactSum(), strategy=Huge())
    with pytest.raises(Diverged, match=r"round 3: the model is no longer finite; lower train\.learning_rate"):
        run.go(what, Echo(update=update))
    assert [row["round"] for row in run.rows()] == [1, 2]
    kept = RunStore(run.folder, resume=True)
    checkpoint = kept.load()
    kept.close()
    assert checkpoint is not None
    assert checkpoint.round == 2
    assert torch.isfinite(checkpoint.state["model"]).all()
    assert run.charges() == 3  # The third round's updates were seen: it stays charged.


class Huge(Walk):
    """Adds sums, not means."""

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        return dict(state) | {"model": state["model"] + release.sum("delta")}


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({"experiment": "other", "data": "d"}, "experiment"),
        ({"experiment": "e", "data": "other"}, "data"),
        ({"experiment": "x", "data": "y"}, "experiment and data"),
    ],
)
def test_another_experiment_or_other_data_cannot_go_on(run: Run, identity: dict[str, str], named: str) -> None:
    run.go(training(), stop_after=2)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(StoreError, match=f"cannot go on, since {named} changed after it was started"):
        run.go(training(identity=identity))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_another_price_cannot_go_on_even_before_the_first_checkpoint(run: Run) -> None:
    def dies(silo: int, round_: int) -> float:
        raise KeyboardInterrupt

    what = training(FullCohort(SILOS))
    with pytest.raises(KeyboardInterrupt):
        run.go(what, Echo(update=dies))
    link = Echo()
    with pytest.raises(StoreError, match="the price of a round changed"):
        run.go(training(FullCohort(SILOS), mechanism=GaussianSum(1.0, 3.0)), link)
    assert link.trace == []


@pytest.mark.parametrize("left", range(5))
def test_a_ledger_with_fewer_lines_than_the_checkpoint_knows_is_refused(run: Run, left: int) -> None:
    run.go(training(), stop_after=3)  # Reserve and commit, three times; the checkpoint knows of five lines.
    path = run.folder / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    with pytest.raises(StoreError, match="lines were cut, restore it from a copy"):
        run.go(training())


def test_a_checkpoint_that_is_gone_is_missed(run: Run) -> None:
    run.go(training(), stop_after=2)
    (run.folder / "checkpoint.safetensors").unlink()
    with pytest.raises(StoreError, match="missing, though rounds were committed"):
        run.go(training())
    assert run.charges() == 2


def test_the_ledger_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    run.go(training(), stop_after=3)
    other = Run(tmp_path / "other")
    other.go(training(), stop_after=3)
    (run.folder / "ledger.jsonl").write_bytes((other.folder / "ledger.jsonl").read_bytes())
    with pytest.raises(StoreError, match="not the ledger that the checkpoint was written with"):
        run.go(training())


def test_an_older_checkpoint_put_back_is_paid_in_full(run: Run, tmp_path: Path) -> None:
    what = training()
    run.go(what, stop_after=2)
    old = (run.folder / "checkpoint.safetensors").read_bytes()
    run.go(what, stop_after=5)
    (run.folder / "checkpoint.safetensors").write_bytes(old)
    assert [result.round for result in run.go(what)] == [3, 4, 5, 6]
    assert run.charges() == 9  # Rounds 3, 4 and 5 were released twice.
    assert [row["round"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]
    assert run.rows()[-1]["epsilon"] == run.final(what).upper == price(9)


def test_wherever_the_ledger_is_cut_going_on_never_lowers_epsilon(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, where lines are missing that the checkpoint saw; counted in full, where the last one is torn."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    what = training()
    run.go(what, stop_after=2)
    path = run.folder / "ledger.jsonl"
    ledger = Ledger(path, run="test", dataset="d")
    ledger.reserve(3, what.event, unit=loop.UNIT, neighbours="add_remove")  # Killed in round 3, after the reserve.
    ledger.close()
    whole = path.read_bytes()
    seen = len(b"".join(whole.splitlines(keepends=True)[:3]))  # What the checkpoint of round 2 knows of.
    third = len(b"".join(whole.splitlines(keepends=True)[:4]))
    refused = 0
    for length in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:length])
        store, link = RunStore(run.folder, resume=True), Echo()
        try:
            ledger = Ledger(path, run="test", dataset="d", told=[Charge(loop.UNIT, "add_remove", what.event)])
            done, _, _ = loop.resume(what, link, store, ledger)
            assert length >= seen
            assert (done, ledger.charges(loop.UNIT)) == (2, 3 if length > seen and length != third else 2), length
        except StoreError:
            assert length < seen
            refused += 1
        finally:
            ledger.close()
            store.close()
    assert refused > 50


def test_a_damaged_checkpoint_stops_the_run_before_anything_is_changed(run: Run) -> None:
    run.go(training(), stop_after=2)
    path = run.folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    link = Echo()
    with pytest.raises(ValueError, match="damaged"):
        run.go(training(), link)
    assert link.trace == []
    assert {path.name: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_training_loss_that_is_not_finite_is_no_number_of_a_line(run: Run) -> None:
    class Diverging(Echo):
        def ask(self, *given: Any, record: bool) -> Iterator[Partial]:
            for partial in super().ask(*given, record=record):
                yield replace(partial, losses=(float("inf"),))

    [result] = run.go(training(FullCohort(SILOS), rounds=1, record=True), Diverging())
    assert result.row["train_loss"] is None


@pytest.mark.parametrize(("name", "dataset"), [("other", "d"), ("test", "other")])
def test_another_run_or_data_cannot_go_on_even_before_the_first_checkpoint(run: Run, name: str, dataset: str) -> None:
    run.folder.mkdir()
    begun = Ledger(run.folder / "ledger.jsonl", run=name, dataset=dataset)
    begun.reserve(1, EVENT, unit=loop.UNIT, neighbours="add_remove")  # Killed in its first round.
    begun.close()
    link = Echo()
    with pytest.raises(StoreError, match="cannot go on, since its experiment or data changed after it was started"):
        run.go(training(), link)
    assert (link.trace, run.charges()) == ([], 1)
