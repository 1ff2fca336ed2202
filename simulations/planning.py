"""What an experiment will draw, add as noise and cost, known before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from privacy.accountant import Bracket, Neighbours, epsilon, noise_multiplier_for
from privacy.events import Composed, Event, Gaussian, Repeated
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from server.loop import round_event
from server.sampler import CappedCohort, FixedCohort, FullCohort, PoissonCohort, Sampler
from simulations import standardization
from strategies.experiment import Cohort, Experiment
from strategies.schema import ConfigError
from strategies.standardize import Private

AUDITED = "delta"  # The channel that canaries take part in; what the model holds of it is measured.


@dataclass(frozen=True)
class Plan:
    """The privacy side of an experiment.

    Attributes:
        sampler: who is asked.
        mechanisms: channel to its mechanism.
        noise_multiplier: of all channels together; None without privacy.
        neighbours: the relation that epsilon is for.
        delta: of epsilon; None without privacy.
        event: what one round costs a silo.
        before: what is released before round 1 (moments to standardise with).
        cost: epsilon of all rounds; None without privacy.
    """

    sampler: Sampler
    mechanisms: dict[str, Mechanism]
    noise_multiplier: float | None
    neighbours: Neighbours
    delta: float | None
    event: Event
    before: tuple[Event, ...]
    cost: Bracket | None

    def after(self, rounds: int) -> Event:
        """All that is released up to the end of a round."""
        return Composed((*self.before, Repeated(self.event, rounds)))


def make_sampler(cohort: Cohort, population: int) -> Sampler:
    """The sampler of a `cohort` section for a number of silos."""
    match cohort.sampling:
        case "poisson":
            if cohort.cap is not None and cohort.cap < population:
                return CappedCohort(cohort.rate, cohort.cap, population)
            return PoissonCohort(cohort.rate, population)
        case "fixed":
            if cohort.size is None or cohort.size > population:
                raise ConfigError([f"cohort.size: must be <= the {population} silos of the data, got {cohort.size}"])
            return FixedCohort(cohort.size, population)
        case "all":
            return FullCohort(population)


def plan(experiment: Experiment, population: int) -> Plan:
    """Resolves sampler, noise and price of an experiment over `population` silos.

    Raises:
        ConfigError: delta is too large for so few silos, or nothing that canaries could be in.
        Unpriceable: nobody can prove a price for this pairing.
    """
    sampler = make_sampler(experiment.cohort, population)
    sizes = experiment.strategy.channels(1)
    channels = list(sizes)
    silo = experiment.privacy.silo
    if silo is None:
        exact: dict[str, Mechanism] = {name: ExactSum() for name in channels}
        event = round_event(experiment.strategy, exact, sampler)
        return Plan(sampler, exact, None, "add_remove", None, event, (), None)
    if not silo.allow_large_delta and not silo.delta * population < 1:
        limit = f"1 / silos = {1 / population:.4g}"
        raise ConfigError(
            [f"privacy.silo.delta: must be < {limit}, got {silo.delta}; lower it, or set allow_large_delta: true"]
        )

    if experiment.privacy.audit.canaries and sizes.get(AUDITED) != 1:
        what = f"strategy {experiment.strategy.name!r} sends no {AUDITED!r} as long as the model for canaries to be in"
        raise ConfigError([f"privacy.audit.canaries: {what}; use canaries: 0"])
    standardize = experiment.data.standardize
    before = (standardization.cost(standardize),) if isinstance(standardize, Private) else ()
    if experiment.budget is not None:  # Nothing is released that the budget cannot pay.
        alone = epsilon(Composed(before), silo.delta, neighbours=silo.neighbours).upper
        if alone > experiment.budget.epsilon:
            raise ConfigError(
                [
                    f"budget.epsilon: {experiment.budget.epsilon} is less than the {alone:.4g} that data.standardize "
                    "costs alone; raise it, or the noise_multiplier there"
                ]
            )

    def schedule(noise: float) -> Event:
        return Composed((*before, Repeated(sampler.event(Gaussian(noise)), experiment.rounds)))

    noise = silo.noise_multiplier
    if noise is None:
        assert silo.epsilon is not None  # The schema asks for one of the two.
        noise = noise_multiplier_for(silo.epsilon, silo.delta, schedule, neighbours=silo.neighbours)
    # Channels on one sample cost like one Gaussian of (sum z^-2)^-1/2: each gets its share of the same price.
    share = GaussianSum(silo.clip_norm, noise * math.sqrt(len(channels)))
    mechanisms: dict[str, Mechanism] = dict.fromkeys(channels, share)
    event = round_event(experiment.strategy, mechanisms, sampler)
    unpriced = Plan(sampler, mechanisms, noise, silo.neighbours, silo.delta, event, before, None)
    return replace(unpriced, cost=epsilon(unpriced.after(experiment.rounds), silo.delta, neighbours=silo.neighbours))
