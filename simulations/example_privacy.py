"""Example-level privacy of a run: each silo's noise, its price, and what the silos' own ledger says was spent.

A silo pays for the rounds that it is asked in, and for nothing else. That is the full price of its steps: cohorts
amplify nothing here, because the server knows who was asked. Noise is solved for a silo that is asked in every round,
so a silo that is drawn less often spends less than its epsilon.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from privacy.accountant import Bracket, epsilon, noise_multiplier_for, upper_epsilon
from privacy.events import Composed, Event, Repeated
from privacy.ledger import Charge, Ledger
from privacy.spending import History, event_of, history
from privacy.steps import NoisySteps
from strategies.experiment import ExamplePrivacy, Experiment
from strategies.rules_audit import absent
from strategies.rules_example import uneven, uneven_budget
from strategies.schema import ConfigError

UNIT = "example"
NEIGHBOURS: Final = "add_remove"


@dataclass(frozen=True)
class ExamplePlan:
    """The example-level side of a plan.

    Attributes:
        silos: clip, noise, divisor and rate of every silo.
        steps: noisy steps of a silo in a round in which it is asked.
        rounds: of the run.
        delta: of epsilon.
        budgets: epsilon that each silo's examples may spend in all runs; empty without such a budget.
        queries: what else a silo that is asked is asked of its rows in a round.
    """

    silos: tuple[NoisySteps, ...]
    steps: int
    rounds: int
    delta: float
    budgets: tuple[float, ...] = ()
    queries: tuple[Event, ...] = ()

    @property
    def events(self) -> tuple[Event, ...]:
        """What a round costs an example of each silo that is asked."""
        return tuple(_beside(silo.event(self.steps), self.queries) for silo in self.silos)

    @property
    def charges(self) -> list[Charge]:
        """All that the silos' ledger can have reserved, for a line of it that a crash tore."""
        return [Charge(UNIT, NEIGHBOURS, event) for event in dict.fromkeys(self.events)]

    @property
    def noise(self) -> tuple[float, ...]:
        """Every silo's noise multiplier."""
        return tuple(silo.noise_multiplier for silo in self.silos)

    def after(self, rounds: int) -> Bracket:
        """The worst silo's epsilon after so many rounds, asked in all of them."""
        histories = {frozenset({(event, rounds)}) for event in self.events}
        return max((_price(each, self.delta) for each in histories), key=lambda found: found.upper)

    @property
    def lasts(self) -> int | None:
        """Rounds of this run alone in which every silo can be asked within its budget; None without a budget."""
        least: list[int] = []
        for event, budget in set(zip(self.events, self.budgets)):

            def cost(rounds: int, event: Event = event) -> float:
                return upper_epsilon(Repeated(event, rounds), self.delta, neighbours=NEIGHBOURS)

            least.append(bisect_right(range(1, self.rounds + 1), budget, key=cost))
        return min(least, default=None)


def plan(experiment: Experiment, population: int) -> ExamplePlan | None:
    """Solves the noise of every silo; None without example-level privacy.

    Raises:
        ConfigError: a list that has neither one number nor one per silo, or an audited silo that is not there.
        Unpriceable: no noise keeps an epsilon.
    """
    example = experiment.privacy.example
    if example is None:
        return None
    problems = [
        *uneven(example, population),
        *uneven_budget(experiment.budget, population),
        *absent(experiment.privacy, population),
    ]
    if problems:
        raise ConfigError(problems)
    assert experiment.train.steps is not None  # The rules ask for it.
    steps = experiment.train.steps * experiment.strategy.fits
    rows, queries = (
        _spread(example.rows, population),
        tuple(each.event for each in experiment.strategy.queries.values()),
    )
    if example.noise_multiplier is not None:
        noise = _spread(example.noise_multiplier, population)
    else:
        assert example.epsilon is not None  # The rules ask for one of the two.
        wanted = list(zip(_spread(example.epsilon, population), rows))
        asked = tuple(Repeated(query, experiment.rounds) for query in queries)
        _require_room(asked, min(example.epsilon), example.delta)
        least = {each: _least_noise(example, *each, steps * experiment.rounds, asked) for each in set(wanted)}
        noise = tuple(least[each] for each in wanted)
    silos = noisy_steps(example, noise)
    limit = experiment.budget.example if experiment.budget is not None else None
    budgets = () if limit is None else _spread(limit.epsilon, population)
    return ExamplePlan(silos, steps, experiment.rounds, example.delta, budgets, queries)


