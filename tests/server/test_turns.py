"""Silos that take turns: who is in which group, what a round is charged, and that nobody's turn comes too soon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from privacy.account import BudgetSpent
from privacy.accountant import epsilon
from privacy.band import optimal
from privacy.banded import BandedSum
from privacy.contributions import Contributions, Partial
from privacy.events import Composed, Event, Gaussian, Repeated, Turn
from privacy.ledger import Charge, Ledger
from privacy.mechanism import GaussianSum, Mechanism
from privacy.noise import SimulatedNoise, SystemNoise, grid
from privacy.release import Release
from server import loop
from server.checkpoint import read as read_checkpoint
from server.link import Request
from server.loop import RoundResult, Training
from server.participation import InTurns
from server.sampler import CyclicCohort, FullCohort, Sampler
from server.store import RunStore, StoreError
from server.turns import Charges, TooSoon, again, charged, events
from strategies.base import Evaluation, Instruction, Split, State, Strategy
from strategies.layout import Layout

torch.set_num_threads(1)

SIZE, SILOS, SEPARATION, ROUNDS, DELTA = 3, 8, 3, 7, 1e-3
PAYS, PAID = Turn(Gaussian(2.0), charged=True), Turn(Gaussian(2.0), charged=False)
TURNS = CyclicCohort(SEPARATION, SILOS)


# Who is in which group


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 5))
def test_every_silo_has_one_turn_a_cycle_and_groups_are_of_near_equal_size(b: int, more: int, seed: int) -> None:
    sampler = CyclicCohort(b, b + more)
    groups = [sampler.draw(seed, round_) for round_ in range(1, 2 * b + 1)]
    assert groups[:b] == groups[b:]  # So two turns are exactly b rounds apart.
    assert sorted(silo for group in groups[:b] for silo in group) == list(range(b + more))
    sizes = Counter(map(len, groups[:b]))
    assert max(sizes) - min(sizes) <= 1
    assert sampler.expected == pytest.approx(np.mean([len(group) for group in groups]))


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 5))
def test_one_silo_more_moves_no_other_silo_s_turns(b: int, more: int, seed: int) -> None:
    """Else adding a silo would move all the others' updates, and add_remove would have no price."""
    for round_ in range(1, b + 1):
        few, many = (CyclicCohort(b, b + more + extra).draw(seed, round_) for extra in (0, 1))
        assert few == [silo for silo in many if silo < b + more]


def test_groups_follow_the_seed() -> None:
    assert CyclicCohort(10, 400).draw(0, 1) == CyclicCohort(10, 400).draw(0, 1) != CyclicCohort(10, 400).draw(1, 1)


@pytest.mark.parametrize("separation", [0, 9])
def test_more_groups_than_silos_are_refused(separation: int) -> None:
    with pytest.raises(ValueError, match=r"cohort\.separation: . groups of 8 silos"):
        CyclicCohort(separation, SILOS)


@given(st.integers(0, 30), st.integers(1, 9))
def test_canaries_take_turns_as_silos_do(canaries: int, b: int) -> None:
    turns = InTurns(canaries, b)
    rounds = [turns.drawn(round_) for round_ in range(1, 2 * b + 1)]
    assert rounds[:b] == rounds[b:]
    assert sorted(canary for drawn in rounds[:b] for canary in drawn) == list(range(canaries))
    assert turns.expected == pytest.approx(sum(map(len, rounds)) / (2 * b))


# What rounds are charged


