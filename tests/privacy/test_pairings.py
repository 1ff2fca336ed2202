"""Every sampler under every relation, by everything that puts a price on it: the same answer, or the same refusal.

And histories of unlike rounds against dp-accounting's own composition.
"""

from __future__ import annotations

import json
import math
from collections import Counter

import dp_accounting
import pytest

from privacy import verify
from privacy.accountant import Neighbours, Spend, Unpriceable, epsilon, epsilon_curve, noise_multiplier_for
from privacy.events import Capped, Composed, Event, FixedSize, Gaussian, Poisson, Repeated, Sampled, to_json
from privacy.export import dp_event
from privacy.filters import RenyiFilter, order_for
from privacy.tuning import PoissonRuns
from privacy.tuning import epsilon as tuned

DELTA = 1e-5
ONE = Gaussian(4.0)
RELATIONS: tuple[Neighbours, ...] = ("add_remove", "zero_out", "replace")
NO_ADD_REMOVE = "fixed-size cohorts have no add/remove price; use neighbours: replace"
NESTED = "cannot price a sample of a sample: give the probability of both together as one rate"

# What a round is, and for each of `RELATIONS` how it is priced, or the line that refuses it and says what fits.
TABLE: dict[str, tuple[Event, tuple[str, str, str]]] = {
    "all": (ONE, ("exact", "exact", "exact")),
    "poisson": (Sampled(Poisson(0.05), ONE), ("PLD", "PLD", "PLD")),
    "poisson of all": (Sampled(Poisson(1.0), ONE), ("exact", "exact", "exact")),
    "fixed size": (Sampled(FixedSize(5, 100), ONE), (NO_ADD_REMOVE, "RDP", "RDP")),
    "fixed size of all": (Sampled(FixedSize(9, 9), ONE), ("exact", "exact", "exact")),
    "capped": (Sampled(Capped(0.05, 8, 100), ONE), ("PLD", "PLD", "PLD")),
    "capped at all": (Sampled(Capped(0.05, 100, 100), ONE), ("PLD", "PLD", "PLD")),
    "capped of all": (Sampled(Capped(1.0, 5, 100), ONE), (NO_ADD_REMOVE, "RDP", "RDP")),
    "mixed": (
        Composed((ONE, Sampled(Poisson(0.05), ONE), Sampled(Capped(0.05, 8, 100), Gaussian(5.0)))),
        ("PLD", "PLD", "PLD"),
    ),
    "mixed with fixed size": (
        Composed((ONE, Sampled(Poisson(0.05), ONE), Sampled(FixedSize(5, 100), ONE))),
        (NO_ADD_REMOVE, "RDP", "RDP"),
    ),
    "sample of a sample": (Sampled(Poisson(0.5), Sampled(Poisson(0.1), ONE)), (NESTED, NESTED, NESTED)),
    "sample of a capped sample": (Sampled(Poisson(0.5), Sampled(Capped(0.1, 2, 9), ONE)), (NESTED, NESTED, NESTED)),
}
PRODUCT = [
    pytest.param(event, relation, answer, id=f"{name}, {relation}")
    for name, (event, answers) in TABLE.items()
    for relation, answer in zip(RELATIONS, answers, strict=True)
]


def spent(event: Event, neighbours: Neighbours) -> Spend:
    history = Spend(DELTA, neighbours)
    history.add(event, 3)
    return history


def charged(kept: RenyiFilter, event: Event) -> float:
    kept.spend(event, 3)
    return kept.upper()


