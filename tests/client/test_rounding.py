"""Rounding on the way to and from silos: what is lost is known, comes back where it is kept, and precedes the clip."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.examples import Examples, Shards
from client.host import SiloHost
from client.personal import PersonalStore
from client.rounding import RESIDUAL, Rounding
from privacy.contributions import Partial
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from strategies import wire
from strategies.base import Instruction, Silo, Strategy, Update
from strategies.experiment import Train
from strategies.tasks import Shape, initial
from strategies.tasks.dense import Logistic

torch.set_num_threads(1)

SHAPE, ROWS, SIZE = Shape((4,), 3), [6, 1, 9], 15
EXACT: dict[str, Mechanism] = {"delta": ExactSum()}
HALF, FEEDBACK = Rounding("float16"), Rounding("float16", feedback=True)
STEP = 2.0**-12  # A quarter of float16's step at 1.
both = pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])


@dataclass(frozen=True)
class Echo(Strategy):
    """Sends back what it was sent, times its rows where it is told to."""

    by_rows: bool = False

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        rows = silo.examples[..., None]
        return Update({"delta": instruction["model"] * (rows if self.by_rows else torch.ones_like(rows))})


@dataclass(frozen=True)
class Mangled(Strategy):
    """Sends what is no update."""

    found: object = None

    def local(self, silo: Silo, instruction: Instruction) -> Update:
        return Update(self.found)  # type: ignore[arg-type]


def hosted(
    strategy: Strategy, rounding: Rounding, *, stacked: bool = True, folder: Path | None = None, held_out: bool = False
) -> SiloHost:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(sum(ROWS), 4, generator=rng)
    targets = torch.randint(3, (sum(ROWS),), generator=rng)
    shards = Shards(Examples(features, targets), torch.tensor([0, *ROWS]).cumsum(0))
    kept = rounding.personal({"delta": SIZE})
    return SiloHost(
        strategy=strategy,
        task=Logistic(),
        module=initial(Logistic(), SHAPE, seed=1)[0],
        shape=SHAPE,
        train=Train(batch_size=4),
        shards=shards,
        held_out=shards if held_out else None,
        seed=7,
        stacked=stacked,
        personal=PersonalStore(folder, silos=len(ROWS), sizes=kept) if folder is not None else None,
        rounding=rounding,
    )


def ask(vector: Tensor, round_: int = 1) -> Instruction:
    return Instruction(round_, {"model": vector})


def committed(
    host: SiloHost, vector: Tensor, round_: int, silos: list[int], mechanisms: Mapping[str, Mechanism]
) -> Partial:
    """A round of which the server's checkpoint stands."""
    partial = host.contribute(ask(vector, round_), silos, mechanisms, chunk=0)
    assert host.personal is not None
    host.personal.commit(round_)
    return partial


def residual(host: SiloHost, silo: int) -> list[float]:
    assert host.personal is not None
    return host.personal.rows([silo], stacked=False)[RESIDUAL + "delta"].tolist()


# What silos receive, and what the server does.


@both
def test_silos_read_the_instruction_as_decoding_it_would(stacked: bool) -> None:
    model = torch.linspace(-1, 1, SIZE)
    decoded = wire.decode(wire.encode(model, kept=SIZE, values="float16"), size=SIZE, kept=SIZE, values="float16")
    assert not torch.equal(decoded, model)
    exact, half = (
        hosted(Echo(), rounding, stacked=stacked).contribute(ask(model), [0, 1], EXACT, chunk=0).sums["delta"]
        for rounding in (Rounding(), HALF)
    )
    assert torch.equal(exact, 2 * model.double())
    assert torch.equal(half, 2 * decoded.double())


@both
def test_silos_train_from_what_they_read(stacked: bool) -> None:
    # Read as 1 + 4 x 2^-12, times 6 a tie between 6 + 16 and 6 + 32 of these, to even. Unread, 6 + 18 would be 6 + 16.
    host = hosted(Echo(by_rows=True), HALF, stacked=stacked)
    found = host.contribute(ask(torch.full((SIZE,), 1 + 3 * STEP)), [0], EXACT, chunk=0).sums["delta"]
    assert found.tolist() == [6 + 32 * STEP] * SIZE


