import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privacy import gaussian, pld, rdp
from privacy.accountant import Bracket, Spend, Unpriceable, epsilon, epsilon_curve, noise_multiplier_for
from privacy.events import Capped, Composed, FixedSize, Gaussian, NonPrivate, Poisson, Repeated, Sampled
from privacy.terms import Part, history_of, merged, upper_parts

DELTA = 1e-5
UNIT = Gaussian(1.0)


def poisson(rate, noise, times=1):
    return Repeated(Sampled(Poisson(rate), Gaussian(noise)), times)


def hockey_stick(rate, noise, loss, *, replaced):
    """delta of one Poisson round at epsilon `loss`: the integral of (P - e^loss Q)+, worse direction, by Simpson."""
    x = np.linspace(-12 * noise - 1, 12 * noise + 1, 100_001)
    present = (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, 1, noise)
    other = (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, -1, noise) if replaced else norm.pdf(x, 0, noise)
    excess = (np.maximum(p - math.exp(loss) * q, 0) for p, q in ((present, other), (other, present)))
    return max(float(np.trapezoid(one, x)) for one in excess)


# Gaussians that saw every unit.


@pytest.mark.parametrize("noise", [0.05, 0.5, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-12])
def test_the_exact_epsilon_solves_the_equation_of_the_analytic_gaussian_mechanism(noise, delta):
    loss = epsilon(Gaussian(noise), delta).upper
    a, b = 0.5 / noise - loss * noise, -0.5 / noise - loss * noise
    found = norm.cdf(a) - math.exp(loss + norm.logcdf(b))
    assert found == pytest.approx(delta, rel=1e-6) if loss > 0 else found <= delta


def test_exact_epsilon_agrees_with_dp_accounting_and_stays_stable_far_out():
    import dp_accounting

    for noise in (1e-3, 0.1, 3.0, 1e3):
        expected = dp_accounting.get_epsilon_gaussian(noise, DELTA)
        assert epsilon(Gaussian(noise), DELTA).upper == pytest.approx(expected, rel=1e-9)
    assert epsilon(Gaussian(1e5), DELTA).upper == 0.0  # The total variation, 0.4 / noise, is below delta.
    assert epsilon(Gaussian(1e-5), DELTA).upper == pytest.approx(0.5e10, rel=1e-3)  # The mean loss, 1 / (2 noise^2).


def test_a_hundred_rounds_cost_one_gaussian_of_a_tenth_of_the_noise():
    assert epsilon(Repeated(Gaussian(5.0), 100), DELTA).upper == pytest.approx(epsilon(Gaussian(0.5), DELTA).upper)
    assert epsilon(Repeated(Gaussian(5.0), 100), DELTA).upper == pytest.approx(9.997, abs=1e-3)


def test_exact_means_both_ends_are_equal():
    found = epsilon(UNIT, DELTA)
    assert found.method == "exact"
    assert found.lower == found.upper == pytest.approx(4.377, abs=1e-3)


def test_replacing_a_unit_moves_the_sum_twice_as_far():
    assert epsilon(Gaussian(2.0), DELTA, neighbours="replace").upper == epsilon(UNIT, DELTA).upper
    assert epsilon(UNIT, DELTA, neighbours="zero_out").upper == epsilon(UNIT, DELTA).upper


def test_a_sample_of_everybody_is_no_sample():
    everybody = Repeated(Sampled(Poisson(1.0), UNIT), 3)
    assert epsilon(everybody, DELTA) == epsilon(Repeated(UNIT, 3), DELTA)
    assert epsilon(Sampled(FixedSize(7, 7), UNIT), DELTA) == epsilon(UNIT, DELTA)


def test_nothing_costs_nothing():
    for event in (Composed(), Repeated(UNIT, 0), Sampled(Poisson(0.5), Composed()), Repeated(NonPrivate(), 0)):
        assert epsilon(event, DELTA) == Bracket(0.0, 0.0, "exact", "add_remove", DELTA)


# Poisson samples.


@pytest.mark.parametrize(
    ("rate", "noise", "times", "truth"),
    [
        (0.01, 1.0, 10, 0.38),
        (0.01, 1.0, 100, 0.718),
        (0.01, 1.0, 1000, 1.828),
        (0.01, 1.0, 10000, 6.188),
        (0.01, 2.0, 1000, 0.622),
        (0.1, 1.0, 1000, 25.20),
        (0.001, 0.5, 1, 0.3376),
        (0.001, 5.0, 10000, 0.05948),  # Where a grid of 1e-3 says 0.1252.
    ],
)
def test_known_values_of_poisson_rounds(rate, noise, times, truth):
    found = epsilon(poisson(rate, noise, times), DELTA)
    digits = 0.005 if truth == 0.38 else 0.0005  # What rounding the known value hides, relative.
    assert found.method == "PLD"
    assert found.lower <= truth * (1 + digits)
    assert truth * (1 - digits) <= found.upper <= truth * 1.01
    assert found.lower >= 0.99 * found.upper


