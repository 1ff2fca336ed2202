"""Other ways between training alone and averaging, at one epsilon and settings of their own that nobody tuned.

Fine-tuning shares the steps half and half; Ditto trains two models and pays twice as many steps, so its noise is
larger; IFCA pays for its choice of a cluster in every round. All of that is within the same epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulations.studies.findings import Sheet, told
from simulations.studies.mr_mtl_cells import ROUNDS, Setting, errors, experiment
from simulations.studies.mr_mtl_shown import Grid, by_validation
from simulations.studies.registry import Ask

EPSILON = 2.0
RELATIVES: Mapping[str, dict[str, Any]] = {
    "FedAvg, then fine-tuning": {"name": "finetune", "shared": ROUNDS // 2},
    "Ditto, lambda 1": {"name": "ditto", "lam": 1.0},
    "IFCA, 2 clusters": {"name": "ifca", "clusters": 2},
    "IFCA and MR-MTL, lambda 1": {"name": "ifca", "clusters": 2, "lam": 1.0},
}


def relatives(ask: Ask, grid: Grid) -> tuple[Sheet, list[dict[str, Any]]]:
    """Their table beside MR-MTL and its ends, and a row per data set, method and seed."""
    wanted = [
        (data, name, seed, rate)
        for data in grid.data
        for name in RELATIVES
        for seed in grid.seeds
        for rate in grid.rates
    ]
    experiments = []
    for data, name, seed, rate in wanted:
        own = experiment(Setting(data, EPSILON, RELATIVES[name], rate), seed)
        experiments.append(replace(own, name=f"{RELATIVES[name]['name']}.{own.name}"))
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for (data, name, seed, _), cell in zip(wanted, ask.cells.run(experiments)):
        found.setdefault((data, name, seed), []).append(errors(cell))
    tests = {place: by_validation(pairs)[1] for place, pairs in found.items()}
    ends = {"local": grid.lambdas[:1], "FedAvg": grid.lambdas[-1:], "MR-MTL": grid.lambdas}
    body = [(name, *(told(grid.chosen(data, EPSILON, path), 4) for data in grid.data)) for name, path in ends.items()]
    body += [
        (name, *(told([tests[data, name, seed] for seed in grid.seeds], 4) for data in grid.data)) for name in RELATIVES
    ]
    remark = (
        "Test error; rates by each seed's validation rows, lambda too for MR-MTL; the others' settings are as said."
    )
    rows = [{"data": data, "method": name, "seed": seed, "test": test} for (data, name, seed), test in tests.items()]
    return Sheet(f"Relatives at epsilon {EPSILON:g}", ("method", *grid.data), body, remark), rows