def test_the_first_round_of_each_cycle_pays() -> None:
    charges = Charges(PAYS, TURNS)
    assert [charges.next(round_) for round_ in range(1, 8)] == [PAYS, PAID, PAID, PAYS, PAID, PAID, PAYS]
    assert charges.free == 4
    assert [charged(TURNS, rounds) for rounds in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert charged(FullCohort(SILOS), 7) == 7
    assert (events(PAYS), events(Gaussian(2.0))) == ((PAYS, PAID), (Gaussian(2.0),))


@given(st.integers(1, 4), st.lists(st.integers(0, 12), max_size=12), st.data())
def test_whatever_is_done_again_every_silo_has_paid_for_what_it_moved(b: int, back: list[int], data: Any) -> None:
    """A run is thrown back again and again: after each stretch of rounds, to the end of some earlier round.

    Fresh noise makes every attempt a row of C x + Z of its own. A silo's squared distance is the sum over these rows of
    the square of what it moves them by, in clip norms; all of it must have been paid, at every moment.
    """
    rounds = 12
    matrix, charges = optimal(rounds, b).dense(), Charges(PAYS, CyclicCohort(b, b))
    moved, paid, done = np.zeros(b), 0, 0  # By group; squared.
    for stretch in [*back, rounds]:
        for t in range(done + 1, max(done, stretch) + 1):
            paid += charges.next(t) == PAYS
            for s in range(max(1, t - b + 1), t + 1):  # Who was in the last b rounds, on the way to this attempt.
                moved[(s - 1) % b] += matrix[t - 1, s - 1] ** 2
            assert moved.max() <= paid * (1 + 1e-12)
        done = data.draw(st.integers(0, max(done, stretch)))


def test_charging_only_who_is_asked_again_would_be_too_little() -> None:
    """Round 3 is done twice: it tells once more of those who were in round 2, who are asked once only."""
    matrix = optimal(12, 3).dense()
    second = np.square(matrix[:, 1]).sum() + matrix[2, 1] ** 2
    assert second > 1.05


def test_what_a_ledger_tells_of_earlier_attempts_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", run="r", dataset="d")
    for round_, event in ((0, Gaussian(9.0)), (1, PAYS), (2, PAID), (2, PAYS)):
        ledger.reserve(round_, event, unit=loop.UNIT, neighbours="add_remove")
    charges = Charges.of(PAYS, TURNS, ledger.counted(), loop.UNIT)
    assert charges.free == 1
    assert [charges.next(round_) for round_ in (2, 3, 4)] == [PAYS, PAID, PAYS]
    assert again(ledger.counted(), loop.UNIT) == 1
    ledger.close()


# The round loop


@dataclass(frozen=True)
class Walk(Strategy):
    """The model is the sum of all released sums."""

    def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
        return {"model": state["model"] + release.sum("delta")}


@dataclass
class Echo:
    """A link whose silos send 0.01 on every coordinate; notes who is asked."""

    asked: list[list[int]] = field(default_factory=list)
    before: Callable[[int], None] = lambda round_: None
    population: int = SILOS

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        [request] = requests
        cohort = list(request.silos)
        self.asked.append(cohort)
        self.before(request.instruction.round)
        sums = Contributions(mechanisms, {"delta": SIZE})
        for silo in cohort:
            sums.add({"delta": torch.full((SIZE,), 0.01)}, 1.0, [silo])
        yield sums.partial(0, [])

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        return Evaluation((), (), (), ())

    def stage(self) -> None: ...

    def commit(self, round_: int) -> None: ...

    def recover(self, round_: int) -> None: ...

    def close(self) -> None: ...


def banded(separation: int = SEPARATION, rounds: int = ROUNDS) -> BandedSum:
    return BandedSum(1.0, 2.0, optimal(rounds, separation))


def training(sampler: Sampler = TURNS, mechanism: Mechanism | None = None, **changes: Any) -> Training:
    base = Training(
        strategy=Walk(),
        model=torch.zeros(SIZE),
        layout=Layout(("weight",), ((SIZE,),)),
        sampler=sampler,
        mechanisms={"delta": mechanism if mechanism is not None else banded()},
        rounds=ROUNDS,
        seed=1,
        noise=SimulatedNoise(1),
        expected=sampler.expected,
        neighbours="add_remove",
        delta=DELTA,
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
        self.folder = folder

    def go(self, what: Training, link: Echo | None = None, *, stop_after: int | None = None) -> list[RoundResult]:
        begun = (self.folder / "experiment.yaml").exists()
        store = RunStore(self.folder, resume=begun)
        ledger = Ledger(store.ledger, run="test", dataset="d", told=[Charge(loop.UNIT, "add_remove", what.event)])
        try:
            if not begun:
                store.begin("name: test\n")
            results: list[RoundResult] = []
            for result in loop.run(what, link if link is not None else Echo(), store, ledger):
                results.append(result)
                if result.round == stop_after:
                    break
            return results
        finally:
            ledger.close()
            store.close()

    def spent(self) -> list[Event]:
        ledger = Ledger(self.folder / "ledger.jsonl", run="test", dataset="d")
        ledger.close()
        return ledger.spent(loop.UNIT)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def price(times: int) -> float:
    return epsilon(Repeated(Gaussian(2.0), times), DELTA).upper


def dies_in(round_: int) -> Echo:
    def die(now: int) -> None:
        if now == round_:
            raise KeyboardInterrupt

    return Echo(before=die)


@pytest.mark.parametrize("mechanism", [banded(), GaussianSum(1.0, 2.0)])
def test_epsilon_rises_with_the_cycles(run: Run, mechanism: Mechanism) -> None:
    rows = [result.row["epsilon"] for result in run.go(training(mechanism=mechanism))]
    assert rows == [price(1)] * 3 + [price(2)] * 3 + [price(3)]
    assert run.spent() == [PAYS, PAID, PAID, PAYS, PAID, PAID, PAYS]


@pytest.mark.parametrize("noise", [SimulatedNoise(1), SystemNoise()])
def test_the_model_holds_the_prefix_sums_of_correlated_noise(run: Run, noise: Any) -> None:
    """C (y - x) are the fresh numbers: of the seed's own streams, or under system noise within 7 deviations."""
    results = run.go(training(noise=noise))
    model = np.stack([np.zeros(SIZE), *(result.state["model"].double().numpy() for result in results)])
    sums = np.array([[0.01 * result.row["cohort"]] * SIZE for result in results])
    white = banded().band.dense() @ (np.diff(model, axis=0) - sums) / 2.0
    if isinstance(noise, SimulatedNoise):
        drawn = [noise.normals(SIZE, "noise", t, "delta").numpy() for t in range(1, ROUNDS + 1)]
        np.testing.assert_allclose(white, np.stack(drawn), atol=1e-5)  # The model is float32.
    assert np.abs(white).max() < 7


@pytest.mark.parametrize("stops", [(1,), (2, 3, 5), (6,)])
def test_a_run_in_pieces_is_the_run_in_one(run: Run, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Each piece has a Training of its own, as a process has: noise and turns come from the checkpoint alone."""
    whole = Run(tmp_path / "whole").go(training())
    for stop in stops:
        run.go(training(), stop_after=stop)
    last = run.go(training())[-1]
    assert torch.equal(last.state["model"], whole[-1].state["model"])
    assert run.spent() == [PAYS, PAID, PAID, PAYS, PAID, PAID, PAYS]


def test_a_training_that_was_used_goes_back_to_the_checkpoint(run: Run, tmp_path: Path) -> None:
    what, whole = training(), Run(tmp_path / "whole").go(training())
    for stop in (2, 5, None):
        last = run.go(what, stop_after=stop)[-1]
    assert torch.equal(last.state["model"], whole[-1].state["model"])


@pytest.mark.parametrize("round_", [1, 2, 3, 4, 7])
def test_a_round_that_is_done_again_is_paid_by_all_and_ends_at_the_same_model(
    run: Run, tmp_path: Path, round_: int
) -> None:
    """With the seed's noise it is the same release again; the charge does not count on that."""
    whole, link = Run(tmp_path / "whole").go(training()), dies_in(round_)
    with pytest.raises(KeyboardInterrupt):
        run.go(training(), link)
    resumed = Echo()
    last = run.go(training(), resumed)[-1]
    assert torch.equal(last.state["model"], whole[-1].state["model"])
    assert resumed.asked[0] == link.asked[-1] == TURNS.draw(1, round_)
    assert Counter(run.spent()) == {PAYS: 4, PAID: 4}  # 7 rounds, and one of them once more.
    assert last.row["epsilon"] == price(4)


def test_an_older_checkpoint_put_back_is_paid_in_full(run: Run) -> None:
    run.go(training(), stop_after=2)
    old = (run.folder / "checkpoint.safetensors").read_bytes()
    run.go(training(), stop_after=5)
    (run.folder / "checkpoint.safetensors").write_bytes(old)
    assert run.go(training())[-1].row["epsilon"] == price(3 + 3)  # Rounds 3, 4 and 5 were released twice.


def test_a_torn_line_is_paid_as_a_round_that_pays(run: Run) -> None:
    run.go(training(), stop_after=2)
    with open(run.folder / "ledger.jsonl", "ab") as file:
        file.write(b'{"kind": "reserve"')
    assert run.go(training())[-1].row["epsilon"] == price(3 + 1)


def test_secret_noise_keeps_the_groups_and_draws_a_round_anew(run: Run, tmp_path: Path) -> None:
    link = dies_in(5)
    with pytest.raises(KeyboardInterrupt):
        run.go(training(noise=SystemNoise()), link)
    again_ = Echo()
    last = run.go(training(noise=SystemNoise()), again_)[-1]
    assert link.asked + again_.asked[1:] == [TURNS.draw(1, round_) for round_ in range(1, ROUNDS + 1)]
    assert last.row["epsilon"] == price(4)
    other = Run(tmp_path / "other").go(training(noise=SystemNoise()))[-1]
    assert not torch.equal(other.state["model"], last.state["model"])


@pytest.mark.parametrize(("cycles", "rounds"), [(1, 3), (2, 6), (3, 7)])
def test_a_budget_buys_whole_cycles(run: Run, cycles: int, rounds: int) -> None:
    what = training(budget=price(cycles) * (1 + 1e-9))
    if rounds == ROUNDS:
        assert len(run.go(what)) == ROUNDS
        return
    with pytest.raises(BudgetSpent, match=f"round {rounds + 1} would bring epsilon to .* stopped after round {rounds}"):
        run.go(what)
    assert len(run.spent()) == rounds


def test_what_was_released_before_counts_beside_the_turns(run: Run) -> None:
    RunStore(run.folder, resume=False).close()
    ledger = Ledger(run.folder / "ledger.jsonl", run="test", dataset="d")
    ledger.commit(ledger.reserve(0, Gaussian(3.0), unit=loop.UNIT, neighbours="add_remove"))
    ledger.close()
    last = run.go(training(before=(Gaussian(3.0),)))[-1]
    assert last.row["epsilon"] == epsilon(Composed((Gaussian(3.0), Repeated(Gaussian(2.0), 3))), DELTA).upper


# Nobody's turn comes too soon


@dataclass(frozen=True)
class Hasty(CyclicCohort):
    """Silo 0 is asked again one round sooner than the separation says."""

    def draw(self, seed: int, round_: int) -> list[int]:
        return [0] if round_ in (1, self.separation) else []


def test_a_silo_that_is_asked_too_soon_is_a_refused_round(run: Run) -> None:
    link = Echo()
    with pytest.raises(TooSoon, match="round 3: silo 0 may be asked again from round 4 on"):
        run.go(training(Hasty(SEPARATION, SILOS)), link)
    assert len(link.asked) == len(run.spent()) == 2  # Neither asked nor charged.


@pytest.mark.parametrize("stop", [1, 2])
def test_who_was_asked_is_known_after_a_restart(run: Run, stop: int) -> None:
    run.go(training(Hasty(SEPARATION, SILOS)), stop_after=stop)
    with pytest.raises(TooSoon, match="round 3: silo 0"):
        run.go(training(Hasty(SEPARATION, SILOS)))


@dataclass(frozen=True)
class Exact(CyclicCohort):
    """Silo 0 is asked as soon as it may be."""

    def draw(self, seed: int, round_: int) -> list[int]:
        return [0] if round_ % self.separation == 1 else []


def test_a_turn_right_after_its_separation_is_admitted(run: Run) -> None:
    assert len(run.go(training(Exact(SEPARATION, SILOS)))) == ROUNDS


def test_banded_noise_needs_silos_that_stay_away_as_long_as_it_has_bands() -> None:
    for sampler in (FullCohort(SILOS), CyclicCohort(SEPARATION - 1, SILOS)):
        with pytest.raises(ValueError, match="noise of 3 bands has a price for turns as many rounds apart"):
            training(sampler)
    assert training(CyclicCohort(SEPARATION + 1, SILOS)).sampler.separation == 4  # type: ignore[union-attr]


def test_noise_that_stands_at_another_round_is_not_used() -> None:
    mechanism = banded()
    what = training(mechanism=mechanism)
    what.carried.admit(1, [0])
    mechanism.privatize(torch.zeros(SIZE, dtype=torch.float64), what.noise, stream=("noise", 1, "delta"))
    what.carried.admit(2, [1])
    with pytest.raises(RuntimeError, match="delta: noise stands at round 1, not before round 3"):
        what.carried.admit(3, [2])


# What is kept


def test_the_last_checkpoint_holds_no_noise(run: Run) -> None:
    """It would take the noise off the last models; the ones before it need it to go on."""
    run.go(training(), stop_after=ROUNDS - 1)
    path = run.folder / "checkpoint.safetensors"
    assert set(read_checkpoint(path).carried) == {"free_from", "noise/delta"}
    assert tuple(read_checkpoint(path).carried["noise/delta"].shape) == (SEPARATION - 1, SIZE)
    run.go(training())
    assert set(read_checkpoint(path).carried) == {"free_from"}


def test_a_checkpoint_without_what_the_noise_needs_is_refused() -> None:
    with pytest.raises(StoreError, match="checkpoint of round 2: lacks noise/delta"):
        training().carried.restore(2, {"free_from": torch.zeros(SILOS, dtype=torch.int64)})


def test_without_turns_nothing_is_kept() -> None:
    assert training(FullCohort(SILOS), GaussianSum(1.0, 2.0)).carried.kept(1) == {}


def test_sums_are_released_on_the_grid(run: Run) -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Look(Walk):
        def aggregate(self, state: State, release: Release, rng: torch.Generator) -> State:
            seen.append(release.sums["delta"])
            return super().aggregate(state, release, rng)

    run.go(training(strategy=Look()))
    steps = torch.stack(seen) / grid(2.0)
    assert torch.equal(steps, steps.round())
    assert math.isfinite(float(steps.abs().max()))