def test_replacing_a_unit_of_a_poisson_sample_costs_less_than_twice_the_way():
    found = epsilon(poisson(0.01, 1.0, 1000), DELTA, neighbours="replace")
    assert found.upper == pytest.approx(2.843, rel=1e-3)
    assert found.lower == pytest.approx(2.843, rel=1e-2)
    assert found.upper < epsilon(poisson(0.01, 0.5, 1000), DELTA).lower


def test_zeroing_out_costs_what_removing_costs():
    removed, zeroed = (epsilon(poisson(0.02, 1.0, 50), DELTA, neighbours=n) for n in ("add_remove", "zero_out"))
    assert zeroed == replace(removed, neighbours="zero_out")


@settings(deadline=None, max_examples=10)
@given(st.floats(0.001, 0.99), st.floats(0.4, 5.0), st.sampled_from([1e-2, 1e-4, 1e-7]), st.sampled_from([False, True]))
def test_the_bracket_of_one_round_holds_the_integral(rate, noise, delta, replaced):
    found = epsilon(poisson(rate, noise), delta, neighbours="replace" if replaced else "add_remove")
    quadrature = 1 + 1e-4
    assert hockey_stick(rate, noise, found.upper, replaced=replaced) <= delta * quadrature
    if found.lower > 0:
        assert hockey_stick(rate, noise, found.lower, replaced=replaced) * quadrature >= delta


@settings(deadline=None, max_examples=6)
@given(st.floats(0.001, 0.3), st.floats(0.5, 4.0), st.integers(1, 200), st.floats(1.0, 3.0))
def test_more_rounds_a_higher_rate_or_less_noise_never_cost_less(rate, noise, times, factor):
    (less,) = epsilon_curve(poisson(rate, noise, times), 1, DELTA)  # The upper end alone, in half the time.
    for event in (
        poisson(rate, noise, math.ceil(times * factor)),
        poisson(rate * factor, noise, times),
        poisson(rate, noise / factor, times),
    ):
        (more,) = epsilon_curve(event, 1, DELTA)
        assert more >= 0.99 * less  # Grids settle to 1%.


def test_two_channels_on_one_sample_cost_like_one_gaussian():
    both = Repeated(Sampled(Poisson(0.01), Composed((Gaussian(3.0), Gaussian(4.0)))), 100)
    assert epsilon(both, DELTA).upper == pytest.approx(epsilon(poisson(0.01, 2.4, 100), DELTA).upper, rel=1e-9)
    twice = Sampled(Poisson(0.01), Repeated(Gaussian(2.0), 4))
    assert epsilon(twice, DELTA).upper == pytest.approx(epsilon(poisson(0.01, 1.0), DELTA).upper, rel=1e-9)


def test_two_channels_on_one_sample_are_not_two_samples():
    together = epsilon(Repeated(Sampled(Poisson(0.01), Composed((UNIT, UNIT))), 1000), DELTA)
    apart = epsilon(poisson(0.01, 1.0, 2000), DELTA)
    assert together.lower > 1.1 * apart.upper


def test_the_order_and_nesting_of_rounds_do_not_matter():
    a, b = Sampled(Poisson(0.01), UNIT), Sampled(Poisson(0.02), Gaussian(2.0))
    one = Composed((Repeated(a, 20), Repeated(b, 10)))
    other = Repeated(Composed((Composed((b, a)), a)), 10)
    assert epsilon(one, DELTA) == epsilon(other, DELTA)


def test_rounds_of_different_kinds_agree_with_dp_accounting():
    import dp_accounting as dp

    event = Composed((Gaussian(20.0), poisson(0.02, 1.0, 50), poisson(0.05, 2.0, 50)))
    accountant = dp.pld.PLDAccountant(value_discretization_interval=3e-4)
    accountant.compose(dp.GaussianDpEvent(20.0))
    accountant.compose(dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(1.0)), 50)
    accountant.compose(dp.PoissonSampledDpEvent(0.05, dp.GaussianDpEvent(2.0)), 50)
    found = epsilon(event, DELTA)
    assert found.upper == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-2)
    assert found.lower <= accountant.get_epsilon(DELTA)
    assert found.lower >= 0.98 * found.upper


