"""Other people's accountants, on the same plans. Each must agree where it proves the same, and says where it does not.

Closed forms and dp-accounting's own composition are in test_accountant.py, test_capped.py and test_pairings.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from privacy import rdp
from privacy.accountant import epsilon, noise_multiplier_for
from privacy.events import Composed, Event, FixedSize, Gaussian, Poisson, Repeated, Sampled
from privacy.terms import history_of, upper_parts

DELTA = 1e-5
PLANS = [(0.01, 1.0, 100), (0.01, 1.0, 1000), (0.01, 2.0, 1000), (0.1, 2.0, 300), (0.5, 4.0, 50)]

# In a process of its own: importing flwr loads gRPC, whose threads would be there for all other tests.
FLOWER = """
import json, sys
from flwr.supercore.privacy_accounting import GaussianPrivacyEvent, NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

found = []
for sampling, noise, size, population, times, delta in json.load(sys.stdin):
    relation = "replace-one" if sampling == "without-replacement" else "add-or-remove-one"
    config = PrivacyConfig(delta, population, NeighboringRelation(relation), SamplingMethod(sampling))
    accountant = RdpAccountant(config)
    accountant.compose(GaussianPrivacyEvent(noise, size, population), times)
    found.append(accountant.get_epsilon(delta))
print(json.dumps(found))
"""
ASKED: list[tuple[str, float, int, int, int, float]] = [
    *(("poisson", noise, round(1000 * rate), 1000, times, DELTA) for rate, noise, times in PLANS),
    ("no-amplification", 1.0, 1000, 1000, 1, DELTA),
    ("without-replacement", 1.0, 10, 1000, 1000, DELTA),
    ("without-replacement", 0.5, 10, 1000, 1000, DELTA),
]


@lru_cache(maxsize=1)
def flower() -> dict[Any, float]:
    """Epsilon by Flower 1.39's own accountant, for each of `ASKED`."""
    done = subprocess.run(
        [sys.executable, "-c", FLOWER],
        input=json.dumps(ASKED),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(ASKED, json.loads(done.stdout), strict=True))


def poisson(rate: float, noise: float, times: int) -> Event:
    return Repeated(Sampled(Poisson(rate), Gaussian(noise)), times)


def renyi(event: Event) -> float:
    return rdp.epsilon(upper_parts(history_of(event), "add_remove"), DELTA)


@pytest.mark.parametrize("plan", PLANS)
def test_flowers_accountant_agrees_on_poisson_rounds(plan: tuple[float, float, int]) -> None:
    """Both are Renyi bounds; Flower's orders are coarser, so ours is below by at most 1%, and the tight price below."""
    rate, noise, times = plan
    theirs = flower()["poisson", noise, round(1000 * rate), 1000, times, DELTA]
    found = epsilon(poisson(*plan), DELTA)
    assert 0.99 * theirs <= renyi(poisson(*plan)) <= theirs * (1 + 1e-6)
    assert found.lower <= found.upper < theirs


def test_flowers_accountant_bounds_the_exact_gaussian() -> None:
    theirs = flower()["no-amplification", 1.0, 1000, 1000, 1, DELTA]
    assert epsilon(Gaussian(1.0), DELTA).upper < theirs < 1.1 * epsilon(Gaussian(1.0), DELTA).upper


def test_flowers_accountant_prices_fixed_size_for_one_clip_norm_which_is_below_the_truth() -> None:
    """It passes the noise on as it is (3.58); dp-accounting means noise over the whole move, which is two clip norms.

    With half the noise it says what we say; and 13.36 is what one pair of neighbours surely costs.
    """
    as_passed, halved = (flower()["without-replacement", noise, 10, 1000, 1000, DELTA] for noise in (1.0, 0.5))
    ours = epsilon(Repeated(Sampled(FixedSize(10, 1000), Gaussian(1.0)), 1000), DELTA, neighbours="replace")
    assert as_passed < 0.3 * ours.lower
    assert halved == pytest.approx(ours.upper, rel=0.01)


@pytest.mark.parametrize("plan", PLANS)
def test_opacus_prv_agrees_within_its_own_error(plan: tuple[float, float, int]) -> None:
    """Gopi et al. 2021, theorem 5.5: epsilon is between its ends, about 0.02 apart; so ours must meet them."""
    rate, noise, times = plan
    prv = PRVAccountant()
    prv.history = [(noise, rate, times)]
    errors = {"eps_error": 0.01, "delta_error": 1e-8}
    low, _, high = prv._get_dprv(**errors).compute_epsilon(DELTA, **errors)  # The lower end is nowhere public.
    found = epsilon(poisson(*plan), DELTA)
    assert low <= found.upper <= 1.01 * high
    assert 0.99 * low <= found.lower <= high


def test_opacus_prv_agrees_on_rounds_that_change() -> None:
    prv = PRVAccountant()
    prv.history = [(noise, rate, times) for rate, noise, times in PLANS[:4]]
    found = epsilon(Composed(tuple(poisson(*plan) for plan in PLANS[:4])), DELTA)
    theirs = prv.get_epsilon(DELTA, eps_error=0.01, delta_error=1e-8)  # Its upper end.
    assert found.lower <= theirs
    assert 0.99 * (theirs - 0.02) <= found.upper <= 1.01 * theirs


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
def test_opacus_rdp_agrees(plan: tuple[float, float, int]) -> None:
    rate, noise, times = plan
    theirs = RDPAccountant()
    theirs.history = [(noise, rate, times)]
    assert renyi(poisson(*plan)) == pytest.approx(theirs.get_epsilon(DELTA), rel=0.002)  # Both miss some orders.


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
def test_the_noise_for_epsilon_two_is_six_percent_less_than_opacus_rdp_asks() -> None:
    """q = .01, 1000 rounds, delta 1e-6: 1.030 against 1.094."""
    from opacus.accountants.utils import get_noise_multiplier

    ours = noise_multiplier_for(2.0, 1e-6, lambda noise: poisson(0.01, noise, 1000))
    theirs = get_noise_multiplier(
        target_epsilon=2.0, target_delta=1e-6, sample_rate=0.01, steps=1000, accountant="rdp", epsilon_tolerance=1e-3
    )
    assert ours == pytest.approx(1.030, abs=0.002)
    assert theirs == pytest.approx(1.094, abs=0.002)
    assert 0.055 < 1 - ours / theirs < 0.062
