"""Poisson cohorts with a cap: the chances, the price against two independent computations, and what fits."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from privacy import rdp
from privacy.accountant import Neighbours, Unpriceable, epsilon
from privacy.capped import crowding
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, Poisson, Repeated, Sampled
from privacy.terms import history_of, upper_parts

DELTA = 1e-5
LOSS = 0.3


def rounds(cap: int, times: int = 1000, *, rate: float = 0.01, noise: float = 1.0, population: int = 1000) -> Event:
    return Repeated(Sampled(Capped(rate, cap, population), Gaussian(noise)), times)


def uncapped(times: int = 1000) -> Event:
    return Repeated(Sampled(Poisson(0.01), Gaussian(1.0)), times)


# The chances.


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("cap", [1, 2, 3])
def test_the_chances_are_those_of_all_outcomes_of_five_coins(rate: float, cap: int) -> None:
    spill = kept = taken = 0.0
    for coins in product([False, True], repeat=5):  # The first is the unit's own.
        chance = math.prod(rate if coin else 1 - rate for coin in coins)
        stays = min(1.0, cap / sum(coins)) if coins[0] else 0.0
        taken += chance * stays
        if sum(coins[1:]) >= cap:
            spill += chance
            kept += chance * stays
    found = crowding(Capped(rate, cap, 5))
    assert (found.spill, found.kept, found.rate) == pytest.approx((spill, kept / spill, taken), rel=1e-12)


@given(st.floats(1e-6, 1.0), st.integers(1, 60), st.integers(1, 60))
def test_the_cohorts_that_are_expected_are_those_of_a_cut_binomial(rate: float, cap: int, population: int) -> None:
    sizes = np.arange(population + 1)
    expected = float((binom.pmf(sizes, population, rate) * np.minimum(sizes, cap)).sum())
    found = crowding(Capped(rate, cap, population))
    assert found.rate * population == pytest.approx(expected, rel=1e-9)
    assert 0 <= found.kept <= rate
    assert 0 <= found.spill <= 1


def test_tails_beyond_double_precision_are_charged_as_the_whole_rate() -> None:
    found = crowding(Capped(1e-5, 60, 63))  # The chance of 60 of 62 coins is near 1e-300, of 61 of 63 below 1e-304.
    assert 0 <= found.kept <= found.rate <= 1e-5
    assert crowding(Capped(0.5, 1, 10**6)).spill == 1.0
    bracket = epsilon(Sampled(Capped(0.5, 1, 10**6), Gaussian(1.0)), DELTA)
    assert 0 <= bracket.lower <= bracket.upper < 4.378  # The price of being in for sure, with the sum moved once.


# The price.


@pytest.mark.parametrize(("cap", "truth"), [(20, 3.83), (15, 6.18)])
def test_the_known_prices_of_a_cap_are_met_from_above(cap: int, truth: float) -> None:
    found = epsilon(rounds(cap), DELTA)
    assert found.method == "PLD"
    assert truth - 0.005 <= found.upper <= 1.01 * truth  # The known values are rounded to 0.01.
    assert 0 < found.lower <= found.upper
    assert "the range is wide" in found.note


@pytest.mark.parametrize("neighbours", ["add_remove", "replace"])
@pytest.mark.parametrize("cap", [5, 20, 30])
def test_the_price_is_that_of_dp_accountings_own_event(cap: int, neighbours: Neighbours) -> None:
    of = dp_accounting.NeighboringRelation
    library = dp_accounting.pld.PLDAccountant(
        of.REPLACE_ONE if neighbours == "replace" else of.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    library.compose(dp_accounting.TruncatedSubsampledGaussianDpEvent(300, 0.03, cap, 1.5), 200)
    found = epsilon(rounds(cap, 200, rate=0.03, noise=1.5, population=300), DELTA, neighbours=neighbours)
    assert found.upper == pytest.approx(library.get_epsilon(DELTA), rel=0.01)


def neighbours_on_a_line(cap: int, others: float, unit: float, instead: float | None, *, rate: float, n: int) -> float:
    """delta at `LOSS` of one round, noise 1: all others send `others`, the unit `unit`, or `instead`, or is absent."""
    x = np.linspace(-20, 20, 80_001)
    densities = []
    for sends in (unit, instead):
        density = np.zeros_like(x)
        for drawn, present in product(range(n), (False, True) if sends is not None else (None,)):
            chance = binom.pmf(drawn, n - 1, rate)
            if not present:  # Not drawn, or not there at all.
                chance *= 1.0 if present is None else 1 - rate
                density += chance * norm.pdf(x, min(drawn, cap) * others)
                continue
            stays = min(1.0, cap / (drawn + 1))
            density += chance * rate * (1 - stays) * norm.pdf(x, min(drawn, cap) * others)
            density += chance * rate * stays * norm.pdf(x, min(drawn, cap - 1) * others + sends)
        densities.append(density)
    one, other = densities
    return max(float(np.trapezoid(np.maximum(p - math.exp(LOSS) * q, 0), x)) for p, q in ((one, other), (other, one)))


PAIRS: list[tuple[Neighbours, float, float | None]] = [
    ("add_remove", 1.0, None),
    ("zero_out", 1.0, 0.0),
    ("replace", 1.0, -1.0),
]


@pytest.mark.parametrize(("neighbours", "unit", "instead"), PAIRS)
@pytest.mark.parametrize("others", [-1.0, -0.5, 0.0, 0.5])
@pytest.mark.parametrize("cap", [1, 2])
def test_no_pair_of_neighbours_on_a_line_costs_more_than_the_price(
    cap: int, others: float, neighbours: Neighbours, unit: float, instead: float | None
) -> None:
    """At the delta that a pair has at epsilon `LOSS`, the price is at least that; quadrature errs by less than 1e-6."""
    delta = neighbours_on_a_line(cap, others, unit, instead, rate=0.5, n=4)
    event = Sampled(Capped(0.5, cap, 4), Gaussian(1.0))
    assert epsilon(event, delta * (1 - 1e-4), neighbours=neighbours).upper >= LOSS
    if others == 0:  # The pair of the lower end.
        assert epsilon(event, delta * (1 + 1e-4), neighbours=neighbours).lower <= LOSS


def test_without_the_cap_in_the_price_a_pair_would_cost_more_than_was_said() -> None:
    delta = neighbours_on_a_line(3, -1.0, 1.0, None, rate=0.1, n=100)  # 99 coins of .1 reach 3 with probability .998.
    assert epsilon(Sampled(Poisson(0.1), Gaussian(1.0)), delta).upper < 0.9 * LOSS
    assert epsilon(Sampled(Capped(0.1, 3, 100), Gaussian(1.0)), delta).upper > LOSS


@pytest.mark.parametrize("neighbours", ["add_remove", "replace"])
def test_the_renyi_bound_holds_and_is_never_below_the_distribution(neighbours: Neighbours) -> None:
    event = rounds(20)
    bound = rdp.epsilon(upper_parts(history_of(event), neighbours), DELTA)
    assert epsilon(event, DELTA, neighbours=neighbours).upper <= bound < math.inf


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 40), st.floats(0.01, 0.9), st.floats(0.6, 4.0))
def test_a_cap_never_costs_less_than_the_sample_that_the_unit_then_is_in(cap: int, rate: float, noise: float) -> None:
    event = Sampled(Capped(rate, cap, 41), Gaussian(noise))
    found = epsilon(event, DELTA)
    alone = epsilon(Sampled(Poisson(crowding(Capped(rate, cap, 41)).rate), Gaussian(noise)), DELTA)
    assert found.lower <= alone.upper * (1 + 1e-9)
    assert found.upper >= alone.lower * (1 - 1e-9)


# What it comes down to.


def test_a_cap_out_of_reach_is_none() -> None:
    for cap in (1000, 5000):
        assert epsilon(rounds(cap), DELTA) == epsilon(uncapped(), DELTA)
    everybody = epsilon(Sampled(Capped(1.0, 8, 8), Gaussian(1.0)), DELTA)
    assert everybody == epsilon(Gaussian(1.0), DELTA)


def test_a_cap_that_is_hardly_ever_reached_costs_hardly_anything() -> None:
    assert epsilon(rounds(60), DELTA).upper == pytest.approx(epsilon(uncapped(), DELTA).upper, rel=1e-6)


def test_at_rate_one_it_is_a_sample_of_fixed_size_with_its_price_and_its_refusal() -> None:
    everyone = Sampled(Capped(1.0, 10, 1000), Gaussian(1.0))
    fixed = Sampled(FixedSize(10, 1000), Gaussian(1.0))
    assert epsilon(everyone, DELTA, neighbours="replace") == epsilon(fixed, DELTA, neighbours="replace")
    with pytest.raises(Unpriceable, match="fixed-size cohorts have no add/remove price; use neighbours: replace"):
        epsilon(everyone, DELTA)


def test_zeroing_out_is_charged_as_removing_and_replacing_costs_more() -> None:
    removed = epsilon(rounds(15), DELTA)
    assert epsilon(rounds(15), DELTA, neighbours="zero_out") == replace(removed, neighbours="zero_out")
    assert epsilon(rounds(15), DELTA, neighbours="replace").upper > removed.upper


def test_channels_on_one_capped_sample_are_one_gaussian() -> None:
    sampler = Capped(0.01, 15, 1000)
    both = Sampled(sampler, Composed((Gaussian(3.0), Gaussian(4.0))))
    assert epsilon(both, DELTA).upper == pytest.approx(epsilon(Sampled(sampler, Gaussian(2.4)), DELTA).upper, rel=1e-9)


def test_it_composes_with_everything_else_under_replace() -> None:
    parts = (rounds(20, 10), uncapped(10), Gaussian(20.0), Sampled(FixedSize(10, 1000), Gaussian(4.0)))
    alone = [epsilon(part, DELTA, neighbours="replace") for part in parts]
    both = epsilon(Composed(parts[:3]), DELTA, neighbours="replace")
    assert both.method == "PLD"
    assert max(one.lower for one in alone[:3]) <= both.upper <= sum(one.upper for one in alone[:3])
    everything = epsilon(Composed(parts), DELTA, neighbours="replace")
    assert everything.method == "RDP"  # A sample of fixed size has no other price.
    assert everything.upper >= both.lower
