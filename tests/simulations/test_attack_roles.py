"""Who is malicious: how many, since when, and the same whatever is asked around it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from simulations.attacks.roles import Roles
from strategies.attacks import Attack, SignFlip

SILOS, ROUNDS = 200, 20


def roles(*attacks: Attack, seed: int = 0) -> Roles:
    return Roles(attacks, seed=seed, silos=SILOS, rounds=ROUNDS)


def flip(fraction: float, **keys: Any) -> SignFlip:
    return SignFlip(fraction=fraction, **keys)


ALL = list(range(SILOS))


def test_fixed_is_an_exact_part_of_all_silos_in_every_round() -> None:
    found = roles(flip(0.15))
    first = found.acting(1, ALL)
    assert len(first) == 30
    assert all(found.acting(round_, ALL).keys() == first.keys() for round_ in range(2, ROUNDS + 1))
    cohort = ALL[50:120]
    assert list(found.acting(3, cohort)) == [silo for silo in cohort if silo in first]
    assert sorted(first) == found.pool(found.attacks[0])


@pytest.mark.parametrize(("asked", "malicious"), [(10, 2), (13, 2), (50, 8), (3, 0), (0, 0)])
def test_exact_is_an_exact_part_of_each_cohort(asked: int, malicious: int) -> None:
    found = roles(flip(0.15, draw="exact"))
    for start in (0, 40, 77):
        assert len(found.acting(1, ALL[start : start + asked])) == malicious


def test_binomial_is_a_coin_for_each_silo_and_round() -> None:
    """4,000 coins of chance .15: 600 +- 22.6; six deviations off has chance 2e-9."""
    found = roles(flip(0.15, draw="binomial"))
    rounds = [found.acting(round_, ALL) for round_ in range(1, ROUNDS + 1)]
    coins = SILOS * ROUNDS
    assert abs(sum(map(len, rounds)) - 0.15 * coins) <= 6 * math.sqrt(coins * 0.15 * 0.85)
    assert len({tuple(each) for each in rounds}) == ROUNDS
    assert found.acting(5, ALL[:30]) == {silo: acts for silo, acts in rounds[4].items() if silo < 30}


@pytest.mark.parametrize("draw", ["fixed", "exact", "binomial"])
def test_a_crew_starts_late_grows_to_its_end_and_keeps_whom_it_has(draw: Any) -> None:
    found = roles(flip(0.1, until=0.3, start=6, draw=draw))
    crews = [found.acting(round_, ALL) for round_ in range(1, ROUNDS + 1)]
    assert not any(crews[:5])
    assert [round(found.fraction(found.attacks[0], round_), 9) for round_ in (5, 6, 13, 20)] == [0.0, 0.1, 0.2, 0.3]
    if draw != "binomial":
        assert [len(crews[round_ - 1]) for round_ in (6, 13, 20)] == [20, 40, 60]
        assert all(set(before) <= set(after) for before, after in pairwise(crews))


@pytest.mark.parametrize("draw", ["fixed", "exact", "binomial"])
def test_attacks_of_one_crew_share_silos_and_crews_do_not_meet(draw: Any) -> None:
    found = roles(
        flip(0.1, draw=draw), flip(0.25, draw=draw), flip(0.3, draw=draw, crew=1), flip(0.1, draw=draw, crew=1)
    )
    acts = set(found.acting(4, ALL).values())
    assert acts == {(0, 1), (1,), (2, 3), (2,)}
    if draw != "binomial":
        made = list(found.acting(4, ALL).values())
        assert [sum(at in each for each in made) for at in range(4)] == [20, 50, 60, 20]


def test_another_seed_names_others() -> None:
    assert roles(flip(0.15)).acting(1, ALL).keys() != roles(flip(0.15), seed=1).acting(1, ALL).keys()
