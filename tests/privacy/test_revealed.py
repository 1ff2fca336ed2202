"""Single updates: shown to a strategy that says so, in the order of the cohort, and to no other."""

from __future__ import annotations

import pytest
import torch

from privacy.contributions import Contributions, Partial
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import SimulatedNoise
from privacy.release import Collector, Release

SIZES = {"delta": 3, "other": 1}


def chunk(number: int, silos: list[int], mechanisms: dict[str, Mechanism], *, reveals: bool = True) -> Partial:
    out = Contributions(mechanisms, SIZES, reveals=reveals)
    rows = torch.tensor([[float(silo), 0.0, 0.0] for silo in silos])
    out.add({"delta": rows, "other": rows[:, :1]}, torch.full((len(silos),), 0.5), silos)
    return out.partial(number)


def release(partials: list[Partial], mechanisms: dict[str, Mechanism], *, reveals: bool = True) -> Release:
    collector = Collector(mechanisms, SIZES, expected=4.0, population=9, reveals=reveals)
    for partial in partials:
        collector.add(partial)
    return collector.release(SimulatedNoise(0), stream=("noise", 1))


EXACT: dict[str, Mechanism] = {"delta": ExactSum(), "other": ExactSum()}


def test_updates_come_in_the_order_of_the_cohort_whoever_was_first() -> None:
    seen = release([chunk(1, [7, 2], EXACT), chunk(0, [5], EXACT)], EXACT).reveal()
    assert seen.silos == (5, 7, 2)
    assert seen.channels["delta"][:, 0].tolist() == seen.channels["other"][:, 0].tolist() == [5.0, 7.0, 2.0]
    assert seen.weights.tolist() == [0.5, 0.5, 0.5]


def test_they_are_clipped_as_in_the_sum_and_not_noised() -> None:
    mechanisms: dict[str, Mechanism] = {"delta": GaussianSum(4.0, 1.0), "other": GaussianSum(1e9, 1.0)}
    found = chunk(0, [3, 8], mechanisms)
    assert found.revealed is not None
    assert found.revealed.channels["delta"][:, 0].tolist() == [3.0, 4.0]
    weighed = (found.revealed.weights.unsqueeze(-1) * found.revealed.channels["delta"].double()).sum(0)
    assert torch.allclose(weighed, found.sums["delta"])


def test_what_was_refused_is_not_shown() -> None:
    out = Contributions(EXACT, SIZES, reveals=True)
    rows = torch.tensor([[1.0, 0.0, 0.0], [float("nan"), 0.0, 0.0], [2.0, 0.0, 0.0]])
    out.add({"delta": rows, "other": rows[:, :1]}, 1.0, [4, 5, 6])
    out.add({"delta": torch.zeros(2)}, 1.0, [7])
    revealed = out.partial(0).revealed
    assert revealed is not None
    assert revealed.silos == (4, 6)
    assert revealed.channels["delta"][:, 0].tolist() == [1.0, 2.0]


def test_an_empty_round_shows_nobody() -> None:
    seen = release([], EXACT).reveal()
    assert (seen.silos, tuple(seen.channels["delta"].shape)) == ((), (0, 3))


def test_whoever_did_not_say_so_sees_nothing() -> None:
    hidden = release([chunk(0, [1, 2], EXACT, reveals=False)], EXACT, reveals=False)
    with pytest.raises(ValueError, match="declares `reveals = True`"):
        hidden.reveal()
