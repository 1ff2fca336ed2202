"""Canary examples: a row's coin, a row's clip, the silo's noise; and the law of what its change shows of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from client import planted
from client.dpsgd import DPSGD
from client.examples import Examples
from client.personal import PersonalStore
from client.planted import CHANGE, Directions, Planted, PlantedSteps, direction_seed
from privacy import null
from privacy.audit import Scores, direction, score
from privacy.noise import SystemNoise
from privacy.steps import NoisySteps
from simulations.example_audit import share
from strategies.base import Correction
from strategies.experiment import Train
from strategies.tasks import Shape, Task, initial
from strategies.tasks.dense import MLP

torch.set_num_threads(1)

TASK: Task = MLP(hidden=(64,))
SHAPE = Shape((64,), 10)
SIZE = 64 * 64 + 64 + 64 * 10 + 10
CANARIES, RATE, CLIP, NOISE, STEPS, ROUNDS = 400, 0.25, 0.7, 1.5, 10, 20
OWN = NoisySteps(CLIP, NOISE, batch=10.0, rows=40)


def rows(count: int) -> Examples:
    """Rows of one class, which pull a model alike."""
    features = 1 + torch.randn(count, 64, generator=torch.Generator().manual_seed(1))
    return Examples(features, torch.zeros(count, dtype=torch.int64))


def dpsgd(train: Train, audit: Planted | None, *, stacked: bool = True, silos: int = 1, secret: bool = False) -> DPSGD:
    module, _ = initial(TASK, SHAPE, seed=0)
    chain = TASK.stack(SHAPE) if stacked else None
    return DPSGD(
        [OWN] * silos, module=module, task=TASK, train=train, chain=chain, fits=1, seed=7, secret=secret, planted=audit
    )


def audited(canaries: int = CANARIES, *, seed: int = 7, secret: bool = False) -> Planted:
    return Planted(canaries, [0], size=SIZE, seed=seed, secret=secret)


def change(
    train: Train, *, held: int = 0, start: Tensor | None = None, pull: float = 0.0, stacked: bool = True
) -> Tensor:
    """What `ROUNDS` fits from one start change in an audited silo that holds so many rows."""
    begin, audit = torch.zeros(SIZE) if start is None else start, audited()
    trainer, changes, examples = dpsgd(train, audit, stacked=stacked), dict[int, Tensor](), rows(held)
    correct: Correction | None = (lambda w, g: g + pull * (w - begin)) if pull else None
    for round_ in range(1, ROUNDS + 1):
        trained, _ = trainer.fit(
            begin, examples, np.array([0]), np.array([held]), silos=[0], round_=round_, fit=0, correct=correct,
            record=False,
        )  # fmt: skip
        audit.see(changes, [0], begin, trained)
    return changes[0]


def scores(moved: Tensor) -> Scores:
    return score(moved, seed=direction_seed(7, 0), canaries=CANARIES)


def standard(moved: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return null.standard_scores(scores(moved).seen, SIZE)


def error(shift: float) -> float:
    """Standard deviation of the mean standard score.

    Noise and coins of single canaries, (1 + q (1 - q) / z^2) / k; canaries against each other and the spread of the
    change's norm, together at most 2.5 shift^2 / d.
    """
    return math.sqrt((1 + RATE * (1 - RATE) / NOISE**2) / CANARIES + 2.5 * shift**2 / SIZE)


def plain(left: int) -> float:
    return 1.0


def under_momentum(left: int) -> float:
    return (1 - 0.9**left) / (1 - 0.9)


def under_pull(left: int) -> float:
    return float((1 - 0.5 * 0.3) ** (left - 1))


CASES: dict[str, tuple[Train, float, Callable[[int], float]]] = {
    "plain": (Train(steps=STEPS, learning_rate=0.5), 0.0, plain),
    "momentum": (Train(steps=STEPS, learning_rate=0.5, momentum=0.9), 0.0, under_momentum),
    "pull to the start": (Train(steps=STEPS, learning_rate=0.5), 0.3, under_pull),
    "weight decay": (Train(steps=STEPS, learning_rate=0.5, weight_decay=0.3), 0.0, under_pull),
}


@pytest.mark.parametrize("name", CASES)
def test_a_silo_without_rows_shows_canaries_by_the_formula(name: str) -> None:
    # Step t stays in the change with weight a_t. Canary j adds C sum a_t b_jt, noise has std z C |a|: over R fits the
    # mean score is q R sum a / (z^2 R |a|^2 + (k / d) E n^2)^1/2, with E n^2 = (q R sum a)^2 + q (1 - q) R |a|^2.
    # Without other canaries and with a = 1 that is q T^1/2 / z. Within 5 standard deviations: errs once in 1,700,000.
    train, pull, weight = CASES[name]
    a = [weight(left) for left in range(1, STEPS + 1)]
    total, square = ROUNDS * sum(a), ROUNDS * sum(each * each for each in a)
    mass = (RATE * total) ** 2 + RATE * (1 - RATE) * square
    shift = RATE * total / math.sqrt(NOISE**2 * square + CANARIES / SIZE * mass)
    found = standard(change(train, pull=pull))
    assert abs(found.mean() - shift) < 5 * error(shift)
    assert shift > 30 * error(0.0)  # The canaries are there to be seen.


@pytest.mark.parametrize("name", CASES)
def test_momentum_and_pulls_keep_the_stated_share_of_the_shift(name: str) -> None:
    train, pull, weight = CASES[name]
    a = [weight(left) for left in range(1, STEPS + 1)]
    stated = share(train.momentum, train.learning_rate * (train.weight_decay + pull), STEPS)
    assert stated == pytest.approx(sum(a) / math.sqrt(STEPS * sum(each * each for each in a)), rel=1e-12)
    assert stated <= 1 + 1e-12  # Cauchy-Schwarz: uneven steps never show more.


def test_a_pull_to_zero_hides_canaries_but_makes_none_up() -> None:
    # The decay of the start is in the change too, as a long vector that no canary points along.
    train, _, weight = CASES["weight decay"]
    start = 5 * torch.nn.functional.normalize(torch.randn(SIZE, generator=torch.Generator().manual_seed(0)), dim=0)
    a = [weight(left) for left in range(1, STEPS + 1)]
    total, square = ROUNDS * sum(a), ROUNDS * sum(each * each for each in a)
    decayed = ROUNDS * 5 * (1 - (1 - 0.5 * 0.3) ** STEPS) * OWN.batch / (0.5 * CLIP)
    mass = (RATE * total) ** 2 + RATE * (1 - RATE) * square
    shift = RATE * total / math.sqrt(NOISE**2 * square + (CANARIES * mass + decayed**2) / SIZE)
    found = standard(change(train, start=start))
    assert abs(found.mean() - shift) < 5 * error(shift)
    assert shift < 0.8 * standard(change(train)).mean()


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])
def test_real_rows_add_to_the_norm_and_not_to_the_scores(stacked: bool) -> None:
    # With steps so short that rows do not answer canaries, the mean score is d^1/2 q T C lr / B over the change's norm.
    train = Train(steps=STEPS, learning_rate=1e-3)
    moved = change(train, held=40, start=initial(TASK, SHAPE, seed=0)[1], stacked=stacked)
    signal = RATE * STEPS * ROUNDS * CLIP * 1e-3 / OWN.batch
    shift = math.sqrt(SIZE) * signal / float(moved.double().norm())
    assert abs(standard(moved).mean() - shift) < 5 * error(shift)
    without = math.sqrt(SIZE) * signal / float(change(train, stacked=stacked).double().norm())
    assert shift < 0.95 * without  # Else this is the test above.


@pytest.mark.parametrize("name", CASES)
def test_unseen_canaries_follow_their_null_whatever_the_settings(name: str) -> None:
    # Kolmogorov-Smirnov at 1e-6 for each of four settings; the seen ones fail it by far.
    train, pull, _ = CASES[name]
    found = scores(change(train, held=40, start=initial(TASK, SHAPE, seed=0)[1], pull=pull))
    assert null.fit(found.unseen, SIZE) > 1e-6
    assert null.fit(found.seen, SIZE) < 1e-6


def released(canaries: int, joined: list[int], total: Tensor, own: NoisySteps = OWN) -> Tensor:
    directions = Directions(canaries, SIZE, seed=3)
    steps = PlantedSteps(own.clip_norm, own.noise_multiplier, own.batch, own.rows, directions, iter([joined]))
    return steps.release(total, torch.Generator().manual_seed(0))


def test_each_canary_that_joined_adds_its_direction_at_exactly_the_clip_norm() -> None:
    # Descending by the released gradient goes along the direction; the divisor counts no canary.
    none = released(5, [], torch.zeros(SIZE)).double()
    for joined in ([2], [0, 4], list(range(5))):
        added = (none - released(5, joined, torch.zeros(SIZE)).double()) * OWN.batch
        expected = CLIP * torch.stack([direction(3, canary, SIZE) for canary in joined]).sum(0)
        assert float((added - expected).norm() / expected.norm()) < 1e-5
    assert float(none.norm()) == pytest.approx(NOISE * CLIP * math.sqrt(SIZE) / OWN.batch, rel=6 / math.sqrt(2 * SIZE))


def test_the_silos_own_rows_and_noise_stay_as_they_are() -> None:
    total = torch.randn(SIZE, generator=torch.Generator().manual_seed(5))
    assert torch.equal(released(5, [], total), OWN.release(total, torch.Generator().manual_seed(0)))
    before = total.clone()
    released(5, [1, 2], total)
    assert torch.equal(total, before)


def test_directions_are_the_same_kept_or_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list(range(3, 150, 2))
    kept = torch.cat(list(Directions(150, SIZE, seed=3).blocks(chosen)))
    monkeypatch.setattr(planted, "NUMBERS", 1)
    anew = list(Directions(150, SIZE, seed=3).blocks(chosen))
    assert torch.equal(torch.cat(anew), kept)
    assert max(len(block) for block in anew) == planted.BLOCK
    assert torch.allclose(kept[1], -direction(3, 5, SIZE).float(), atol=0)


def joiners(audit: Planted, *, silo: int = 0, round_: int = 1, fit: int = 0, steps: int = 50) -> list[list[int]]:
    found = audit.join(OWN, silo, steps=steps, round_=round_, fit=fit)
    assert isinstance(found, PlantedSteps)
    return [list(each) for each in found.joining]


@pytest.mark.parametrize("secret", [False, True])
def test_canaries_flip_a_rows_coin(secret: bool) -> None:
    # 400 canaries, 50 steps, rate 1/4: binomial(20,000, 1/4), both tails at 1e-9; and each canary's own, 400 at 1e-10.
    drawn = joiners(audited(secret=secret))
    assert len(drawn) == 50
    counts = np.bincount(np.concatenate(drawn), minlength=CANARIES)
    low, high = binom.ppf([1e-9, 1 - 1e-9], 50 * CANARIES, RATE)
    assert low <= counts.sum() <= high
    low, high = binom.ppf([1e-10, 1 - 1e-10], 50, RATE)
    assert bool(((counts >= low) & (counts <= high)).all())
    assert all(len(set(each)) == len(each) for each in drawn)


def test_coins_repeat_in_a_simulation_and_never_where_they_are_secret() -> None:
    assert joiners(audited()) == joiners(audited())
    others = [joiners(audited(), round_=2), joiners(audited(), fit=1), joiners(audited(seed=8))]
    both = Planted(CANARIES, [0, 1], size=SIZE, seed=7, secret=False)
    assert all(joiners(audited()) != other for other in [*others, joiners(both, silo=1)])
    assert joiners(audited(secret=True)) != joiners(audited(secret=True))


def test_no_two_silos_share_canaries_with_each_other_or_with_canary_silos() -> None:
    seeds = {7, *(direction_seed(7, silo) for silo in range(50)), direction_seed(8, 0)}
    assert len(seeds) == 52


def fitted(audit: Planted | None, *, stacked: bool) -> Tensor:
    trainer, examples = dpsgd(Train(steps=5), audit, stacked=stacked, silos=3), rows(60)
    start, starts, sizes = initial(TASK, SHAPE, seed=0)[1], np.array([0, 20, 40]), np.array([20, 20, 20])
    groups = [[0, 1, 2]] if stacked else [[0], [1], [2]]
    parts = [
        trainer.fit(
            start, examples, starts[group], sizes[group], silos=group, round_=1, fit=0, correct=None, record=False
        )[0].reshape(len(group), -1)
        for group in groups
    ]
    return torch.cat(parts)


def test_only_audited_silos_are_moved_and_alike_stacked_or_one_by_one() -> None:
    found = {}
    for stacked in (True, False):
        without, found[stacked] = fitted(None, stacked=stacked), fitted(audited(), stacked=stacked)
        assert [torch.equal(a, b) for a, b in zip(without, found[stacked])] == [False, True, True]
    start = initial(TASK, SHAPE, seed=0)[1]
    assert float((found[True] - found[False]).norm() / (found[True] - start).norm()) < 1e-5


def test_secret_noise_takes_canaries_too() -> None:
    steps = PlantedSteps(CLIP, 1e-6, 10.0, 40, Directions(3, SIZE, seed=3), iter([[1]]))
    added = -steps.release(torch.zeros(SIZE), SystemNoise()).double() * 10.0
    assert float((added - CLIP * direction(3, 1, SIZE)).norm()) < 1e-3 * CLIP


def test_changes_add_up_over_fits_and_committed_rounds_only(tmp_path: Path) -> None:
    store = PersonalStore(tmp_path, silos=3, sizes={CHANGE: SIZE})
    audit = Planted(1, [2], size=SIZE, seed=0, secret=False)
    zero, one = torch.zeros(SIZE), torch.ones(SIZE)

    def round_(fits: int) -> None:
        changes: dict[int, Tensor] = {}
        for _ in range(fits):
            audit.see(changes, [1, 2], one, torch.stack([one * 9, one * 4]))
        assert list(changes) == [2]
        audit.keep(changes, store)

    def kept() -> Tensor:
        return store.rows([2], stacked=False).get(CHANGE, zero)

    round_(2)
    assert torch.equal(kept(), zero)
    store.commit(1)
    assert torch.equal(kept(), 6 * one)
    round_(1)
    store.forget([2])  # Its update was refused, so no server saw it.
    store.commit(2)
    assert torch.equal(kept(), 6 * one)
    round_(1)
    store.recover(2)  # A crash before the checkpoint of round 3.
    round_(1)
    store.commit(3)
    assert torch.equal(kept(), 9 * one)
