"""When canaries take part: at the silos' rate by coins of their own, or exactly so many times."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.participation import Coins, Spread
from server.sampler import PoissonCohort


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_coins_are_of_the_rate_of_the_silos(rate: float) -> None:
    coins = Coins(400, rate, 5)
    assert coins.expected == 400 * rate
    count = sum(len(coins.drawn(round_)) for round_ in range(1, 101))
    law = stats.binom(40_000, rate)  # False alarm at most 1e-6, over seeds.
    assert law.cdf(count) > 5e-7
    assert law.sf(count - 1) > 5e-7


def test_a_canary_is_drawn_by_a_coin_of_its_own() -> None:
    coins, sampler = Coins(400, 0.5, 5), PoissonCohort(0.5, 400)
    drawn, again = coins.drawn(1), coins.drawn(2)
    assert drawn == coins.drawn(1) == sorted(set(drawn))
    assert drawn != again
    assert drawn != sampler.draw(5, 1)  # Else canary k would be in exactly the rounds of silo k.
    assert Coins(401, 0.5, 5).drawn(1)[: len(drawn)] == drawn


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 40))
def test_on_a_schedule_every_canary_takes_part_exactly_so_often_and_evenly(
    canaries: int, repeats: int, more: int
) -> None:
    spread = Spread(canaries, repeats, repeats + more)
    rounds = [spread.drawn(round_) for round_ in range(1, spread.rounds + 1)]
    assert all(drawn == sorted(set(drawn)) for drawn in rounds)
    assert Counter(canary for drawn in rounds for canary in drawn) == dict.fromkeys(range(canaries), repeats)
    sizes = [len(drawn) for drawn in rounds]
    assert max(sizes) - min(sizes) <= 1
    assert spread.expected == pytest.approx(sum(sizes) / spread.rounds)
    for canary in range(canaries):  # A canary's turns are rounds / repeats apart, give or take the rounding.
        turns = [number for number, drawn in enumerate(rounds) if canary in drawn]
        assert all(abs(later - turn - spread.rounds / repeats) < 1 for turn, later in pairwise(turns))


@pytest.mark.parametrize("repeats", [0, 11])
def test_more_turns_than_rounds_are_refused(repeats: int) -> None:
    with pytest.raises(ValueError, match="repeats must be between 1 and the 10 rounds"):
        Spread(5, repeats, 10)
