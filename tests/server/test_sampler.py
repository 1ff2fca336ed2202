from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.capped import crowding
from privacy.events import Capped, FixedSize, Gaussian, Poisson, Sampled
from server.sampler import CappedCohort, FixedCohort, FullCohort, PoissonCohort

FALSE_ALARM = 1e-6  # Chance, over seeds, that a right sampler fails one of the statistical tests below.
SILOS, ROUNDS, RATE = 200, 4000, 0.25
GAUSSIAN = Gaussian(1.5)


@pytest.fixture(scope="module")
def joined() -> np.ndarray:
    """Who took part: `(rounds, silos)` booleans."""
    sampler = PoissonCohort(RATE, SILOS)
    table = np.zeros((ROUNDS, SILOS), dtype=bool)
    for round_ in range(ROUNDS):
        table[round_, sampler.draw(7, round_ + 1)] = True
    return table


def within(count: int, trials: int, probability: float, *, alarms: float) -> bool:
    """Whether a binomial count is one of those that come up but for a chance of `alarms`."""
    law = stats.binom(trials, probability)
    return bool(min(law.cdf(count), law.sf(count - 1)) > alarms / 2)


def test_poisson_asks_at_the_rate_that_is_accounted(joined: np.ndarray) -> None:
    assert within(int(joined.sum()), joined.size, RATE, alarms=FALSE_ALARM)


def test_poisson_asks_every_silo_at_that_rate(joined: np.ndarray) -> None:
    for count in joined.sum(axis=0).tolist():
        assert within(count, ROUNDS, RATE, alarms=FALSE_ALARM / SILOS)


def test_poisson_coins_of_two_silos_and_of_two_rounds_are_independent(joined: np.ndarray) -> None:
    silos = joined[:, 0::2] & joined[:, 1::2]
    rounds = joined[0::2] & joined[1::2]
    for pairs in (silos, rounds):
        assert within(int(pairs.sum()), pairs.size, RATE**2, alarms=FALSE_ALARM / 2)


def test_a_poisson_cohort_has_a_binomial_size(joined: np.ndarray) -> None:
    # The sample variance of n binomial sizes: (n - 1) s^2 / sigma^2 is chi-squared to within its normal approximation.
    sizes = joined.sum(axis=1)
    ratio = (ROUNDS - 1) * sizes.var(ddof=1) / (SILOS * RATE * (1 - RATE))
    law = stats.chi2(ROUNDS - 1)
    assert law.ppf(FALSE_ALARM / 2) < ratio < law.isf(FALSE_ALARM / 2)


def test_fixed_cohorts_ask_every_silo_equally_often() -> None:
    sampler, counts = FixedCohort(5, 20), np.zeros(20, dtype=int)
    for round_ in range(1, 2001):
        counts[sampler.draw(3, round_)] += 1
    for count in counts.tolist():  # A silo is in a cohort with probability 5 / 20, independently each round.
        assert within(count, 2000, 5 / 20, alarms=FALSE_ALARM / 20)


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.integers(1, 60), st.data())
def test_a_fixed_cohort_holds_exactly_its_size_of_different_silos(
    seed: int, round_: int, population: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, population))
    cohort = FixedCohort(size, population).draw(seed, round_)
    assert len(cohort) == size == FixedCohort(size, population).expected
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= set(range(population))


@given(st.integers(0, 2**63 - 1), st.integers(1, 10**6), st.floats(1e-3, 1.0), st.integers(1, 60))
def test_a_poisson_cohort_is_in_rising_order_and_a_pure_function(
    seed: int, round_: int, rate: float, population: int
) -> None:
    sampler = PoissonCohort(rate, population)
    cohort = sampler.draw(seed, round_)
    assert cohort == sorted(set(cohort)) == sampler.draw(seed, round_)
    assert set(cohort) <= set(range(population))
    assert sampler.expected == rate * population
    # A coin is the silo's own: it falls the same whoever else there is.
    assert PoissonCohort(rate, population + 1).draw(seed, round_)[: len(cohort)] == cohort


