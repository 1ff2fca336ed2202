"""The audit of single examples: what audited silos' changes over a run show of the canaries in their batches.

The change is the sum over rounds and fits of what DP-SGD made of a model, minus that model: a function of what the
server sees of the silo, so canaries cannot show more of it than the silo's epsilon allows, whatever the settings. It
holds all steps alike where steps are plain. Momentum, weight decay and a strategy's pull weigh them unevenly, and then
canaries show less than they could.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from simulations.auditing import Record
    from simulations.running import ActiveRun

NO_STEPS = "single steps of a silo are not scored"


def claim_words(silo: int) -> str:
    """What an audited silo's scores are compared with."""
    return f"the claim for one row of silo {silo}"


def records(active: ActiveRun) -> dict[int, Record]:
    """Audited silo to its scores; silos whose change is zero, or no number, are left out."""
    import torch

    from client.planted import CHANGE
    from simulations.engines import setup

    settings, experiment = active.experiment.privacy.audit.examples, active.experiment
    silos = len(active.federation.train)
    store = setup.personal_store(experiment, active.model, active.store.personal, silos=silos)
    if not settings.canaries or store is None:
        return {}
    found = {}
    for silo in settings.silos:
        change = store.rows([silo], stacked=False).get(CHANGE, torch.zeros_like(active.model.start))
        if bool(change.any()) and bool(torch.isfinite(change).all()):
            found[silo] = _record(active, silo, change)
    return found


def _record(active: ActiveRun, silo: int, change: Tensor) -> Record:
    from client.planted import direction_seed
    from privacy.audit import score
    from simulations.auditing import Record
    from simulations.example_privacy import spent_by

    assert active.plan.example is not None  # The rules ask for privacy.example.
    assert active.silo_ledger is not None
    canaries = active.experiment.privacy.audit.examples.canaries
    return Record(
        final=score(change, seed=direction_seed(active.experiment.seed, silo), canaries=canaries),
        iterates=None,
        iterates_off=NO_STEPS,
        delta=active.plan.example.delta,
        claim=spent_by(active.plan.example, active.silo_ledger, silo).upper,
        compared_with=claim_words(silo),
        reference="start",
    )


def share(momentum: float, shrink: float, steps: int) -> float:
    """How much of the shift of canaries a sum of steps keeps that momentum and a pull weigh unevenly; 1 for plain ones.

    The change holds step t times a_t; canaries in it shift by sum a / |a|, and by steps^1/2 where all a are equal.

    Args:
        momentum: of the steps, from zero in every fit.
        shrink: step size times weight decay, or times a pull to where the fit began.
        steps: of one fit.
    """
    weights, moved, velocity = [], 0.0, 1.0
    for _ in range(steps):  # What one unit of gradient has become after one step, two, and so on.
        moved += velocity
        velocity = momentum * velocity - shrink * moved
        weights.append(moved)
    return sum(weights) / (math.sqrt(steps) * math.hypot(*weights))
