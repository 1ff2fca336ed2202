from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from privacy.audit import direction
from privacy.contributions import Contributions, Failure, Partial
from privacy.mechanism import GaussianSum, Mechanism
from privacy.release import Collector
from server.canaries import CanaryLink
from server.link import Request
from server.participation import Coins
from strategies.base import Evaluation, Instruction, Split

torch.set_num_threads(1)

SIZE, SILOS = 50, 6
MECHANISMS: dict[str, Mechanism] = {"delta": GaussianSum(0.25, 1.0), "other": GaussianSum(2.0, 1.0)}
SIZES = {"delta": SIZE, "other": 3}
INSTRUCTION = Instruction(4, {"model": torch.zeros(SIZE)})


@dataclass
class Constant:
    """Silos that all send the same; chunks come last first."""

    population: int = SILOS
    trace: list[str] = field(default_factory=list)

    def ask(
        self, requests: Sequence[Request], mechanisms: Mapping[str, Mechanism], *, record: bool
    ) -> Iterator[Partial]:
        [request] = requests
        for chunk, silo in reversed(list(enumerate(request.silos))):
            sums = Contributions(mechanisms, SIZES)
            sums.add({"delta": torch.full((SIZE,), 0.01), "other": torch.ones(3)}, 1.0, [silo])
            sums.add({"delta": torch.full((SIZE,), float("nan")), "other": torch.ones(3)}, 1.0, [silo])
            yield sums.partial(chunk, [0.5] if record else [])

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        return Evaluation(tuple(silos), (1,) * len(silos), (0.5,) * len(silos), (0.25,) * len(silos))

    def stage(self) -> None:
        self.trace.append("stage")

    def commit(self, round_: int) -> None:
        self.trace.append(f"commit {round_}")

    def recover(self, round_: int) -> None:
        self.trace.append(f"recover {round_}")

    def close(self) -> None:
        self.trace.append("close")


def canary_link(canaries: int) -> CanaryLink:
    return CanaryLink(Constant(), participation=Coins(canaries, 1.0, 5), channel="delta", sizes=SIZES, seed=5)


def collect(link: CanaryLink | Constant, cohort: Sequence[int] = range(SILOS)) -> Collector:
    collector = Collector(MECHANISMS, SIZES, expected=1.0, population=SILOS)
    for partial in link.ask([Request(INSTRUCTION, list(cohort))], MECHANISMS, record=True):
        collector.add(partial)
    return collector


@pytest.mark.parametrize("canaries", [1, 10, 65, 200])
def test_canaries_change_nothing_that_is_counted(canaries: int) -> None:
    plain, audited = collect(Constant()).tally, collect(canary_link(canaries)).tally
    assert audited == plain
    assert (audited.weight, audited.arrived, audited.clipped, audited.payload) == (6.0, 6, 0, 6 * (SIZE + 3))
    assert audited.failures == [Failure(silo, "update is not finite") for silo in reversed(range(SILOS))][::-1]
    assert audited.losses == [0.5] * SILOS


def test_the_sum_grows_by_the_directions_at_exactly_the_clip_norm() -> None:
    plain, audited = collect(Constant()).sums, collect(canary_link(70)).sums  # 70: one block of 64 and one of 6.
    expected = 0.25 * torch.stack([direction(5, canary, SIZE) for canary in range(70)]).sum(0)
    torch.testing.assert_close(audited["delta"] - plain["delta"], expected, rtol=0, atol=1e-6)
    assert torch.equal(audited["other"], plain["other"])


def test_one_canary_has_the_norm_that_a_silo_may_have() -> None:
    contribution = collect(canary_link(1), []).sums["delta"]
    assert float(torch.linalg.vector_norm(contribution)) == pytest.approx(0.25, abs=1e-6)
    assert float(contribution @ direction(5, 0, SIZE)) == pytest.approx(0.25, abs=1e-6)


def test_no_canary_adds_nothing() -> None:
    plain, audited = collect(Constant()), collect(canary_link(0))
    assert all(torch.equal(plain.sums[name], audited.sums[name]) for name in SIZES)
    assert audited.tally == plain.tally
    assert canary_link(0).expected == 0.0


def test_canaries_are_there_when_no_silo_is() -> None:
    audited = collect(canary_link(3), [])
    assert audited.tally.arrived == 0
    assert torch.linalg.vector_norm(audited.sums["delta"]) > 0


def test_the_size_of_a_block_changes_no_more_than_the_rounding() -> None:
    whole, single = canary_link(5), canary_link(5)
    single.block = 1
    torch.testing.assert_close(collect(whole).sums["delta"], collect(single).sums["delta"], rtol=0, atol=1e-12)
    wide = CanaryLink(Constant(), participation=Coins(5, 1.0, 5), channel="delta", sizes={"delta": 10**7}, seed=5)
    assert wide.block == 1  # Directions are never stored whole.


def test_the_rest_passes_on() -> None:
    link = canary_link(2)
    assert isinstance(link.link, Constant)
    assert link.population == SILOS
    assert link.evaluate(INSTRUCTION, [1, 2]) == link.link.evaluate(INSTRUCTION, [1, 2])
    link.stage()
    link.commit(3)
    link.recover(2)
    link.close()
    assert link.link.trace == ["stage", "commit 3", "recover 2", "close"]


@pytest.mark.parametrize("clip_norm", [1e-30, 0.25, 1e6, 1e38])
def test_a_canary_is_as_long_as_the_clip_norm_however_large_that_is(clip_norm: float) -> None:
    mechanisms: dict[str, Mechanism] = {"delta": GaussianSum(clip_norm, 1.0), "other": GaussianSum(2.0, 1.0)}
    [partial] = canary_link(1).ask([Request(INSTRUCTION, [])], mechanisms, record=False)
    assert float(torch.linalg.vector_norm(partial.sums["delta"])) == pytest.approx(clip_norm, rel=1e-6)
