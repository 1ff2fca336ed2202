"""MR-MTL under privacy of single pupils: between training alone and averaging, by how much noise there is.

Source: Liu, Hu, Wu, Smith, "On Privacy and Personalization in Cross-Silo Federated Learning", NeurIPS 2022, arXiv
2206.07902. Schools (or authorities) are silos that predict a score by linear regression; each keeps epsilon for every
one of its pupils. Lambda 0 is local training and lambda = infinity is federated averaging, so both are ends of one
path. A seed draws the split into training, validation and test rows, the start and the noise; in a seed everything is
shared. Rate and lambda are chosen by a seed's validation rows, what is reported comes from its test rows. That choice
is not charged: the study asks what the methods can do, and its numbers are computed on private rows without noise.
"""

from __future__ import annotations

from simulations.studies.findings import Findings
from simulations.studies.mr_mtl_cells import DELTA, FEDAVG, LOCAL, NO_PRIVACY, SCHOOLS, Setting, errors, experiment
from simulations.studies.mr_mtl_relatives import relatives
from simulations.studies.mr_mtl_shown import Grid, claims, figures, rows, sheets
from simulations.studies.registry import Ask, study

LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.01, 0.03, 0.1, 0.3)
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)


@study("mr_mtl", about="Mean-regularised personal models between local training and averaging, by epsilon (schools)")
def mr_mtl(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    if ask.quick:
        grid = Grid(("exam",), (0.5, 2.0, 8.0), (LOCAL, 0.3, 1.0, 3.0, FEDAVG), (0.03, 0.1), ask.seeds)
    else:
        grid = Grid(tuple(SCHOOLS), (*EPSILONS, NO_PRIVACY), (LOCAL, *LAMBDAS, FEDAVG), RATES, ask.seeds)
    fetch(ask)
    grid = trained(ask, grid)
    others = [] if ask.quick else [relatives(ask, grid)]
    left = [
        "data: hsb82, chem97",
        "epsilon: 1, 4, and no privacy; relatives of MR-MTL",
        f"lambda: {LAMBDAS[0]:g} and {LAMBDAS[-1]:g}; rates {RATES[0]:g} and {RATES[-1]:g}",
    ]
    return Findings(
        criteria=[claim for data in grid.data for claim in claims(grid, data)],
        sheets=[*sheets(grid, {name: each.about for name, each in SCHOOLS.items()}), *(sheet for sheet, _ in others)],
        figures=figures(grid, {name: each.about for name, each in SCHOOLS.items()}),
        rows=[*rows(grid), *(row for _, found in others for row in found)],
        skipped=left if ask.quick else [],
        notes=[
            f"each silo's epsilon is for one of its pupils, at delta {DELTA:g}, by adding or removing one; a pupil in "
            "two silos would pay twice",
            "noise is simulated, and the choice of lambda and rate on validation rows is not charged: these are "
            "figures about methods, not a release",
        ],
    )


def fetch(ask: Ask) -> None:
    """Brings the data, where it is not there yet."""
    from simulations.data import carriers

    ask.say(f"data: {carriers.fetch('schools')}")


def trained(ask: Ask, grid: Grid) -> Grid:
    """The grid with the errors of every cell that is stable."""
    wanted = [(setting, lam, seed) for seed in grid.seeds for setting, lam in settings(grid)]
    cells = ask.cells.run([experiment(setting, seed) for setting, _, seed in wanted])
    found: dict[tuple[str, float, float, int], list[tuple[float, float]]] = {}
    for (setting, lam, seed), cell in zip(wanted, cells):
        place = (setting.data, setting.epsilon, lam, seed)
        found.setdefault(place, []).append(errors(cell))
    return grid.filled(found)


def settings(grid: Grid) -> list[tuple[Setting, float]]:
    """All cells of a seed with their lambda; where rate * lambda is above 1 the pull alone would overshoot the mean."""
    return [
        (Setting(data, epsilon, lam, rate), lam)
        for data in grid.data
        for epsilon in grid.epsilons
        for lam in grid.lambdas
        for rate in grid.rates
        if lam == FEDAVG or not rate * lam > 1
    ]