@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-9, 1e-10])
def test_rounding_of_fourier_transforms_never_takes_epsilon_below_the_truth(delta):
    """100 Gaussians of 3 as a grid, whose truth is the exact price of 0.3; the library alone falls below from 1e-8."""
    hundred = [Part("all", 1.0, 3.0, 100)]
    truth = gaussian.epsilon(0.3, delta)
    assert truth <= pld.upper_at(hundred, delta, 1e-4) <= truth * 1.01
    assert truth * 0.99 <= pld.lower(hundred, delta, truth) <= truth


def test_a_delta_beyond_the_rounding_is_left_to_renyi():
    found = epsilon(poisson(1 - 1e-9, 1.0, 10), 1e-14)
    truth = gaussian.epsilon(10**-0.5, 1e-14)
    assert found.method == "RDP"
    assert "delta is too small" in found.note
    assert found.lower < truth < found.upper < 1.1 * truth


def test_above_fifty_no_distribution_is_built(monkeypatch):
    monkeypatch.setattr(pld, "upper", lambda *_: pytest.fail("a distribution was built"))
    found = epsilon(poisson(0.1, 0.5, 10000), DELTA)
    assert found.method == "RDP"
    assert found.note == "no meaningful privacy"
    assert 50 < found.lower < found.upper < math.inf


def test_many_kinds_of_rounds_are_priced_as_fewer_dearer_ones(monkeypatch):
    """Noise that rises a little every round: 24 kinds at most are told apart, which costs 5% here; Renyi costs 20%."""
    rounds = tuple(poisson(0.01, 1 + index / 30, 30) for index in range(30))
    found = epsilon(Composed(rounds), DELTA)
    parts = upper_parts(history_of(Composed(rounds)), "add_remove")
    monkeypatch.setattr(pld, "MAX_PARTS", 30)
    every = pld.upper_at(parts, DELTA, 1e-3)
    assert found.method == "PLD"
    assert every * 0.999 <= found.upper <= 1.05 * every
    assert rdp.epsilon(parts, DELTA) > 1.2 * every
    assert 0 < epsilon(rounds[-1], DELTA).lower <= found.lower <= every


@pytest.mark.parametrize("law", ["poisson", "poisson_replace"])
def test_merged_parts_cost_no_less_one_by_one(law):
    parts = tuple(Part(law, 0.01 * (1 + index % 5), 1 + index / 7, index + 1) for index in range(20))
    alone = Part("all", 1.0, 9.0, 3)
    few = merged((alone, *parts), 6)
    assert len(few) == 6
    assert few[0] == alone
    assert sum(part.times for part in few) == sum(part.times for part in parts) + 3
    for part in parts:
        assert any(one.rate >= part.rate and one.noise <= part.noise for one in few[1:])
    assert (rdp.moments(few) >= rdp.moments((alone, *parts)) * (1 - 1e-9)).all()
    assert merged(parts, 20) == parts


def test_many_caps_are_left_to_renyi():
    rounds = tuple(Sampled(Capped(0.01, 30 + index, 1000), UNIT) for index in range(25))
    found = epsilon(Composed(rounds), DELTA)
    assert found.method == "RDP"
    assert "the rounds too various" in found.note


def test_renyi_conversion_agrees_with_dp_accounting():
    from dp_accounting.rdp import rdp_privacy_accountant as library

    part = Part("poisson", 0.02, 1.5, 30)
    expected, _ = library.compute_epsilon(rdp.ORDERS, rdp.moments([part]), DELTA)
    assert rdp.epsilon([part], DELTA) == pytest.approx(expected, rel=1e-12)
    assert rdp.epsilon([replace(part, rate=1e-9)], DELTA) == 0.0


def test_orders_that_do_not_converge_are_left_out_in_silence(caplog):
    log = logging.getLogger("absl")
    log.addHandler(caplog.handler)
    try:
        found = rdp.epsilon([Part("poisson", 0.123, 1.0, 1000)], DELTA)
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records
    assert np.isinf(rdp.moments([Part("poisson", 0.123, 1.0, 1)])).any()  # Or this test would prove nothing.
    assert pld.upper([Part("poisson", 0.123, 1.0, 1000)], DELTA) < found < math.inf


# Samples of fixed size.


