"""Noise of the silos' own: its plan, and what the ledger says that it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.accountant import Bracket, Neighbours, epsilon, noise_multiplier_for
from privacy.chain import Chain
from privacy.events import Event, Gaussian, Repeated
from privacy.local import LOCAL, LocalNoise, counts
from privacy.mechanism import GaussianSum, joint_event
from privacy.noise import NoiseSource, SimulatedNoise, SystemNoise
from privacy.spending import Spending, worst
from server.local import LocalCharge
from strategies.experiment import Experiment
from strategies.schema import ConfigError


@dataclass(frozen=True)
class LocalPlan:
    """Noise and price of single updates.

    Attributes:
        mechanisms: channel to the silo's own mechanism.
        noise_multiplier: of all channels together.
        event: what an update costs.
        neighbours: the relation of its price.
        delta: of its epsilon.
        budget: epsilon that no silo may pass, or None.
        cost: epsilon of a silo that is asked in every round.
    """

    mechanisms: Mapping[str, GaussianSum]
    noise_multiplier: float
    event: Event
    neighbours: Neighbours
    delta: float
    budget: float | None
    cost: Bracket

    @property
    def charge(self) -> LocalCharge:
        """What the round loop needs of it."""
        return LocalCharge(self.event, self.neighbours, self.delta, self.budget)


def local_plan(experiment: Experiment, *, population: int = 0) -> LocalPlan | None:
    """The plan of an experiment's `privacy.local`; None without it.

    Raises:
        ConfigError: delta is too large for so many silos.
    """
    local = experiment.privacy.local
    if local is None:
        return None
    if not local.delta * population < 1:
        limit = f"1 / silos = {1 / population:.4g}"
        raise ConfigError([f"privacy.local.delta: must be < {limit}, got {local.delta}; lower it"])
    channels, rounds, noise = list(experiment.strategy.channels(1)), experiment.rounds, local.noise_multiplier
    if noise is None:
        assert local.epsilon is not None  # The schema asks for one of the two.
        noise = noise_multiplier_for(
            local.epsilon, local.delta, lambda noise: Repeated(Gaussian(noise), rounds), neighbours=local.neighbours
        )
    # All channels are one update: an even part of the price for each.
    mechanisms = dict.fromkeys(channels, GaussianSum(local.clip_norm, noise * math.sqrt(len(channels))))
    event = joint_event(mechanisms)
    cost = epsilon(Repeated(event, rounds), local.delta, neighbours=local.neighbours)
    return LocalPlan(mechanisms, noise, event, local.neighbours, local.delta, local.budget, cost)


def noise_source(experiment: Experiment) -> NoiseSource:
    """Where all noise of a run comes from, the server's and the silos'."""
    match experiment.privacy.noise:
        case "simulated":
            return SimulatedNoise(experiment.seed)
        case "system" | None:  # An experiment knows which; if one did not, no seed may tell its noise.
            return SystemNoise()


def protection(experiment: Experiment) -> LocalNoise | None:
    """What every silo does to its update before it leaves, in whatever process it is; None where nothing is."""
    planned = local_plan(experiment)
    return None if planned is None else LocalNoise(planned.mechanisms, noise_source(experiment))


def described(plan: LocalPlan, ledger: Chain, population: int) -> dict[str, Any]:
    """What the ledger says that the server may have learned of a silo, as result.json holds it."""
    entries = [entry for entry in ledger.counted() if entry.unit == LOCAL]
    spent = worst(Spending(entries), plan.delta, neighbours=plan.neighbours)
    asked = counts(entries, population)
    return {
        "epsilon_lower": spent.lower if math.isfinite(spent.lower) else None,
        "epsilon_upper": spent.upper if math.isfinite(spent.upper) else None,
        "delta": plan.delta,
        "neighbours": plan.neighbours,
        "method": spent.method,
        "note": spent.note,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": next(iter(plan.mechanisms.values())).clip_norm,
        "most_charges": max(asked, default=0),
        "charges": {str(times): silos for times, silos in sorted(Counter(asked).items())},
        "charged_lines": len(entries),
    }
