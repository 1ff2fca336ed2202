"""A sweep that was drawn: its runs, their plans and its price, known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from client.tables import Table
from privacy.events import Event
from simulations.planning import Plan
from simulations.preparing import prepare
from simulations.sweep.plan import Drawn, Price, Spec, draw, event, experiments, grid, price
from strategies.experiment import Experiment
from strategies.loading import parse
from strategies.schema import ConfigError


@dataclass(frozen=True)
class Sweep:
    """A sweep that was drawn.

    Attributes:
        spec: what was asked.
        config: the experiment file's values, `--set` applied.
        points: the grid, each point as overrides.
        experiments: of each point.
        plans: of each point.
        drawn: the runs.
        dataset: fingerprint of the data.
    """

    spec: Spec
    config: Mapping[str, Any]
    points: Sequence[tuple[str, ...]]
    experiments: Sequence[Experiment]
    plans: Sequence[Plan]
    drawn: Sequence[Drawn]
    dataset: str

    @property
    def private(self) -> bool:
        """Whether runs promise anything."""
        return self.plans[0].delta is not None

    def experiment(self, run: Drawn) -> Experiment:
        """The experiment of one run."""
        return replace(self.experiments[run.point], seed=run.seed)

    def price(self, runs: Sequence[Mapping[str, Any]] = ()) -> Price | None:
        """What the sweep costs; charges of broken-off attempts, once known, count too. None without privacy."""
        if self.plans[0].delta is None:
            return None
        charged = [int(run.get("charges", 0)) for run in runs] or [0] * len(self.drawn)
        scores = [int(run.get("scores", 1)) for run in runs] or [1] * len(self.drawn)
        costs = [self._event(run.point, rounds, times) for run, rounds, times in zip(self.drawn, charged, scores)]
        worst = []
        for point in range(len(self.points)):
            here = [number for number, run in enumerate(self.drawn) if run.point == point]
            rounds = max((charged[number] for number in here), default=0)
            worst.append(self._event(point, rounds, max((scores[number] for number in here), default=1)))
        return price(self.spec, worst, costs, delta=self.plans[0].delta, neighbours=self.plans[0].neighbours)

    def _event(self, point: int, charged: int, scores: int) -> Event:
        planned = self.experiments[point].rounds
        return event(self.plans[point], self.spec, rounds=max(planned, charged), scores=max(1, scores))


def prepared(spec: Spec, config: Mapping[str, Any], *, table: Table | None = None) -> Sweep:
    """Draws a sweep; nothing is trained or written.

    Raises:
        ConfigError: a grid, a choice or a budget that does not fit the experiment; one line each.
        DataError: data that cannot be had.
        Unpriceable: a point of the grid that nobody has a price for.
    """
    spec.law  # noqa: B018  Refuses a mean or eta that it cannot have, before any work.
    base, points = parse(config), grid(spec.over)
    found = experiments(config, points)
    drawn = draw(spec, seed=base.seed, points=len(points))
    first = prepare(found[0], table=table)
    plans = [first.plan]
    plans += [prepare(point, table=table, federation=first.federation).plan for point in found[1:]]
    if spec.select is None:
        spec = replace(spec, select="mse" if first.federation.kind == "regression" else "accuracy")
    sweep = Sweep(spec, config, points, found, plans, drawn, first.federation.fingerprint)
    if any((plan.delta is None) != (plans[0].delta is None) for plan in plans):
        raise ConfigError(["--over: some settings have privacy.silo and others not; a choice among them has no price"])
    _fits(sweep, base, public=first.federation.public_test is not None, kind=first.federation.kind)
    return sweep


def _fits(sweep: Sweep, base: Experiment, *, public: bool, kind: str) -> None:
    """Refuses a choice that cannot be made, or that costs more than the experiment's budget."""
    spec, problems = sweep.spec, []
    if spec.select == ("accuracy" if kind == "regression" else "mse"):
        problems.append(
            f"--select {spec.select}: this data is {kind}; use {'mse' if kind == 'regression' else 'accuracy'}"
        )
    if spec.on == "public" and not public:
        problems.append("--on public: there are no public rows (data.public_test: 0); add some, or choose --on silos")
    if spec.on == "silos" and spec.select != "accuracy":
        problems.append(f"--select {spec.select}: only accuracy has a bound, which the noise of --on silos needs")
    if spec.on == "silos" and base.strategy.personal(1):
        problems.append(
            f"--on silos: scores the server's model, but {base.strategy.name} serves each silo its own; "
            "choose --on public, or another strategy"
        )
    if spec.on == "silos" and not base.data.validation:
        problems.append("--on silos: the silos hold no rows to choose with; set data.validation above 0")
    if (spec.score_noise is not None) != (spec.on == "silos"):
        need = (
            "missing; --on silos releases a noised score of every run" if spec.on == "silos" else "only for --on silos"
        )
        problems.append(f"--score-noise: {need}")
    if spec.score_noise is not None and not sweep.private:
        problems.append("--on silos: the runs have no privacy.silo, so there is nothing to charge; choose --on public")
    if any(each.privacy.local is not None for each in (base, *sweep.experiments)):
        problems.append("privacy.local: the choice of a sweep has no price here against the server; leave it out")
    if any(each.privacy.example is not None for each in (base, *sweep.experiments)):
        problems.append("privacy.example: the choice of a sweep has no price here for examples; leave it out")
    if any(each.metrics.inline for each in (base, *sweep.experiments)):
        problems.append("metrics.inline: is of a single run; leave it out, and use: confide metrics serve")
    if problems:
        raise ConfigError(problems)
    cost = sweep.price()
    limit = base.budget.epsilon if base.budget is not None else None
    if cost is not None and limit is not None and not cost.epsilon_upper <= limit:
        raise ConfigError([f"budget.epsilon: {limit:g} is less than the {cost.epsilon_upper:.4g} that the sweep costs"])
