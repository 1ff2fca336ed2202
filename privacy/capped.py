"""Poisson cohorts cut down to a cap: how often the cap is reached, and what being asked then comes to.

If more than `cap` units are drawn, a uniformly random `cap` of them remain. Let x be one unit and look at how many of
the others were drawn, which says the same of both neighbours. While these are fewer than `cap`, x is in the cohort by
its own coin, as without a cap. Otherwise the cohort without x is a uniformly random `cap` of all others, however many
were drawn, and x is in it with probability `kept`, in the place of one of them: the sum then moves from y to x, by up
to two clip norms, and with x replaced or zeroed from x to x' while y bounds both. That is a Poisson sample of rate
`kept` whose unit is replaced, at half the noise. To reveal which of the two cases it is can only cost more.

Source: arXiv 2508.15089, as dp-accounting 0.6 prices its `TruncatedSubsampledGaussianDpEvent`. For `add_remove` that is
more than need be, as the second case is a unit removed at half the noise: by 0.4% (cap 20) to 8% (cap 10) of epsilon
where 1000 rounds draw from 1000 units at rate .01 and noise 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from privacy.events import Capped


@dataclass(frozen=True)
class Crowding:
    """What a cap does to the chances of a unit.

    Attributes:
        spill: probability that at least `cap` others are drawn.
        kept: probability that the unit is in the cohort then.
        rate: probability that it is in the cohort at all.
    """

    spill: float
    kept: float
    rate: float


def crowding(sampler: Capped) -> Crowding:
    """The chances under a cap, from binomial tails; `spill` is 0 where the cap is out of reach.

    >>> crowding(Capped(0.5, cap=1, population=2))
    Crowding(spill=0.5, kept=0.25, rate=0.375)
    """
    rate, cap, population = sampler.rate, sampler.cap, sampler.population
    spill = _at_least(cap, population - 1, rate)
    if spill == 0:
        return Crowding(0.0, 0.0, rate)
    # Whoever is drawn with `cap` others or more is one of more than `cap`, and all of those are as likely to stay.
    both = _at_least(cap + 1, population, rate) * cap / population
    kept = min(both / spill, rate) if both > 0 else rate  # Nobody is in a cohort undrawn: a bound where both underflow.
    return Crowding(spill, kept, rate * (1 - spill) + spill * kept)


def _at_least(count: int, draws: int, rate: float) -> float:
    """P[Binomial(draws, rate) >= count]; the incomplete beta function keeps the digits of small tails."""
    if count > draws:
        return 0.0
    from scipy.special import betainc

    return float(betainc(count, draws - count + 1, rate))