def test_a_cap_keeps_a_uniformly_random_choice_of_those_drawn() -> None:
    # 20 silos at rate 1/4 and a cap of 4: about 3 rounds of 5 draw too many.
    sampler, free, rounds = CappedCohort(0.25, 4, 20), PoissonCohort(0.25, 20), 4000
    counts, kept, full = np.zeros(20, dtype=int), np.zeros(20, dtype=int), 0
    for round_ in range(1, rounds + 1):
        cohort, drawn = sampler.draw(5, round_), free.draw(5, round_)
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(drawn)
        assert len(cohort) == min(4, len(drawn))
        counts[cohort] += 1
        if len(drawn) == 6:
            full += 1
            kept[np.array(drawn)[[silo in cohort for silo in drawn]]] += 1
    chance = crowding(Capped(0.25, 4, 20)).rate
    assert sampler.expected == pytest.approx(20 * chance)
    for count in counts.tolist():
        assert within(count, rounds, chance, alarms=FALSE_ALARM / 40)
    assert kept.sum() == 4 * full
    for count in kept.tolist():  # Of the 6 drawn 4 are kept, and each silo is one of the 6 with chance 6 / 20.
        assert within(count, full, 4 / 20, alarms=FALSE_ALARM / 40)


def test_secret_cohorts_follow_the_law_that_is_accounted() -> None:
    rounds = 2000
    poisson, fixed = np.zeros(SILOS, dtype=int), np.zeros(20, dtype=int)
    for _ in range(rounds):
        poisson[PoissonCohort(RATE, SILOS).draw_secretly()] += 1
        cohort = FixedCohort(5, 20).draw_secretly()
        assert cohort == sorted(set(cohort))
        assert len(cohort) == 5
        fixed[cohort] += 1
    for count in poisson.tolist():
        assert within(count, rounds, RATE, alarms=FALSE_ALARM / (SILOS + 20))
    for count in fixed.tolist():
        assert within(count, rounds, 5 / 20, alarms=FALSE_ALARM / (SILOS + 20))


def test_secret_cohorts_come_from_the_operating_system_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for sampler in (PoissonCohort(0.5, 64), FixedCohort(32, 64), CappedCohort(0.9, 32, 64)):
        # Two of 120 pairs agree with probability below 120 * 2^-59: there are 2^60.7 cohorts of 32 of 64.
        assert len({tuple(sampler.draw_secretly()) for _ in range(16)}) == 16
    assert FullCohort(8).draw_secretly() == PoissonCohort(1.0, 8).draw_secretly() == list(range(8))
    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", lambda size: asked.append(size) or bytes(size))
    assert PoissonCohort(0.5, 64).draw_secretly() == PoissonCohort(0.5, 64).draw_secretly()
    assert asked == [8 * 64, 8 * 64]  # 64 bits a silo, and nothing else is drawn from.


def test_rounds_and_seeds_draw_anew() -> None:
    for sampler in (PoissonCohort(0.5, 64), FixedCohort(32, 64)):
        cohorts = {tuple(sampler.draw(seed, round_)) for seed in range(4) for round_ in range(1, 5)}
        assert len(cohorts) == 16  # Two of 120 pairs agree with probability below 120 * 2^-43.


def test_the_event_is_that_of_the_draw() -> None:
    assert PoissonCohort(0.25, 8).event(GAUSSIAN) == Sampled(Poisson(0.25), GAUSSIAN)
    assert FixedCohort(2, 8).event(GAUSSIAN) == Sampled(FixedSize(2, 8), GAUSSIAN)
    assert CappedCohort(0.25, 2, 8).event(GAUSSIAN) == Sampled(Capped(0.25, 2, 8), GAUSSIAN)


def test_who_is_always_asked_is_not_amplified() -> None:
    for sampler in (PoissonCohort(1.0, 8), FullCohort(8)):
        assert sampler.event(GAUSSIAN) == GAUSSIAN
        assert sampler.draw(0, 1) == list(range(8))
        assert sampler.expected == 8.0
    assert FixedCohort(8, 8).draw(0, 1) == list(range(8))


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    for build in (lambda: PoissonCohort(rate, 8), lambda: CappedCohort(rate, 2, 8)):
        with pytest.raises(ValueError, match="rate"):
            build()


def test_a_cap_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cohort.cap: must be >= 1, got 0"):
        CappedCohort(0.5, 0, 8)


@pytest.mark.parametrize("size", [-1, 0, 9])
def test_a_size_beyond_the_population_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"cohort.size: {size} of 8 silos; give 1 to 8"):
        FixedCohort(size, 8)
