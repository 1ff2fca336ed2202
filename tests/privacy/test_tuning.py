"""The price of the best of a random number of runs: closed forms, and against mechanisms small enough to compute."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from privacy import accountant, rdp, tuning
from privacy.events import Composed, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.rdp import ORDERS
from privacy.terms import Unpriceable
from privacy.tuning import PoissonRuns, TruncatedNegativeBinomial, mixture

ETAS = (-0.5, 0.0, 0.5, 1.0, 3.0)
LAWS = [TruncatedNegativeBinomial.with_mean(mean, eta=eta) for eta in ETAS for mean in (1.5, 10.0, 60.0)]
LAWS += [PoissonRuns(mean) for mean in (1.5, 10.0, 60.0)]
RUN = Repeated(Sampled(Poisson(0.01), Gaussian(1.0)), 1000)  # Epsilon 1.83 at delta 1e-5.


def test_gamma_at_eta_1_and_mean_10_is_a_tenth_exactly():
    assert TruncatedNegativeBinomial.with_mean(10, eta=1).gamma == 0.1


def probabilities(law, count):
    """P[K = k] for k = 0 ... count - 1, from definition 1 with its product spelt out by gamma functions."""
    if isinstance(law, PoissonRuns):
        return np.exp([k * math.log(law.mean) - law.mean - math.lgamma(k + 1) for k in range(count)])
    found = [0.0]
    for k in range(1, count):
        if law.eta == 0:
            found.append((1 - law.gamma) ** k / (k * math.log(1 / law.gamma)))
        else:  # The product of (l + eta) / (l + 1) over l < k; its first factor carries the sign of eta.
            rest = math.lgamma(k + law.eta) - math.lgamma(1 + law.eta) - math.lgamma(k + 1)
            found.append((1 - law.gamma) ** k * law.eta * math.exp(rest) / (law.gamma**-law.eta - 1))
    return np.array(found)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_law_sums_to_1_has_its_mean_and_is_what_is_drawn(law):
    chances = probabilities(law, 200_000 if getattr(law, "eta", 1) < 0 else 20_000)
    assert chances.sum() == pytest.approx(1, abs=1e-9)
    assert (chances * np.arange(len(chances))).sum() == pytest.approx(law.mean, rel=1e-6)
    below = np.cumsum(chances)
    for uniform in (0.0, 1e-4, 0.2, 0.5, 0.77, 0.99):  # Inversion: the first k whose cumulated chance is above it.
        assert law.draw(uniform) == int(np.searchsorted(below, uniform, side="right"))


@pytest.mark.parametrize("mean", [1.001, 2, 10, 37.5, 499.0])
@pytest.mark.parametrize("eta", ETAS)
def test_gamma_is_solved_from_the_mean(mean, eta):
    assert TruncatedNegativeBinomial.with_mean(mean, eta=eta).mean == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("eta", ETAS)
def test_pure_privacy_costs_2_plus_eta_times_a_run(eta):
    # Corollary 4, from theorem 2 with both orders to infinity; at the highest order here the rest is below 0.01.
    law = TruncatedNegativeBinomial.with_mean(10, eta=eta)
    pure = np.full(len(ORDERS), 0.7)
    top = law.curve(pure)[-1]
    assert (2 + eta) * 0.7 == pytest.approx(top, abs=0.02)


@pytest.mark.parametrize("rho", [0.001, 0.1, 5.0])
def test_a_concentrated_run_costs_its_closed_form(rho):
    # With divergence rho * a the free order is sqrt(log(1/gamma) / rho), or 1 where that is smaller.
    law = TruncatedNegativeBinomial.with_mean(10)
    wide = math.log(10)
    free = 2 * math.sqrt(rho * wide) - rho if wide > rho else wide
    expected = rho * ORDERS + 2 * free + math.log(10) / (ORDERS - 1)
    found = law.curve(rho * ORDERS)
    assert np.all(found >= expected * (1 - 1e-12))
    assert found == pytest.approx(expected, rel=5e-3)  # A grid of orders, not all of them.


def exact(law, chances):
    """The distribution of the best of K draws from `chances` (worst first), with K = 0 as an outcome of its own."""
    if isinstance(law, PoissonRuns):
        return np.diff(np.exp(law.mean * (np.concatenate([[0.0], np.cumsum(chances)]) - 1)), prepend=0.0)
    below = np.concatenate([[0.0], np.cumsum(chances)])
    if law.eta == 0:
        return np.diff(np.log1p(-(1 - law.gamma) * below) / math.log(law.gamma))
    return np.diff(((1 - (1 - law.gamma) * below) ** -law.eta - 1) / (law.gamma**-law.eta - 1))


def divergence(p, q, order):
    return float(special.logsumexp(order * np.log(p) + (1 - order) * np.log(q)) / (order - 1))


@settings(max_examples=100)
@given(
    law=st.sampled_from(LAWS),
    first=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
    second=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
)
def test_the_price_bounds_every_selection_small_enough_to_compute(law, first, second):
    p, q = np.array(first) / sum(first), np.array(second) / sum(second)
    one = np.array([max(divergence(p, q, a), divergence(q, p, a)) for a in ORDERS[ORDERS <= 64]])
    # Above order 64 the powers lose digits; the largest log ratio bounds every order.
    high = np.full(int((ORDERS > 64).sum()), np.abs(np.log(p / q)).max())
    bound = law.curve(np.concatenate([one, high]))
    best_p, best_q = exact(law, p), exact(law, q)
    for index in (0, 9, 20, 50, 100, 130):
        order = ORDERS[index]
        truth = max(divergence(best_p, best_q, order), divergence(best_q, best_p, order))
        assert truth <= bound[index] + 1e-9


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("event", [Gaussian(0.7), Gaussian(30.0), RUN, Composed((Gaussian(9.0), RUN))])
def test_a_selection_never_costs_less_than_a_run(law, event):
    for delta in (1e-3, 1e-6, 1e-9):
        assert tuning.epsilon([event], law, delta) >= accountant.epsilon(event, delta).upper


def test_more_runs_cost_more_and_more_noise_less():
    for kind in (TruncatedNegativeBinomial.with_mean, PoissonRuns):
        prices = [tuning.epsilon([RUN], kind(mean), 1e-5) for mean in (1.1, 2, 5, 10, 50, 200)]
        assert prices == sorted(prices)
        assert prices[0] < prices[-1]
        noises = [tuning.epsilon([Gaussian(noise)], kind(10), 1e-5) for noise in (0.5, 1.0, 4.0, 20.0)]
        assert noises == sorted(noises, reverse=True)
    heavier = [tuning.epsilon([RUN], TruncatedNegativeBinomial.with_mean(10, eta=eta), 1e-5) for eta in ETAS]
    assert heavier == sorted(heavier)


def test_ten_runs_for_the_best_of_them_are_far_cheaper_than_ten_runs():
    ten = accountant.epsilon(Repeated(RUN, 10), 1e-5).upper
    assert tuning.epsilon([RUN], TruncatedNegativeBinomial.with_mean(10), 1e-5) < 0.75 * ten


def test_a_grid_of_prices_costs_at_most_its_dearest_and_at_least_its_mean_moment():
    cheap, dear = rdp.moments(()), 0.3 * ORDERS
    whole = mixture([cheap, dear])
    assert np.all(whole <= dear)
    assert np.exp((ORDERS[:20] - 1) * whole[:20]) == pytest.approx((1 + np.exp((ORDERS[:20] - 1) * dear[:20])) / 2)
    assert mixture([dear, dear]) == pytest.approx(dear)
    assert np.all(np.isinf(mixture([cheap, np.full(len(ORDERS), np.inf)])))
    alone, with_cheap = (tuning.epsilon(grid, PoissonRuns(5), 1e-5) for grid in ([RUN], [RUN, Gaussian(50.0)]))
    assert with_cheap <= alone


@pytest.mark.parametrize("law", [LAWS[10], LAWS[-1]], ids=str)
def test_what_has_no_price_is_infinite_or_refused(law):
    assert tuning.epsilon([RUN, NonPrivate("metrics")], law, 1e-5) == math.inf
    assert tuning.epsilon([Gaussian(1e-9)], law, 1e-5) == math.inf
    with pytest.raises(Unpriceable, match="neighbours: replace"):
        tuning.epsilon([Sampled(FixedSize(1, 10), Gaussian(1.0))], law, 1e-5)
    one = tuning.epsilon([Gaussian(8.0)], law, 1e-5)
    assert tuning.epsilon([Gaussian(8.0)], law, 1e-5, neighbours="replace") > one
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            tuning.epsilon([RUN], law, delta)
    with pytest.raises(ValueError, match="settings"):
        tuning.epsilon([], law, 1e-5)


@pytest.mark.parametrize("mean", [1.0, 0.5, 0.0, -3.0, 501.0, math.nan, math.inf])
def test_a_mean_that_cannot_be_is_refused(mean):
    for kind in (PoissonRuns, TruncatedNegativeBinomial.with_mean):
        with pytest.raises(ValueError, match="mean must be"):
            kind(mean)


@pytest.mark.parametrize("eta", [-1.0, -2.0, math.nan, math.inf])
def test_an_eta_that_cannot_be_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be > -1"):
        TruncatedNegativeBinomial.with_mean(10, eta=eta)
