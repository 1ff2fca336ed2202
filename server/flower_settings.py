"""The settings of a strategy in a Flower project, judged by the rules that experiments are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from privacy.events import Event
from privacy.mechanism import ExactSum, GaussianSum, Mechanism
from privacy.noise import NoiseSource, SimulatedNoise, SystemNoise
from server.loop import round_event
from server.sampler import CappedCohort, FixedCohort, FullCohort, PoissonCohort
from strategies import rules
from strategies.base import Strategy
from strategies.codec import decode, plain
from strategies.experiment import Experiment
from strategies.flower_silo import misfit
from strategies.registry import STRATEGIES
from strategies.schema import ConfigError

Sampler = PoissonCohort | CappedCohort | FixedCohort | FullCohort  # Turns need a round loop that keeps them apart.

# A user of Flower gives keyword arguments, and has no YAML sections.
SPELLED = {"privacy.silo.": "", "privacy.": "", "cohort.": "", "data.": "", "budget.epsilon": "budget"}


@dataclass(frozen=True)
class Rounds:
    """What all rounds have in common.

    Attributes:
        strategy: whose server half runs.
        sampler: who is asked.
        mechanisms: channel to its mechanism.
        event: what a round costs a silo.
        noise: where noise comes from.
        private: whether there is any.
    """

    strategy: Strategy
    sampler: Sampler
    mechanisms: dict[str, Mechanism]
    event: Event
    noise: NoiseSource
    private: bool


def rounds(
    strategy: Strategy,
    *,
    silos: int,
    rate: float,
    cap: int | None,
    size: int | None,
    seed: int,
    clip_norm: float | None,
    noise_multiplier: float | None,
    delta: float | None,
    neighbours: str,
    allow_large_delta: bool,
    budget: float | None,
    noise: Literal["system", "simulated"] | None,
) -> Rounds:
    """Checks settings, each as `FlowerStrategy` describes it, and resolves sampler, noise and price.

    Raises:
        ConfigError: all that is wrong with them, a line each.
        Unpriceable: nobody can prove a price for this pairing.
    """
    private = clip_norm is not None or noise_multiplier is not None or delta is not None
    noise = noise or ("system" if private else "simulated")
    keys: dict[str, Any] = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier, "delta": delta}
    given = {name: value for name, value in keys.items() if value is not None}
    section = {**given, "neighbours": neighbours, "allow_large_delta": allow_large_delta}
    fixed = {"sampling": "fixed", "size": size}
    experiment: dict[str, Any] = {
        "rounds": 1,
        "seed": seed,
        "task": "logistic",  # The user's own, in truth: no rule below looks at it.
        "data": {"name": "flower", "silos": silos},
        "cohort": {"sampling": "poisson", "rate": rate, "cap": cap} if size is None else {**fixed, "rate": rate},
        "strategy": _plain(strategy),
        "privacy": {"noise": noise, "silo": section if private else None},
        "budget": {"epsilon": budget, "delta": delta} if budget is not None else None,
    }
    try:
        found = decode(Experiment, experiment)
    except ConfigError as error:
        raise ConfigError([_spelled(line) for line in error.problems]) from None
    problems = [*rules.problems(found), *strategy.misfits(found, silos), *_own(strategy, clip_norm, private=private)]
    if problems:
        raise ConfigError([_spelled(line) for line in dict.fromkeys(problems)])
    sampler, mechanism = _sampler(rate, cap, size, silos), ExactSum()
    source = SystemNoise() if noise == "system" else SimulatedNoise(seed)
    mechanisms: dict[str, Mechanism] = dict.fromkeys(strategy.channels(1), mechanism)
    if clip_norm is not None and noise_multiplier is not None:
        mechanisms = dict.fromkeys(strategy.channels(1), GaussianSum(clip_norm, noise_multiplier))
    event = round_event(strategy, mechanisms, sampler)
    return Rounds(strategy, sampler, mechanisms, event, source, private)


def _own(strategy: Strategy, clip_norm: object, *, private: bool) -> list[str]:
    """What cannot work in a plain Flower project, or has no price there."""
    problem = misfit(strategy)
    found = [problem] if problem is not None else []
    if private and not isinstance(clip_norm, int | float):
        found += ["clip_norm: adapting it takes votes, which a plain Flower project has no place for; give a number"]
    if private and strategy.reveals:
        found += [
            f"strategy {strategy.name!r} sees single updates, so no noise protects a silo; remove noise_multiplier"
        ]
    if private and len(strategy.channels(1)) != 1:
        found += [f"strategy {strategy.name!r} sends {sorted(strategy.channels(1))}; noise is for one channel here"]
    return found


def _plain(strategy: Strategy) -> Any:
    try:
        return plain(strategy, lambda: STRATEGIES)
    except ValueError as error:
        raise ConfigError([f"strategy: {error}"]) from error


def _sampler(rate: float, cap: int | None, size: int | None, silos: int) -> Sampler:
    if size is not None:
        return FixedCohort(size, silos)
    if cap is not None and cap < silos:
        return CappedCohort(rate, cap, silos)
    return FullCohort(silos) if rate == 1 else PoissonCohort(rate, silos)


def _spelled(line: str) -> str:
    for name, short in SPELLED.items():
        line = line.replace(name, short)
    return line
