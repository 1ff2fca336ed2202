"""Which noise errs least at the same epsilon: independent, amplified by secret cohorts, or correlated over rounds.

The error is that of the prefix sums of all rounds, as a model that adds up updates sees it: root mean square over
rounds, per coordinate and unit of clip norm, on sums over cohorts of equal expected size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privacy.accountant import Neighbours, noise_multiplier_for
from privacy.band import MOST_ROUNDS, independent_rmse, optimal, rmse
from privacy.events import Composed, Event, Gaussian, Poisson, Repeated, Sampled
from privacy.terms import Unpriceable
from server.sampler import PoissonCohort
from simulations.planning import Plan


@dataclass(frozen=True)
class Choice:
    """One kind of noise.

    Attributes:
        name: independent, amplified or banded.
        turns: rounds that a silo is in, at most or (amplified) on average.
        noise_multiplier: at the epsilon asked for; None where no price is known.
        rmse: root mean square error of prefix sums, per unit of clip norm; None likewise.
        needs: what the price counts on.
    """

    name: str
    turns: int
    noise_multiplier: float | None
    rmse: float | None
    needs: str


def choices(plan: Plan) -> tuple[Choice, ...]:
    """The three at the epsilon of a plan, for cohorts of its size; none where every silo is in every round."""
    rate = plan.sampler.expected / plan.sampler.population
    separation = min(round(1 / rate), plan.rounds)
    if plan.cost is None or plan.delta is None or not math.isfinite(plan.cost.upper) or separation == 1:
        return ()
    known = plan.noise_multiplier if plan.sampler == PoissonCohort(1 / separation, plan.sampler.population) else None
    return compare(
        plan.rounds,
        separation,
        epsilon=plan.cost.upper,
        delta=plan.delta,
        neighbours=plan.neighbours,
        before=plan.before,
        amplified=known,
    )


def compare(
    rounds: int,
    separation: int,
    *,
    epsilon: float,
    delta: float,
    neighbours: Neighbours = "add_remove",
    before: Sequence[Event] = (),
    amplified: float | None = None,
) -> tuple[Choice, ...]:
    """Independent, amplified and banded noise at one epsilon.

    Args:
        rounds: of the run.
        separation: a silo is in one of so many rounds.
        epsilon: of all rounds, and of what is `before` them.
        delta: of epsilon.
        neighbours: the relation that it is for.
        before: what else is released.
        amplified: the noise multiplier of secret cohorts, where it is known: it takes seconds to find.
    """

    def solve(schedule: Callable[[float], Event]) -> float | None:
        try:
            return noise_multiplier_for(
                epsilon, delta, lambda noise: Composed((*before, schedule(noise))), neighbours=neighbours
            )
        except Unpriceable:
            return None

    def choice(name: str, noise: float | None, error: float | None, needs: str) -> Choice:
        return Choice(name, turns, noise, None if noise is None or error is None else noise * error, needs)

    turns, alone = -(-rounds // separation), independent_rmse(rounds)
    unsampled = solve(lambda noise: Repeated(Gaussian(noise), turns))
    sampled = amplified or solve(lambda noise: Repeated(Sampled(Poisson(1 / separation), Gaussian(noise)), rounds))
    error = rmse(optimal(rounds, separation)) if rounds <= MOST_ROUNDS else None
    return (
        choice("independent", unsampled, alone, f"that a silo is in at most {turns} rounds, whichever they are"),
        choice("amplified", sampled, alone, f"Poisson cohorts of rate 1/{separation} that nobody ever learns"),
        choice("banded", unsampled, error, f"turns at least {separation} rounds apart, which the server enforces"),
    )


def recommended(found: Sequence[Choice]) -> str | None:
    """The name of the choice of least error; None where there is none."""
    known = [each for each in found if each.rmse is not None]
    return min(known, key=lambda each: each.rmse or 0.0).name if known else None