def test_a_fixed_size_cohort_is_charged_for_two_clip_norms():
    event = Repeated(Sampled(FixedSize(10, 1000), UNIT), 1000)
    found = epsilon(event, DELTA, neighbours="replace")
    assert found.method == "RDP"
    assert found.upper == pytest.approx(20.99, abs=0.01)  # Without the factor 2 the library says 3.58.
    assert found.lower == pytest.approx(13.36, abs=0.02)
    assert found.lower <= epsilon(poisson(0.01, 0.5, 1000), DELTA).upper
    assert "the range is wide" in found.note


def test_a_fixed_size_cohort_with_zero_out_is_charged_as_replaced():
    event = Repeated(Sampled(FixedSize(10, 1000), UNIT), 1000)
    replaced, zeroed = (epsilon(event, DELTA, neighbours=n) for n in ("replace", "zero_out"))
    assert zeroed.upper == replaced.upper
    assert zeroed.lower < 10.4 < zeroed.upper  # The truth is about 10.4.
    assert "charged as replaced" in zeroed.note


def test_fixed_size_and_unsampled_releases_compose():
    cohort = Repeated(Sampled(FixedSize(10, 1000), Gaussian(4.0)), 100)
    alone = epsilon(cohort, DELTA, neighbours="replace")
    both = epsilon(Composed((cohort, Gaussian(4.0))), DELTA, neighbours="replace")
    assert both.lower >= epsilon(Gaussian(2.0), DELTA).upper * 0.99
    assert alone.upper < both.upper <= alone.upper + epsilon(Gaussian(2.0), DELTA).upper + 1


# What has no guarantee, and what has no price.


@pytest.mark.parametrize(
    "event",
    [
        NonPrivate("accuracy of silos"),
        Composed((UNIT, NonPrivate("accuracy of silos"))),
        Repeated(Composed((poisson(0.1, 1.0), NonPrivate("accuracy of silos"))), 2),
        Sampled(Poisson(0.01), Composed((UNIT, NonPrivate("accuracy of silos")))),
    ],
)
def test_one_non_private_release_makes_epsilon_infinite(event):
    found = epsilon(event, DELTA)
    assert found.lower == found.upper == math.inf
    assert found.note == "no guarantee: accuracy of silos"
    assert epsilon_curve(event, 3, DELTA) == [math.inf] * 3


@pytest.mark.parametrize(
    ("event", "neighbours", "message"),
    [
        (Sampled(FixedSize(10, 1000), UNIT), "add_remove", "use neighbours: replace"),
        (Composed((NonPrivate(), Sampled(FixedSize(10, 1000), UNIT))), "add_remove", "use neighbours: replace"),
        (Sampled(Poisson(0.1), Sampled(Poisson(0.1), UNIT)), "add_remove", "sample of a sample"),
        (Sampled(Poisson(0.1), Gaussian(1e9)), "add_remove", "use one up to 1e+06"),
        ("gaussian", "add_remove", "unknown event"),
    ],
)
def test_what_cannot_be_priced_is_refused_in_one_line(event, neighbours, message):
    with pytest.raises(Unpriceable) as error:
        epsilon(event, DELTA, neighbours=neighbours)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
def test_a_delta_that_is_none_is_refused_everywhere(delta):
    for ask in (
        lambda: epsilon(UNIT, delta),
        lambda: epsilon_curve(UNIT, 2, delta),
        lambda: noise_multiplier_for(1.0, delta, Gaussian),
        lambda: Spend(delta),
    ):
        with pytest.raises(ValueError, match=r"delta must be in \(0, 1\)"):
            ask()


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="neighbours: unknown 'swap'; use one of add_remove, zero_out, replace"):
        epsilon(UNIT, DELTA, neighbours="swap")