@pytest.mark.parametrize(("event", "neighbours", "answer"), PRODUCT)
def test_every_pairing_has_one_price_or_one_refusal(event: Event, neighbours: Neighbours, answer: str) -> None:
    order = order_for([ONE], 50.0, DELTA)
    asked = {
        "epsilon": lambda: epsilon(Repeated(event, 3), DELTA, neighbours=neighbours).upper,
        "curve": lambda: epsilon_curve(event, 3, DELTA, neighbours=neighbours)[-1],
        "spend": lambda: spent(event, neighbours).epsilon().upper,
        "so far": lambda: spent(event, neighbours).upper(),
        "filter": lambda: charged(RenyiFilter(50.0, DELTA, order, neighbours), event),
        "tuning": lambda: tuned([event], PoissonRuns(3.0), DELTA, neighbours=neighbours),
        "noise": lambda: noise_multiplier_for(
            1e3, DELTA, lambda noise: Composed((Gaussian(noise), event)), neighbours=neighbours
        ),
    }
    if answer in ("exact", "PLD", "RDP"):
        found = epsilon(Repeated(event, 3), DELTA, neighbours=neighbours)
        assert found.method == answer
        assert asked["curve"]() == asked["spend"]() == found.upper
        assert found.lower <= found.upper <= asked["so far"]()
        assert found.lower <= asked["filter"]() <= 50
        assert epsilon(event, DELTA, neighbours=neighbours).lower <= asked["tuning"]() < math.inf
        assert 1e-3 <= asked["noise"]() < 1.0  # Less noise than 1 in one more release passes 1e3 only far below.
        return
    for name, ask in asked.items():
        with pytest.raises(Unpriceable) as caught:
            ask()
        assert str(caught.value) == answer, name


@pytest.mark.parametrize(("event", "neighbours", "answer"), PRODUCT)
def test_the_verifier_proves_what_is_priced_and_refuses_what_is_not(
    event: Event, neighbours: Neighbours, answer: str
) -> None:
    """It may know less than the accountant, and then proves nothing; what it proves is never below the truth.

    It knows no add/remove price where the words "fixed size" occur, and none at all for those beside Poisson samples.
    At rate 1 it reads a capped sample as one, and has a price for that under add/remove.
    """
    line = json.dumps(to_json(event), sort_keys=True)
    fixed = "fixed_size" in line and (neighbours == "add_remove" or "poisson" in line)
    if answer == NESTED or fixed:
        with pytest.raises((ValueError, dp_accounting.UnsupportedEventError)):
            verify.epsilon(Counter({line: 3}), neighbours, DELTA)
        return
    found = epsilon(Repeated(event, 3), DELTA, neighbours="replace" if answer == NO_ADD_REMOVE else neighbours)
    low = 0.0 if answer == NO_ADD_REMOVE else found.lower
    assert low * (1 - 1e-6) <= verify.epsilon(Counter({line: 3}), neighbours, DELTA) < math.inf


# Unlike rounds in one history.

SCHEDULE = Composed(
    (
        Gaussian(12.0),
        *(Repeated(Sampled(Poisson(0.01 * step), Gaussian(3.0 - 0.25 * step)), 20) for step in range(1, 7)),
        Repeated(Sampled(Capped(0.02, 35, 1000), Gaussian(2.0)), 20),
    )
)


@pytest.mark.parametrize("neighbours", RELATIONS)
def test_rates_noises_and_caps_that_change_cost_what_dp_accounting_says(neighbours: Neighbours) -> None:
    """The library rounds losses up to its grid of 1e-3, so it is an upper bound of its own, loose by less than 1%."""
    of = dp_accounting.NeighboringRelation
    library = dp_accounting.pld.PLDAccountant(
        of.REPLACE_ONE if neighbours == "replace" else of.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3
    )
    library.compose(dp_event(SCHEDULE))
    reference = library.get_epsilon(DELTA)
    found = epsilon(SCHEDULE, DELTA, neighbours=neighbours)
    assert found.method == "PLD"
    assert found.lower <= reference
    assert found.upper == pytest.approx(reference, rel=0.01)
    assert found.lower > 0.98 * found.upper  # The cap is hardly ever reached: its lower end is tight here.


def test_a_history_that_grows_by_unlike_rounds_is_the_event_of_all_of_them() -> None:
    history, last = Spend(DELTA), 0.0
    for event in SCHEDULE.events:
        history.add(event)
        now = history.upper()
        assert last <= now < math.inf
        last = now
    whole = epsilon(SCHEDULE, DELTA)
    assert history.epsilon() == whole
    assert whole.upper <= last <= 1.06 * whole.upper


def test_a_curve_of_unlike_rounds_ends_at_epsilon_and_bounds_every_point() -> None:
    curve = epsilon_curve(SCHEDULE, 4, DELTA)
    assert curve == sorted(curve)
    assert curve[3] == epsilon(Repeated(SCHEDULE, 4), DELTA).upper
    assert epsilon(SCHEDULE, DELTA).lower <= curve[0]
