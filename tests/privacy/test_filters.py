"""Budgets for releases whose noise and sampling are chosen after looking at earlier ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from privacy import gaussian, rdp
from privacy.accountant import epsilon, upper_bound
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.filters import FILTER, BudgetSpent, RenyiFilter, fixed, order_for, several
from privacy.terms import Unpriceable

DELTA = 1e-5
ROUND = Sampled(Poisson(0.01), Gaussian(1.0))
OTHER = Sampled(Poisson(0.01), Gaussian(1.5))


def test_the_allowance_is_the_divergence_that_converts_to_the_budget() -> None:
    """Canonne, Kamath & Steinke 2020, proposition 12, at one order, there and back."""
    for order in (1.5, 6.1, 32.0):
        kept = RenyiFilter(3.0, DELTA, order)
        found = kept.allowance + math.log1p(-1 / order) - (math.log(DELTA) + math.log(order)) / (order - 1)
        assert found == pytest.approx(3.0, rel=1e-12)


def test_it_affords_gaussians_until_their_divergence_is_the_allowance() -> None:
    """n releases of noise z have divergence n a / (2 z^2) at order a: Mironov 2017, corollary 3."""
    kept = RenyiFilter(3.0, DELTA, 6.1)
    most = math.floor(kept.allowance / (6.1 / (2 * 10.0**2)))
    assert kept.affords(Gaussian(10.0), most)
    assert not kept.affords(Gaussian(10.0), most + 1)
    for _ in range(most):
        kept.spend(Gaussian(10.0))
    assert kept.upper() <= 3.0
    with pytest.raises(BudgetSpent, match=r"would pass the budget of epsilon 3 at order 6\.1"):
        kept.spend(Gaussian(10.0))
    assert kept.spent == pytest.approx(most * 6.1 / 200)  # A refusal charges nothing.


def test_it_never_pays_less_than_the_accountant_which_knew_all_beforehand() -> None:
    kept = RenyiFilter(4.0, DELTA, order_for([ROUND], 4.0, DELTA))
    capped = Sampled(Capped(0.01, 60, 1000), Gaussian(1.0))
    for event, times in ((ROUND, 500), (OTHER, 500), (Gaussian(8.0), 1), (capped, 9)):
        kept.spend(event, times)
    everything = Composed((Repeated(ROUND, 500), Repeated(OTHER, 500), Gaussian(8.0)))
    assert epsilon(everything, DELTA).upper < kept.upper() <= 4.0


def test_it_prices_one_order_and_not_the_best_in_hindsight() -> None:
    event = Repeated(ROUND, 1000)
    every = [RenyiFilter(9.0, DELTA, float(order)) for order in rdp.ORDERS]
    for kept in every:
        kept.charge(event)
    assert min(kept.upper() for kept in every) == pytest.approx(rdp.epsilons(parts(event), DELTA, np.ones(1))[0])
    at_three = next(kept for kept in every if kept.order == 3.0)
    assert at_three.upper() > 1.5 * min(kept.upper() for kept in every)


def parts(event: Event) -> tuple[rdp.Part, ...]:
    from privacy.terms import history_of, upper_parts

    return upper_parts(history_of(event), "add_remove")


def test_an_adversary_who_chooses_noise_by_outcomes_stays_within_the_budget() -> None:
    """The exact delta of an adaptive game: after a first Gaussian, a second one whose noise depends on its outcome.

    One unit moves both by 1. The first has noise 1; if it came out above a threshold the second spends all that is
    left of the allowance, otherwise a tenth of it. The pair is told apart with the delta computed here by quadrature
    over the first outcome, of the exact hockey-stick divergence of the second at what is left of epsilon.
    """
    budget = 6.0
    kept = RenyiFilter(budget, DELTA, order_for([Gaussian(1.0)], budget, DELTA))
    kept.spend(Gaussian(1.0))
    left = kept.allowance - kept.spent
    loud = math.sqrt(kept.order / (2 * left))
    quiet = math.sqrt(kept.order / (2 * left / 10))
    assert kept.affords(Gaussian(loud * (1 + 1e-9)))
    x = np.linspace(-12.0, 13.0, 20_001)
    loss = x - 0.5  # log N(x; 1, 1) / N(x; 0, 1)
    for threshold in (-2.0, 0.0, 1.0, 3.0):
        noise = np.where(x > threshold, loud, quiet)
        beyond = budget - loss  # What the second loss must exceed.
        a, b = 0.5 / noise - beyond * noise, -0.5 / noise - beyond * noise
        second = norm.cdf(a) - np.exp(beyond + norm.logcdf(b))
        assert float(np.trapezoid(norm.pdf(x, 1.0, 1.0) * second, x)) <= DELTA


def test_the_order_serves_the_rounds_that_it_was_chosen_for() -> None:
    """At the order that is best for Gaussians, sampled rounds of little noise last 13 times instead of 881."""
    kept = {name: RenyiFilter(2.0, DELTA, order_for([event], 2.0, DELTA)) for name, event in
            (("gaussian", Gaussian(10.0)), ("sampled", ROUND))}  # fmt: skip
    assert not kept["gaussian"].affords(ROUND, 100)
    assert kept["sampled"].affords(ROUND, 800)
    assert order_for([ROUND], 2.0, DELTA) == 7.9


def test_a_budget_that_no_round_fits_affords_none() -> None:
    kept = RenyiFilter(0.001, DELTA, order_for([ROUND], 0.001, DELTA))
    assert not kept.affords(ROUND)
    assert kept.affords(ROUND, 0) == (kept.allowance >= 0)


@pytest.mark.parametrize("event", [NonPrivate("all"), Composed((ROUND, NonPrivate())), Gaussian(1e-9)])
def test_what_has_no_guarantee_is_never_affordable(event: Event) -> None:
    kept = RenyiFilter(1e6, DELTA, 6.1)
    assert not kept.affords(event)
    with pytest.raises(BudgetSpent):
        kept.spend(event)
    assert kept.spent == 0
    found = several({event: 1, ROUND: 1}, runs=("a", "b"), first=[ROUND], budget=9.0, delta=DELTA)
    assert found == (math.inf, "none")


def test_what_has_no_price_is_refused_in_one_line() -> None:
    kept = RenyiFilter(3.0, DELTA, 6.1)
    with pytest.raises(Unpriceable, match="use neighbours: replace"):
        kept.affords(Sampled(FixedSize(1, 10), Gaussian(1.0)))
    with pytest.raises(ValueError, match=r"got 6\.12"):
        RenyiFilter(3.0, DELTA, 6.12)
    for budget, delta in ((math.nan, DELTA), (3.0, math.nan), (-1.0, DELTA), (3.0, 1.0)):
        with pytest.raises(ValueError, match="must be"):
            RenyiFilter(budget, delta, 6.1)


# Which rule applies.


def test_one_run_costs_what_the_accountant_says() -> None:
    spent = {Gaussian(9.0): 1, ROUND: 100}
    history = Composed((Gaussian(9.0), Repeated(ROUND, 100)))
    found = several(spent, runs=("a",), first=list(spent), budget=3.0, delta=DELTA)
    assert found == upper_bound(history, DELTA)
    assert found[1] == "PLD"


def test_runs_of_one_kind_of_round_and_gaussians_cost_what_the_accountant_says() -> None:
    found = several({ROUND: 700}, runs=("a", "b"), first=[ROUND], budget=3.0, delta=DELTA)
    assert found == upper_bound(Repeated(ROUND, 700), DELTA)
    gaussians: dict[Event, int] = {Gaussian(3.0): 1, Gaussian(4.0): 1}  # Together noise 2.4.
    exact, method = several(gaussians, runs=("a", "b"), first=[Gaussian(3.0)], budget=3.0, delta=DELTA)
    assert (exact, method) == (pytest.approx(gaussian.epsilon(2.4, DELTA)), "exact")
    assert fixed([ROUND])
    assert fixed([Gaussian(3.0), Gaussian(4.0)])
    assert not fixed([ROUND, Gaussian(4.0)])
    assert not fixed([ROUND, OTHER])


def test_runs_that_differ_are_charged_by_the_filter_of_the_first_run() -> None:
    spent: dict[Event, int] = {ROUND: 500, OTHER: 200}
    found, method = several(spent, runs=("a", "b"), first=[ROUND], budget=3.0, delta=DELTA)
    kept = RenyiFilter(3.0, DELTA, order_for([ROUND], 3.0, DELTA))
    kept.spend(OTHER, 200)
    kept.spend(ROUND, 500)
    assert method == FILTER
    assert found == pytest.approx(kept.upper(), rel=1e-12)
    assert found > upper_bound(Composed((Repeated(ROUND, 500), Repeated(OTHER, 200))), DELTA)[0]
    assert found == several(dict(reversed(spent.items())), runs=("b", "a"), first=[ROUND], budget=3.0, delta=DELTA)[0]
