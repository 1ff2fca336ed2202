"""What an experiment will draw, add as noise and cost, known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from privacy.accountant import Bracket, Neighbours, epsilon, noise_multiplier_for
from privacy.band import optimal
from privacy.banded import MOST_NUMBERS, BandedSum
from privacy.events import Composed, Event, Gaussian, Repeated
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from server import turns
from server.loop import round_event
from server.sampler import CappedCohort, CyclicCohort, FixedCohort, FullCohort, PoissonCohort, Sampler
from simulations import channels, example_privacy, standardization
from simulations.example_privacy import ExamplePlan
from simulations.local_privacy import LocalPlan, local_plan
from strategies.experiment import Cohort, Experiment, SiloPrivacy
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
        rounds: of the run.
        event: what one round costs a silo; where silos take turns, one that pays for its cycle.
        before: what is released before round 1 (moments to standardise with).
        cost: epsilon of all rounds; None without privacy.
        example: noise and price of single examples; None without example-level privacy.
        local: noise and price of single updates, where silos noise their own.
    """

    sampler: Sampler
    mechanisms: dict[str, Mechanism]
    noise_multiplier: float | None
    neighbours: Neighbours
    delta: float | None
    rounds: int
    event: Event
    before: tuple[Event, ...]
    cost: Bracket | None
    example: ExamplePlan | None = None
    local: LocalPlan | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        """All that the ledger of the run may hold."""
        return (*turns.events(self.event), *self.before)

    @property
    def matrix(self) -> dict[str, str]:
        """What a resumed run must agree on besides experiment and data: the matrix of correlated noise."""
        found = {each.band.digest for each in self.mechanisms.values() if isinstance(each, BandedSum)}
        return {"matrix of the noise": ", ".join(sorted(found))} if found else {}

    def after(self, rounds: int) -> Event:
        """All that is released up to the end of a round; rounds above those of the run are attempts at it again."""
        paid = turns.charged(self.sampler, min(rounds, self.rounds)) + max(0, rounds - self.rounds)
        return Composed((*self.before, Repeated(self.event, paid)))


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
        case "cyclic":
            if cohort.separation is None or cohort.separation > population:
                found = f"must be <= the {population} silos of the data, got {cohort.separation}"
                raise ConfigError([f"cohort.separation: {found}"])
            return CyclicCohort(cohort.separation, population)


def plan(experiment: Experiment, population: int) -> Plan:
    """Resolves sampler, noise and price of an experiment over `population` silos.

    Raises:
        ConfigError: delta is too large for so few silos, nothing that canaries could be in, or a list of another length
            than silos.
        Unpriceable: nobody can prove a price for this pairing.
    """
    sampler = make_sampler(experiment.cohort, population)
    sizes = experiment.strategy.channels(1)
    silo, example = experiment.privacy.silo, example_privacy.plan(experiment, population)
    local = local_plan(experiment, population=population)
    if silo is None:
        exact: dict[str, Mechanism] = {name: ExactSum() for name in sizes}
        event = round_event(experiment.strategy, exact, sampler)
        rounds = experiment.rounds
        return Plan(sampler, exact, None, "add_remove", None, rounds, event, (), None, example, local)
    standardize = experiment.data.standardize
    before = (standardization.cost(standardize),) if isinstance(standardize, Private) else ()
    _require(experiment, silo, population, audited=sizes.get(AUDITED), before=before)

    def schedule(noise: float) -> Event:
        paid = turns.charged(sampler, experiment.rounds)
        return Composed((*before, Repeated(sampler.event(Gaussian(noise)), paid)))

    noise = silo.noise_multiplier
    if noise is None:
        assert silo.epsilon is not None  # The schema asks for one of the two.
        noise = noise_multiplier_for(silo.epsilon, silo.delta, schedule, neighbours=silo.neighbours)
    mechanisms = _correlated(
        experiment, sampler, channels.mechanisms(silo, noise, list(sizes), voters=sampler.expected)
    )
    event, rounds = round_event(experiment.strategy, mechanisms, sampler), experiment.rounds
    unpriced = Plan(
        sampler, mechanisms, noise, silo.neighbours, silo.delta, rounds, event, before, None, example, local
    )
    return replace(unpriced, cost=epsilon(unpriced.after(experiment.rounds), silo.delta, neighbours=silo.neighbours))


