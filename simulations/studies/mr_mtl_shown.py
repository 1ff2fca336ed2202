"""What the cells of the study `mr_mtl` show: the choice of lambda and rate, the claims, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies.findings import Criterion, Figure, Sheet, largest, mean, spread, told

Errors = tuple[float, float]
"""Mean squared error on validation and on test rows."""

Place = tuple[str, float, float, int]
"""Data, epsilon, lambda, seed."""


@dataclass(frozen=True)
class Grid:
    """The cells and their errors.

    Attributes:
        data: names of data sets.
        epsilons: rising; infinity for no privacy, which comes last.
        lambdas: the path, rising: its first is local training, its last (infinite) federated averaging.
        rates: of SGD.
        seeds: paired.
        found: the errors at the rate that a seed's validation rows choose, for every place.
    """

    data: tuple[str, ...]
    epsilons: tuple[float, ...]
    lambdas: tuple[float, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    found: Mapping[Place, Errors] = field(default_factory=dict)

    def filled(self, errors: Mapping[Place, Sequence[Errors]]) -> Grid:
        """With the rate chosen everywhere."""
        return replace(self, found={place: by_validation(pairs) for place, pairs in errors.items()})

    @property
    def private(self) -> tuple[float, ...]:
        """The finite epsilons."""
        return tuple(epsilon for epsilon in self.epsilons if math.isfinite(epsilon))

    def tests(self, data: str, epsilon: float, lam: float) -> list[float]:
        """Test errors of every seed at a place of the path."""
        return [self.found[data, epsilon, lam, seed][1] for seed in self.seeds]

    def chosen(self, data: str, epsilon: float, lambdas: Sequence[float] | None = None) -> list[float]:
        """Test errors of every seed at the lambda that its validation rows choose; of the whole path by default."""
        path = self.lambdas if lambdas is None else lambdas
        return [by_validation([self.found[data, epsilon, lam, seed] for lam in path])[1] for seed in self.seeds]

    def best(self, data: str, epsilon: float) -> int:
        """Which place of the path has the least validation error over all seeds."""

        def error(lam: float) -> float:
            return mean([self.found[data, epsilon, lam, seed][0] for seed in self.seeds])

        return min(range(len(self.lambdas)), key=lambda index: error(self.lambdas[index]))

    def wins(self, data: str, epsilon: float) -> float:
        """The part of seeds in which MR-MTL beats both ends; 0 where an end of the path is best over all seeds."""
        if not 0 < self.best(data, epsilon) < len(self.lambdas) - 1:
            return 0.0
        ends = zip(*(self.tests(data, epsilon, lam) for lam in (self.lambdas[0], self.lambdas[-1])))
        return mean([float(own < min(pair)) for own, pair in zip(self.chosen(data, epsilon), ends)])


def by_validation(pairs: Sequence[Errors]) -> Errors:
    """The errors of the setting that validation rows choose; test rows never have a say, the first of equals wins.

    >>> by_validation([(0.5, 0.9), (0.4, 0.8), (0.4, 0.1)])
    (0.4, 0.8)
    """
    return min(pairs, key=lambda pair: pair[0])


def claims(grid: Grid, data: str) -> list[Criterion]:
    """The specification's claims about one data set."""
    least = grid.private[0]
    wins = {epsilon: grid.wins(data, epsilon) for epsilon in grid.private}
    where = max(wins, key=lambda epsilon: wins[epsilon])
    gains = _paired(grid.tests(data, least, grid.lambdas[0]), grid.tests(data, least, grid.lambdas[-1]))
    found = [
        Criterion(
            name=f"{data}: part of seeds in which MR-MTL beats both, inner lambda, at epsilon {where:g}",
            spec_id="mr_mtl.1",
            measured=wins[where],
            threshold=0.8,
        ),
        Criterion(
            name=f"{data}: most grid steps that the best lambda rises as epsilon rises",
            spec_id="mr_mtl.2",
            measured=rise([grid.best(data, epsilon) for epsilon in grid.private]),
            threshold=1.0,
            relation="<=",
        ),
        Criterion(
            name=f"{data}: local less FedAvg at epsilon {least:g}, squared error",
            spec_id="mr_mtl.3",
            measured=mean(gains),
            threshold=0.0,
            spread=spread(gains),
        ),
        Criterion(
            name=f"{data}: MR-MTL less the better end, less one standard error, worst epsilon",
            spec_id="mr_mtl.goal.1",
            kind="goal",
            measured=largest([excess(grid, data, epsilon) for epsilon in grid.private]),
            threshold=0.0,
            relation="<=",
        ),
    ]
    return found + (_without_privacy(grid, data) if grid.private != grid.epsilons else [])