def test_silos_are_evaluated_on_what_they_read() -> None:
    model, host = torch.linspace(-3, 3, SIZE), hosted(Echo(), HALF, held_out=True)
    exact = hosted(Echo(), Rounding(), held_out=True)
    assert host.evaluate(ask(model), [0, 2]) == exact.evaluate(ask(wire.rounded(model, "float16")), [0, 2])
    assert host.evaluate(ask(model), [0, 2]) != exact.evaluate(ask(model), [0, 2])


def test_whole_numbers_and_float32_pass_as_they_are() -> None:
    instruction = Instruction(3, {"model": torch.tensor([2049.0]), "count": torch.tensor([2049])})
    assert HALF.received(instruction)["count"].tolist() == [2049]
    assert HALF.received(instruction)["model"].tolist() == [2048.0]
    assert HALF.received(instruction).round == 3
    assert Rounding().received(instruction) is instruction


@both
def test_the_server_reads_updates_as_decoding_them_would(stacked: bool) -> None:
    model = wire.rounded(torch.linspace(-1, 1, SIZE), "float16")  # Received without a loss; times 9 it is not.
    host = hosted(Echo(by_rows=True), HALF, stacked=stacked)
    found = host.contribute(ask(model), [2], EXACT, chunk=0).sums["delta"]
    message = wire.encode(9 * model, kept=SIZE, values="float16")
    assert torch.equal(found, wire.decode(message, size=SIZE, kept=SIZE, values="float16").double())
    assert not torch.equal(found, (9 * model).double())


# Feedback.


@both
def test_what_rounding_takes_comes_back(stacked: bool, tmp_path: Path) -> None:
    # 1 + 2^-12 four times: 1, 1 (a tie, to even), 1 + 2^-10, 1, which is 4 + 4 x 2^-12; without feedback 4.
    sent, left = [], []
    rounding, state = FEEDBACK, PersonalStore(tmp_path, silos=2, sizes={RESIDUAL + "delta": 1})
    for round_ in range(1, 5):
        vector = torch.full((2, 1) if stacked else (1,), 1 + STEP)
        rows = state.rows([0, 1] if stacked else [0], stacked=stacked)
        sent.append(float(rounding.sent({"delta": vector}, rows, {"delta": 1})["delta"].reshape(-1)[-1]))
        state.commit(round_)
        left.append(float(state.rows([0], stacked=False)[RESIDUAL + "delta"]))
    assert sent == [1.0, 1.0, 1 + 4 * STEP, 1.0]
    assert left == [STEP, 2 * STEP, -STEP, 0.0]
    without = [float(HALF.sent({"delta": torch.tensor([1 + STEP])}, {}, {"delta": 1})["delta"]) for _ in range(4)]
    assert without == [1.0] * 4


@given(st.lists(st.lists(st.integers(-(2**17), 2**17), min_size=3, max_size=3), min_size=1, max_size=12))
@settings(max_examples=60)
def test_all_that_was_sent_and_what_is_left_is_all_that_was_meant(rounds: list[list[int]]) -> None:
    # Multiples of 2^-6 below 2^12: float32 adds them without a loss, and float16 does not hold them.
    state: dict[str, Tensor] = {}
    sent = torch.zeros(3, dtype=torch.float64)
    for numbers in rounds:
        vector = torch.tensor(numbers) / 2**6
        found = FEEDBACK.sent({"delta": vector}, state, {"delta": 3})["delta"]
        assert torch.equal(found, wire.rounded(found, "float16"))
        assert not (found[vector == 0]).any()  # What the strategy did not choose does not travel.
        sent += found
    meant = torch.tensor(rounds).double().sum(0) / 2**6
    assert torch.equal(sent + state[RESIDUAL + "delta"], meant)
    assert bool((state[RESIDUAL + "delta"].abs() <= 1).all())  # Half a step of float16 between 2048 and 4096.


def test_the_residual_of_a_number_that_is_not_sent_waits() -> None:
    state: dict[str, Tensor] = {}
    for vector, expected, left in (
        ([1 + STEP, 2.0], [1.0, 2.0], [STEP, 0.0]),
        ([0.0, 3.0], [0.0, 3.0], [STEP, 0.0]),
        ([1 + 2 * STEP, 0.0], [1 + 4 * STEP, 0.0], [-STEP, 0.0]),
    ):
        found = FEEDBACK.sent({"delta": torch.tensor(vector)}, state, {"delta": 2})["delta"]
        assert found.tolist() == expected
        assert state[RESIDUAL + "delta"].tolist() == left