def _require(
    experiment: Experiment, silo: SiloPrivacy, population: int, *, audited: int | None, before: tuple[Event, ...]
) -> None:
    """Refuses what no rule between keys can see: it takes the number of silos, the strategy or a price.

    Args:
        experiment: to be planned.
        silo: its section.
        population: silos of the data.
        audited: length of the audited channel of a model of one parameter; None where there is no such channel.
        before: what is released before round 1.
    """
    if not silo.allow_large_delta and not silo.delta * population < 1:
        limit = f"1 / silos = {1 / population:.4g}"
        raise ConfigError(
            [f"privacy.silo.delta: must be < {limit}, got {silo.delta}; lower it, or set allow_large_delta: true"]
        )

    if experiment.privacy.audit.canaries and audited != 1:
        what = f"strategy {experiment.strategy.name!r} sends no {AUDITED!r} as long as the model for canaries to be in"
        raise ConfigError([f"privacy.audit.canaries: {what}; use canaries: 0"])
    if experiment.budget is not None and experiment.budget.epsilon is not None:  # It must pay for what is released.
        alone = epsilon(Composed(before), silo.delta, neighbours=silo.neighbours).upper
        if alone > experiment.budget.epsilon:
            raise ConfigError(
                [
                    f"budget.epsilon: {experiment.budget.epsilon} is less than the {alone:.4g} that data.standardize "
                    "costs alone; raise it, or the noise_multiplier there"
                ]
            )


def _correlated(experiment: Experiment, sampler: Sampler, mechanisms: dict[str, Mechanism]) -> dict[str, Mechanism]:
    """The mechanisms with noise that is correlated over rounds, where the experiment asks for it.

    It remembers, so each channel has its own; and it is in units of one clip norm, so that may not change.
    """
    assert experiment.privacy.silo is not None
    if experiment.privacy.silo.mechanism == "gaussian":
        return mechanisms
    if not isinstance(sampler, CyclicCohort):  # The schema asks for it, too.
        raise ConfigError(["privacy.silo.mechanism: banded noise has a price only with cohort.sampling: cyclic"])
    if channels.adaptive(mechanisms):
        raise ConfigError(["privacy.silo.clip_norm: banded noise is for one clip norm; give a number"])
    band = optimal(experiment.rounds, sampler.separation)
    return {
        name: BandedSum(each.clip_norm, each.noise_multiplier, band) if isinstance(each, GaussianSum) else each
        for name, each in mechanisms.items()
    }


def require_memory(plan: Plan, sizes: Mapping[str, int]) -> None:
    """Refuses correlated noise that takes more than `MOST_NUMBERS`; `sizes` is of the vectors of each channel.

    Raises:
        ConfigError: too much.
    """
    need = remembered(plan, sizes)
    if not need <= MOST_NUMBERS:
        raise ConfigError(
            [
                f"privacy.silo.mechanism: banded keeps (separation - 1) x parameters = {need:,} numbers, above the "
                f"limit of {MOST_NUMBERS:,}; lower cohort.separation, or use mechanism: gaussian"
            ]
        )


def remembered(plan: Plan, sizes: Mapping[str, int]) -> int:
    """Numbers, of 8 bytes, of the noise of earlier rounds that the next one needs."""
    mechanisms = [(plan.mechanisms[name], size) for name, size in sizes.items()]
    return sum((each.band.bands - 1) * size for each, size in mechanisms if isinstance(each, BandedSum))