def _without_privacy(grid: Grid, data: str) -> list[Criterion]:
    own = grid.chosen(data, math.inf)
    found = []
    for name, lam in (("local", grid.lambdas[0]), ("FedAvg", grid.lambdas[-1])):
        gains = _paired(grid.tests(data, math.inf, lam), own)
        found.append(
            Criterion(
                name=f"{data}: {name} less MR-MTL without privacy, squared error",
                spec_id="mr_mtl.goal.2",
                kind="goal",
                measured=mean(gains),
                threshold=0.0,
                spread=spread(gains),
            )
        )
    return found


def rise(places: Sequence[int]) -> float:
    """The largest rise from a place to any later one; 0 for a sequence that never rises.

    >>> rise([4, 3, 4, 1]), rise([1, 2, 3]), rise([3])
    (1.0, 2.0, 0.0)
    """
    later = [after - before for index, before in enumerate(places) for after in places[index + 1 :]]
    return float(max([0, *later]))


def excess(grid: Grid, data: str, epsilon: float) -> float:
    """MR-MTL's mean error over that of the better end, less one standard error of the paired difference."""
    ends = [grid.tests(data, epsilon, lam) for lam in (grid.lambdas[0], grid.lambdas[-1])]
    differences = _paired(grid.chosen(data, epsilon), min(ends, key=mean))
    return mean(differences) - _standard_error(differences)


def _paired(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value - other for value, other in zip(values, others)]


def _standard_error(values: Sequence[float]) -> float:
    deviation = spread(values)
    return math.nan if deviation is None else deviation / math.sqrt(len(values))


def sheets(grid: Grid, about: Mapping[str, str]) -> list[Sheet]:
    """A table per data set, a row per epsilon."""
    inner = [lam for lam in grid.lambdas if 0 < lam < math.inf]
    header = ("epsilon", "local", "FedAvg", "MR-MTL", "lambda > 0, finite", "best lambda", "beats both")
    remark = (
        "Mean squared error on test rows, weighted by rows, mean ± standard deviation over seeds; lambda and rate by "
        "each seed's validation rows. Best lambda: by the mean over seeds. Beats both: part of seeds, 0 where an end "
        "of the path is best."
    )
    found = []
    for data in grid.data:
        body = [
            (
                _level(epsilon),
                told(grid.tests(data, epsilon, grid.lambdas[0]), 4),
                told(grid.tests(data, epsilon, grid.lambdas[-1]), 4),
                told(grid.chosen(data, epsilon), 4),
                told(grid.chosen(data, epsilon, inner), 4),
                _lam(grid.lambdas[grid.best(data, epsilon)]),
                f"{grid.wins(data, epsilon):.1f}",
            )
            for epsilon in grid.epsilons
        ]
        found.append(Sheet(f"{data}: {about[data]}", header, body, remark))
    return found


def figures(grid: Grid, about: Mapping[str, str]) -> list[Figure]:
    """Error against lambda, a curve per epsilon, with local training and averaging as the ends."""
    marks = [(float(index), _lam(lam)) for index, lam in enumerate(grid.lambdas)]
    found = []
    for data in grid.data:
        curves = [_curve(grid, data, epsilon) for epsilon in grid.epsilons]
        under = f"{about[data]}; mean ± standard error, {len(grid.seeds)} seeds"
        path, error = Axis("pull lambda", marks=marks), Axis("squared error, own test rows")
        drawn = [curve for curve in curves if curve.points]
        if drawn:
            picture = plot(f"mr-mtl-{data}", "Error by lambda", told=under, curves=drawn, x=path, y=error)
            found.append(Figure(f"mr_mtl_{data}", picture))
    return found


def _curve(grid: Grid, data: str, epsilon: float) -> Curve:
    points, widths = [], []
    for index, lam in enumerate(grid.lambdas):
        values = grid.tests(data, epsilon, lam)
        if math.isfinite(mean(values)):
            points.append((float(index), mean(values)))
            widths.append(_standard_error(values) if len(values) > 1 else 0.0)
    level = "no privacy" if not math.isfinite(epsilon) else f"epsilon {epsilon:g}"
    return Curve(level, points, widths, dots=True)


def rows(grid: Grid) -> list[dict[str, Any]]:
    """A row per place, at the rate that its validation rows choose."""
    return [
        {"data": data, "epsilon": _level(epsilon), "lambda": _lam(lam), "seed": seed, "validation": held, "test": test}
        for (data, epsilon, lam, seed), (held, test) in grid.found.items()
    ]


def _lam(lam: float) -> str:
    return {0.0: "local", math.inf: "FedAvg"}.get(lam, f"{lam:g}")


def _level(epsilon: float) -> str:
    return f"{epsilon:g}" if math.isfinite(epsilon) else "none"