@pytest.mark.parametrize("ends", [(2.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (-1.0, 1.0)])
def test_a_bracket_holds_its_ends_in_order(ends):
    with pytest.raises(ValueError, match="a bracket needs"):
        Bracket(*ends, "PLD", "add_remove", DELTA)


# Curves.


@pytest.mark.parametrize(
    ("event", "neighbours"),
    [
        (Sampled(Poisson(0.01), UNIT), "add_remove"),
        (Composed((Gaussian(30.0), Sampled(Poisson(0.02), UNIT))), "replace"),
        (Sampled(FixedSize(1, 100), Gaussian(2.0)), "zero_out"),
        (Gaussian(3.0), "add_remove"),
    ],
)
def test_a_curve_bounds_every_round_and_ends_at_epsilon(event, neighbours):
    curve = epsilon_curve(event, 60, DELTA, neighbours=neighbours)
    assert len(curve) == 60
    assert curve == sorted(curve)
    assert curve[-1] == epsilon(Repeated(event, 60), DELTA, neighbours=neighbours).upper
    for count in (1, 7, 41):
        found = epsilon(Repeated(event, count), DELTA, neighbours=neighbours)
        assert found.lower <= curve[count - 1] <= 1.3 * found.upper


def test_curves_of_nothing():
    assert epsilon_curve(Sampled(Poisson(0.01), UNIT), 0, DELTA) == []
    assert epsilon_curve(Composed(), 3, DELTA) == [0.0] * 3
    with pytest.raises(ValueError, match="times must be a whole number"):
        epsilon_curve(UNIT, -1, DELTA)


# Calibration.


def test_the_known_noise_for_epsilon_two():
    noise = noise_multiplier_for(2.0, 1e-6, lambda z: poisson(0.01, z, 1000))
    assert noise == pytest.approx(1.030, abs=0.0015)
    assert epsilon(poisson(0.01, noise, 1000), 1e-6).upper <= 2.0
    assert epsilon(poisson(0.01, noise * 0.995, 1000), 1e-6).upper > 2.0


@pytest.mark.parametrize("target", [0.01, 1.0, 40.0])
def test_the_noise_of_one_gaussian_is_the_analytic_one_and_errs_upwards(target):
    import dp_accounting

    noise = noise_multiplier_for(target, DELTA, Gaussian)
    exact = dp_accounting.get_sigma_gaussian(target, DELTA)
    assert exact <= noise * (1 + 1e-9)
    assert noise <= exact * 1.001


def test_noise_for_a_plan_that_no_noise_helps_is_refused():
    with pytest.raises(Unpriceable, match="no noise multiplier up to 1e\\+06 keeps epsilon <= 2"):
        noise_multiplier_for(2.0, DELTA, lambda z: Composed((Gaussian(z), NonPrivate())))
    with pytest.raises(Unpriceable, match="use neighbours: replace"):
        noise_multiplier_for(2.0, DELTA, lambda z: Sampled(FixedSize(1, 10), Gaussian(z)))
    with pytest.raises(ValueError, match="target must be > 0"):
        noise_multiplier_for(math.nan, DELTA, Gaussian)


# A history that grows.


def test_a_history_costs_what_its_event_costs_in_any_order():
    a, b = Sampled(Poisson(0.01), UNIT), Gaussian(10.0)
    one, other = Spend(DELTA), Spend(DELTA)
    for event, times in ((a, 1), (b, 2), (a, 30)):
        one.add(event, times)
    for event, times in ((b, 1), (a, 31), (b, 1)):
        other.add(event, times)
    assert one.epsilon() == other.epsilon() == epsilon(one.event(), DELTA)
    assert one.event() == Composed((Repeated(a, 31), Repeated(b, 2)))


def test_an_empty_history_costs_nothing_and_equal_rounds_are_counted():
    spend = Spend(DELTA, "replace")
    assert spend.epsilon().upper == spend.upper() == 0.0
    for _ in range(10_000):
        spend.add(Gaussian(100.0))
    assert spend.event() == Composed((Repeated(Gaussian(100.0), 10_000),))
    assert spend.upper() == spend.epsilon().upper == epsilon(Gaussian(0.5), DELTA).upper


def test_a_refused_event_leaves_the_history_as_it_was():
    spend = Spend(DELTA)
    spend.add(UNIT)
    for event, times in ((Sampled(FixedSize(1, 10), UNIT), 1), (UNIT, -1)):
        with pytest.raises(ValueError):
            spend.add(event, times)
    assert spend.event() == Composed((Repeated(UNIT, 1),))


def test_the_line_after_every_round_is_an_upper_bound_and_builds_few_distributions(monkeypatch):
    built = []
    whole = pld.upper
    monkeypatch.setattr(pld, "upper", lambda parts, delta: built.append(parts) or whole(parts, delta))
    spend, lines = Spend(DELTA), []
    for _ in range(130):
        spend.add(Sampled(Poisson(0.0101), Gaussian(3.0)))
        lines.append(spend.upper())
    assert lines == sorted(lines)
    assert len(built) == 31 + 16 + 16 + 2  # 1 to 31, even to 62, by fours to 124, then 128 and 136.
    exact = spend.epsilon()
    assert exact.lower <= lines[-1] <= 1.06 * exact.upper