@both
def test_residuals_are_kept_for_each_silo_and_forgotten_with_a_refused_update(stacked: bool, tmp_path: Path) -> None:
    host = hosted(Echo(by_rows=True), FEEDBACK, stacked=stacked, folder=tmp_path)
    vector = torch.full((SIZE,), 1 + 4 * STEP)  # One of float16's steps above 1, so it is received without a loss.
    committed(host, vector, 1, [0, 1, 2], EXACT)
    # Times 6 it lies between multiples of 16 steps, a tie that goes up; times 9, 4 above a multiple of 32.
    assert [residual(host, silo)[0] for silo in range(3)] == [-8 * STEP, 0.0, 4 * STEP]
    vector[3] = 60000.0  # Times 6 it is more than float16 holds.
    assert not committed(host, vector, 2, [0], EXACT).failures
    assert residual(host, 0)[3] == 6 * 60000.0 - 65504.0
    kept = [residual(host, silo) for silo in range(3)]
    vector[3] = float("inf")
    assert len(committed(host, vector, 3, [0, 1, 2], EXACT).failures) == 3
    assert [residual(host, silo) for silo in range(3)] == kept


def test_feedback_without_a_store_is_refused() -> None:
    with pytest.raises(ValueError, match="feedback needs a store"):
        hosted(Echo(), FEEDBACK)


MANGLED = {
    "another length": {"delta": torch.ones(SIZE + 1)},
    "one row for all": {"delta": torch.ones(1, SIZE)},
    "another channel": {"gamma": torch.ones(3, SIZE)},
    "no tensor": {"delta": "delta"},
    "whole numbers": {"delta": torch.ones(3, SIZE, dtype=torch.int64)},
    "no dimension": {"delta": torch.tensor(1.0)},
}


@pytest.mark.parametrize("found", MANGLED.values(), ids=MANGLED.keys())
@pytest.mark.parametrize("rounding", [HALF, FEEDBACK], ids=["plain", "feedback"])
def test_what_is_no_update_is_refused_as_it_was(found: object, rounding: Rounding, tmp_path: Path) -> None:
    exact = hosted(Mangled(found), Rounding()).contribute(ask(torch.ones(SIZE)), [0, 1, 2], EXACT, chunk=0)
    host = hosted(Mangled(found), rounding, folder=tmp_path)
    assert host.contribute(ask(torch.ones(SIZE)), [0, 1, 2], EXACT, chunk=0).failures == exact.failures
    assert len(exact.failures) == 3
    assert host.personal is not None
    host.personal.commit(1)
    assert not any(present.any() for present in host.personal.present.values())


# Privacy.


def test_the_clip_comes_after_rounding() -> None:
    # 9 x 228.125 = 2053.125 becomes 2054. Clipped to 2053.125 and rounded then, it would be longer than the clip norm.
    clip, model = 2053.125, torch.zeros(SIZE)
    model[0] = 228.125
    found = hosted(Echo(by_rows=True), HALF).contribute(ask(model), [2], {"delta": GaussianSum(clip, 1.0)}, chunk=0)
    assert float(found.sums["delta"][0]) == pytest.approx(clip, rel=1e-12)
    assert found.clipped == 1


@given(
    st.lists(st.lists(st.floats(-1e5, 1e5, width=32), min_size=SIZE, max_size=SIZE), min_size=1, max_size=4),
    st.floats(1e-3, 1e5),
    st.sampled_from([HALF, FEEDBACK]),
)
@settings(max_examples=40)
def test_a_silo_moves_the_sum_by_the_clip_norm_at_most_whatever_it_remembers(
    rounds: list[list[float]], clip: float, rounding: Rounding
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        host = hosted(Echo(by_rows=True), rounding, folder=Path(folder))
        for number, values in enumerate(rounds, start=1):
            mechanisms = {"delta": GaussianSum(clip, 1.0)}
            vector = torch.tensor(values)
            with_it, without = (
                host.contribute(ask(vector, number), silos, mechanisms, chunk=0).sums["delta"]
                for silos in ([0, 1, 2], [0, 1])
            )
            assert float((with_it - without).norm()) <= clip * (1 + 1e-6)
            committed(host, vector, number, [0, 1, 2], mechanisms)
