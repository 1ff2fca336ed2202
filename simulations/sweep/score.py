"""A run's score on the silos' own validation rows: one noised mean over silos, charged before it is computed.

A choice that looks at private rows without noise has no price at all. Each silo gives its accuracy in [0, 1], so one
silo moves the sum by at most 1; the sum takes the way of every other release: clip, sum, noise, divide by a constant.
"""

from __future__ import annotations

import torch

from privacy.contributions import Contributions
from privacy.events import Gaussian
from privacy.ledger import Ledger
from privacy.mechanism import GaussianSum
from privacy.release import Collector
from server.loop import UNIT
from simulations.engines import setup
from simulations.running import ActiveRun
from strategies.tasks import evaluate

CHANNEL = "score"


def silo_score(active: ActiveRun, ledger: Ledger, *, run: int, noise: float) -> float:
    """The released mean accuracy of a run's served model over all silos; a silo without a validation row gives 0.

    Args:
        active: a run that has done its rounds.
        ledger: of the sweep.
        run: its number, which stands in the ledger for the round.
        noise: noise multiplier of the sum.
    """
    entry = ledger.reserve(run, Gaussian(noise), unit=UNIT, neighbours=active.plan.neighbours)
    population = active.link.population
    mechanism = {CHANNEL: GaussianSum(1.0, noise)}
    sums = Contributions(mechanism, {CHANNEL: 1})
    sums.add({CHANNEL: _accuracies(active).unsqueeze(1)}, 1.0, range(population))
    collector = Collector(mechanism, {CHANNEL: 1}, expected=population, population=population)
    collector.add(sums.partial(0))
    # Simulated noise follows from the seed: a resumed sweep then releases nothing new, and still pays again.
    release = collector.release(active.noise, stream=("noise",))
    ledger.commit(entry)
    return float(release.mean(CHANNEL)[0])


def _accuracies(active: ActiveRun) -> torch.Tensor:
    """Each silo's own accuracy, `(silos,)` in [0, 1]."""
    experiment, shards = active.experiment, active.federation.validation
    checkpoint = active.store.load()
    found = torch.zeros(active.link.population)
    if shards is None or checkpoint is None:
        return found
    model, layout = experiment.strategy.predictor(checkpoint.state), setup.layout(active.model)
    for silo in range(len(shards)):
        rows = shards.silo(silo)
        if len(rows.targets):
            measured = evaluate(experiment.task, active.model.module, layout, model, rows.features, rows.targets)
            found[silo] = measured["accuracy"]
    return found
