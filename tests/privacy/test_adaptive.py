"""A clip norm that adapts: vectors and votes cost what is said, under every relation, and the quantile is found."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from privacy.accountant import Neighbours, epsilon
from privacy.adaptive import LEAST, MOST, AdaptiveSum, advanced, clip_norms, restored
from privacy.contributions import Contributions
from privacy.events import Composed, Event, FixedSize, Gaussian, Poisson, Repeated, Sampled, gaussian_composed
from privacy.mechanism import ExactSum, GaussianSum, Mechanism, joint_event
from privacy.noise import SimulatedNoise
from privacy.release import Collector, Release

torch.set_num_threads(1)

FALSE_ALARM = 1e-6  # Probability that a statistical test here fails although the code is right, for a fresh seed.
SIZE = 3


def adaptive(noise: float = 1.0, *, count_noise: float = 5.0, **changes: Any) -> AdaptiveSum:
    settings_: dict[str, Any] = {"clip_norm": 1.0, "quantile": 0.5, "rate": 0.2, "voters": 100.0} | changes
    return AdaptiveSum.costing(noise, count_noise=count_noise, **settings_)


@given(st.floats(0.05, 50), st.floats(1.0001, 1000))
def test_vectors_and_votes_together_cost_the_noise_multiplier_that_was_asked_for(noise: float, more: float) -> None:
    mechanism = adaptive(noise, count_noise=more * noise / 2)
    assert isinstance(mechanism.event, Composed)
    vectors, votes = mechanism.event.events
    assert vectors == Gaussian(mechanism.noise_multiplier)
    assert votes == Gaussian(2 * mechanism.count_noise)  # A vote moves its sum by 1/2.
    together = gaussian_composed(mechanism.noise_multiplier, 2 * mechanism.count_noise)
    assert together == pytest.approx(noise, rel=1e-12)


@pytest.mark.parametrize(
    ("sampler", "neighbours"),
    [
        (None, "add_remove"),
        (None, "replace"),
        (Poisson(0.1), "add_remove"),
        (Poisson(0.1), "zero_out"),
        (Poisson(0.1), "replace"),
        (FixedSize(10, 100), "replace"),
    ],
)
def test_the_epsilon_is_that_of_one_gaussian(sampler: Poisson | FixedSize | None, neighbours: Neighbours) -> None:
    def price(event: Event) -> float:
        sampled = event if sampler is None else Sampled(sampler, event)
        return epsilon(Repeated(sampled, 20), 1e-5, neighbours=neighbours).upper

    assert price(adaptive(1.5, count_noise=1.0).event) == pytest.approx(price(Gaussian(1.5)), rel=1e-9)


def test_votes_for_free_would_report_709_where_the_truth_is_1828() -> None:
    """z = 1, q = .01, T = 1000, delta = 1e-5; with count noise .6 the vectors have 1.2 / sqrt(1.44 - 1) = 1.809."""
    mechanism = adaptive(1.0, count_noise=0.6)
    assert mechanism.noise_multiplier == pytest.approx(1.2 / math.sqrt(0.44), rel=1e-12)

    def price(event: Event) -> float:
        return epsilon(Repeated(Sampled(Poisson(0.01), event), 1000), 1e-5).upper

    assert price(mechanism.event) == pytest.approx(1.828, abs=0.005)
    assert price(Gaussian(mechanism.noise_multiplier)) == pytest.approx(0.709, abs=0.005)


def test_beside_other_channels_the_event_is_one_flat_list() -> None:
    channels: dict[str, Mechanism] = {"delta": adaptive(2.0), "loss": GaussianSum(1.0, 3.0)}
    joint = joint_event(channels)
    assert joint == Composed((Gaussian(adaptive(2.0).noise_multiplier), Gaussian(10.0), Gaussian(3.0)))


rows = st.lists(st.floats(-10, 10, width=32), min_size=SIZE, max_size=SIZE)


def contributed(vectors: list[list[float]], mechanism: AdaptiveSum) -> tuple[Tensor, float]:
    sums = Contributions({"delta": mechanism}, {"delta": SIZE})
    sums.add({"delta": torch.tensor(vectors).reshape(len(vectors), SIZE)}, 1.0, range(len(vectors)))
    return sums.sums["delta"], sums.votes["delta"]


def moved(mechanism: AdaptiveSum, one: list[list[float]], two: list[list[float]]) -> float:
    """How far apart the releases of two cohorts are, in standard deviations: what their price must cover."""
    (sum_one, votes_one), (sum_two, votes_two) = contributed(one, mechanism), contributed(two, mechanism)
    vectors = float(torch.linalg.vector_norm(sum_one - sum_two)) / mechanism.std
    return math.hypot(vectors, (votes_one - votes_two) / mechanism.count_noise)


@settings(deadline=None)
@given(st.lists(rows, max_size=3), rows, rows, st.floats(0.5, 5), st.floats(1.1, 3), st.floats(0.1, 20))
def test_no_silo_moves_the_release_by_more_than_its_price_under_any_relation(
    others: list[list[float]], own: list[float], other: list[float], noise: float, more: float, clip_norm: float
) -> None:
    mechanism = adaptive(noise, count_noise=more * noise / 2, clip_norm=clip_norm)
    most = (1 + 1e-6) / noise
    assert moved(mechanism, [*others, own], others) <= most  # add_remove
    assert moved(mechanism, [*others, own], [*others, [0.0] * SIZE]) <= most  # zero_out
    assert moved(mechanism, [*others, own], [*others, other]) <= 2 * most  # replace
    assume(math.hypot(*own) > 1.01 * clip_norm)  # The worst cases are reached: the price wastes nothing.
    assert moved(mechanism, [*others, own], others) == pytest.approx(1 / noise, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_refused_casts_no_vote(bad: float) -> None:
    good, long = [0.1, 0.0, 0.0], [5.0, 0.0, 0.0]
    assert contributed([good], adaptive())[1] == 0.5
    assert contributed([long], adaptive())[1] == -0.5
    assert contributed([good, long, good], adaptive())[1] == 0.5
    total, votes = contributed([good, [bad, 0.0, 0.0], good], adaptive())
    assert votes == 1.0
    assert torch.equal(total, contributed([good, good], adaptive())[0])


def test_a_refused_weight_casts_no_vote_and_an_allowed_one_votes_on_the_whole_update() -> None:
    sums = Contributions({"delta": adaptive()}, {"delta": SIZE})
    sums.add({"delta": torch.ones(3, SIZE)}, torch.tensor([1.0, 2.0, 0.1]), range(3))  # Norm 1.73, above 1.
    assert sums.votes == {"delta": -1.0}
    assert sums.payload == 2 * (SIZE + 1)  # The vote is sent too.


def test_an_update_of_exactly_the_clip_norm_is_below_it() -> None:
    assert contributed([[1.0, 0.0, 0.0]], adaptive(clip_norm=1.0))[1] == 0.5


def released(mechanism: AdaptiveSum, round_: int, vectors: list[list[float]] | None = None) -> Release:
    collector = Collector({"delta": mechanism}, {"delta": SIZE}, expected=10.0, population=100)
    sums = Contributions({"delta": mechanism}, {"delta": SIZE})
    if vectors is not None:
        sums.add({"delta": torch.tensor(vectors)}, 1.0, range(len(vectors)))
    collector.add(sums.partial(0))
    return collector.release(SimulatedNoise(7), stream=("noise", round_))


def test_votes_and_vectors_get_the_noise_that_they_are_priced_with() -> None:
    """Sums of squares of 5,000 draws are chi-squared; the two noises are not correlated."""
    rounds, mechanism = 5_000, adaptive(2.0, count_noise=1.5, clip_norm=0.5)
    assert isinstance(mechanism.event, Composed)
    vectors_event, votes_event = mechanism.event.events
    assert isinstance(vectors_event, Gaussian)
    assert isinstance(votes_event, Gaussian)
    noise = [released(mechanism, round_) for round_ in range(rounds)]
    vectors = np.array([release.sums["delta"].numpy() for release in noise]) / 0.5 / vectors_event.noise_multiplier
    votes = np.array([release.votes["delta"] for release in noise]) / 0.5 / votes_event.noise_multiplier
    for draws in (vectors, votes):
        low, high = stats.chi2.ppf([FALSE_ALARM / 10, 1 - FALSE_ALARM / 10], draws.size)
        assert low < float((draws**2).sum()) < high
    for column in vectors.T:
        correlation = np.corrcoef(column, votes)[0, 1]
        assert abs(math.atanh(correlation)) * math.sqrt(rounds - 3) < stats.norm.isf(FALSE_ALARM / 10)


def test_the_released_votes_are_the_votes_and_their_noise() -> None:
    vectors = [[0.1, 0.0, 0.0]] * 5 + [[9.0, 0.0, 0.0]] * 2
    with_votes, alone = (released(adaptive(), 3, given) for given in (vectors, None))
    assert with_votes.votes["delta"] - alone.votes["delta"] == 1.5  # 5 halves less 2; multiples of the grid are exact.


def test_the_next_clip_norm_is_the_papers() -> None:
    mechanism = adaptive(clip_norm=2.0, quantile=0.7, rate=0.3, voters=10.0)
    after = mechanism.next(-1.0)  # 4 of 10 voted for: a fraction of .4.
    assert after.clip_norm == pytest.approx(2.0 * math.exp(-0.3 * (0.4 - 0.7)), rel=1e-12)
    assert replace(after, clip_norm=2.0) == mechanism
    assert after.event == mechanism.event  # The price is constant.
    assert after.std / after.clip_norm == pytest.approx(mechanism.noise_multiplier, rel=1e-15)


@pytest.mark.parametrize("votes", [1e300, -1e300, 2.0**53, -(2.0**53)])
def test_no_votes_bring_the_clip_norm_to_zero_or_infinity(votes: float) -> None:
    mechanism = adaptive()
    for _ in range(3):
        mechanism = mechanism.next(votes)
    assert mechanism.clip_norm == pytest.approx(LEAST if votes > 0 else MOST, rel=1e-12)
    back = mechanism.next(math.copysign(100.0, -votes)).clip_norm  # A fraction of 1/2 -+ 1: it comes back.
    assert back / mechanism.clip_norm == pytest.approx(math.exp(0.2 if votes > 0 else -0.2), rel=1e-9)


@pytest.mark.parametrize("votes", [math.nan, math.inf, -math.inf])
def test_votes_that_are_no_number_are_refused(votes: float) -> None:
    with pytest.raises(ValueError, match="votes must be finite"):
        adaptive().next(votes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantile", 0.0), ("quantile", 1.0), ("rate", 0.0), ("voters", 0.0), ("clip_norm", 1e-10), ("clip_norm", 1e10)]
    + [(name, math.nan) for name in ("quantile", "rate", "voters", "clip_norm", "count_noise")],
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        adaptive(**{name: value})


@pytest.mark.parametrize("count_noise", [0.5, 0.4])
def test_votes_that_cost_as_much_as_all_may_cost_are_refused(count_noise: float) -> None:
    with pytest.raises(ValueError, match=r"count_noise must be > noise_multiplier / 2 = 0.5"):
        adaptive(1.0, count_noise=count_noise)


@pytest.mark.parametrize("quantile", [0.3, 0.8])
@pytest.mark.parametrize("start", [0.11, 9.0])
def test_the_clip_norm_finds_the_quantile_of_known_norms(quantile: float, start: float) -> None:
    """1,000 norms, uniform in their logarithm from .1 to 10, so that the fraction below rises linearly with log C.

    The logarithm's distance then shrinks by a = 1 - .2 / log(100) a round and takes noise of .2 x 50 / 1,000, so that
    it settles at a standard deviation of .01 / sqrt(1 - a^2) = .034; the start has faded to .957^250 = 2e-5.
    """
    norms = torch.exp(torch.linspace(math.log(0.1), math.log(10), 1000, dtype=torch.float64))
    mechanism = adaptive(1.0, count_noise=50.0, clip_norm=start, quantile=quantile, rate=0.2, voters=1000.0)
    for round_ in range(250):
        votes = mechanism.count(float(mechanism.votes(norms).sum()), SimulatedNoise(3), stream=("noise", round_))
        mechanism = mechanism.next(votes)
    wanted = math.log(0.1) + quantile * math.log(100)
    settles = 0.01 / math.sqrt(1 - (1 - 0.2 / math.log(100)) ** 2)
    bound = stats.norm.isf(FALSE_ALARM / 2) * settles + math.log(100) / 999
    assert abs(math.log(mechanism.clip_norm) - wanted) < bound


def test_only_channels_that_adapt_change_and_are_restored() -> None:
    mechanisms: dict[str, Mechanism] = {"delta": adaptive(), "fixed": GaussianSum(0.3, 1.0), "exact": ExactSum()}
    release = Release({}, {}, 10, {"delta": 50.0})
    after = advanced(mechanisms, release)
    assert clip_norms(after) == {"delta": math.exp(-0.2 * 0.5), "fixed": 0.3}
    assert restored(mechanisms, clip_norms(after)) == after
    with pytest.raises(ValueError, match="no clip norm is kept of channel 'delta'"):
        restored(mechanisms, {"fixed": 0.3})