def noisy_steps(example: ExamplePrivacy, noise: Sequence[float]) -> tuple[NoisySteps, ...]:
    """Every silo's steps, from every silo's noise multiplier."""
    rows = _spread(example.rows, len(noise))
    return tuple(NoisySteps(example.clip_norm, own, example.batch, held) for own, held in zip(noise, rows))


def claimed(plan: ExamplePlan, ledger: Ledger) -> dict[str, Any]:
    """What result.json says of examples, recomputed from the silos' ledger: the worst silo, and the spread of all."""
    spent = ledger.spent_by(UNIT, range(len(plan.silos)))
    return {
        **priced([history(spent[silo]) for silo in range(len(plan.silos))], plan.delta),
        "noise_multiplier": {"least": min(plan.noise), "most": max(plan.noise)},
        "clip_norm": plan.silos[0].clip_norm,
        "batch": plan.silos[0].batch,
    }


def priced(histories: Sequence[History], delta: float) -> dict[str, Any]:
    """What follows from the silos' histories alone, one for each silo."""
    prices = {each: _price(each, delta) for each in set(histories)}
    worst = max(prices.values(), key=lambda found: found.upper)
    upper = [prices[each].upper for each in histories]
    return {
        "epsilon_lower": _number(worst.lower),
        "epsilon_upper": _number(worst.upper),
        "delta": delta,
        "neighbours": worst.neighbours,
        "method": worst.method,
        "note": worst.note,
        "steps": max((_steps(each) for each in histories), default=0),
        "per_silo": _percentiles(upper) if len(upper) > 1 and np.isfinite(upper).all() else None,
    }


def spent_by(plan: ExamplePlan, ledger: Ledger, silo: int) -> Bracket:
    """One silo's epsilon, recomputed from the silos' ledger."""
    return _price(history(ledger.spent_by(UNIT, [silo])[silo]), plan.delta)


def _least_noise(example: ExamplePrivacy, target: float, rows: int, steps: int, queries: tuple[Event, ...]) -> float:
    def build(noise: float) -> Event:
        return _beside(NoisySteps(example.clip_norm, noise, example.batch, rows).event(steps), queries)

    return noise_multiplier_for(target, example.delta, build, neighbours="add_remove")


def _require_room(asked: tuple[Event, ...], target: float, delta: float) -> None:
    """Queries have a price of their own, and steps need what they leave of an epsilon."""
    alone = upper_epsilon(Composed(asked), delta, neighbours=NEIGHBOURS) if asked else 0.0
    if not alone < target:
        raise ConfigError(
            [
                f"privacy.example.epsilon: {target:g} is less than the {alone:.4g} that the strategy's queries cost "
                "alone; raise it, or make them cheaper (strategy ifca: choice_epsilon)"
            ]
        )


def _beside(steps: Event, queries: tuple[Event, ...]) -> Event:
    """Steps and queries of the same rows; steps alone stay as they are, as ledgers know them."""
    return Composed((steps, *queries)) if queries else steps


def _spread(values: Sequence[Any], population: int) -> tuple[Any, ...]:
    return tuple(values) * population if len(values) == 1 else tuple(values)


def _price(spent: History, delta: float) -> Bracket:
    return epsilon(event_of(spent), delta, neighbours=NEIGHBOURS)


def _steps(spent: History) -> int:
    """Noisy steps in a history, whose events are repeated steps, some with queries beside them."""
    parts = ((part, times) for event, times in spent for part in (event, *getattr(event, "events", ())))
    return sum(part.times * times for part, times in parts if isinstance(part, Repeated))


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """Nearest ranks from above, so that each is some silo's own epsilon."""
    p10, p50, p90 = np.percentile(values, [10, 50, 90], method="higher").tolist()
    return {"p10": p10, "p50": p50, "p90": p90}


def _number(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return value if math.isfinite(value) else None


def groups(events: Sequence[Event], silos: Sequence[int]) -> list[tuple[Event, list[int]]]:
    """Silos that pay the same, together; in the order of their first."""
    found: dict[Event, list[int]] = {}
    for silo in silos:
        found.setdefault(events[silo], []).append(silo)
    return list(found.items())
