"""Shadow learning: filters leak under long training, and a shadow that stops early does not.

Source: Wang, Hayase, Fanti, Oh, "Towards a Defense Against Federated Backdoor Attacks Under Continuous Training", TMLR
2023, arXiv 2205.11736. The shipped `shadow_fashion`: small garments on 500 silos, 50 asked a round, of which a fraction
wants dresses with a white patch taken for trousers. A seed draws silos, cohorts, batches and who is malicious, so
methods of one seed are paired. Settings were chosen on other seeds (100 to 103).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simulations.shipped import find
from simulations.studies.findings import Criterion, Findings, largest, mean, spread
from simulations.studies.registry import Ask, study
from simulations.studies.shadow_learning_shown import (
    COLUMNS,
    SHIFTED,
    Method,
    Runs,
    accuracies,
    backbone,
    figures,
    recalls,
    restarts,
    rows,
    sheets,
    success,
)
from strategies.experiment import Experiment
from strategies.loading import load

ROUNDS, QUICK_ROUNDS, EARLY, LATER = 140, 60, 40, 40
ONE_ROUND = ("strategy.pool=1", "strategy.stopping=false")
UNDEFENDED = ("strategy={name: fedavg, server: {name: sgd, learning_rate: 0.5}}",)
SHIFT = f"data.shift={{round: {SHIFTED}, rotate: 12}}"
UNEVEN = "data.partition={name: dirichlet, alpha: 0.5}"


def methods() -> dict[str, Method]:
    """Name to method; the names of those that differ in the fraction alone end in it."""
    found = {}
    for percent in (15, 30, 40):
        found[f"none_{percent}"] = Method("no defence", percent / 100, UNDEFENDED)
        found[f"filter_{percent}"] = Method("filter of one round, never stopped", percent / 100, ONE_ROUND)
        found[f"shadow_{percent}"] = Method("shadow learning", percent / 100)
    found["pooled_30"] = Method("filter over 10 rounds, never stopped", 0.3, ("strategy.stopping=false",))
    found["shift_30"] = Method(f"shadow learning, images turned in round {SHIFTED}", 0.3, (SHIFT,))
    found["uneven_15"] = Method("shadow learning, uneven silos", 0.15, (UNEVEN,))
    return found


QUICK = ("none_30", "filter_30", "shadow_30")


@study(
    "shadow_learning",
    about="A backdoor under long training: no defence, filters that never stop, and shadow learning (small garments)",
    seeds=(0, 1, 2),
    quick_seeds=(0,),
)
def shadow_learning(ask: Ask) -> Findings:
    """The experiment of the specification, over paired seeds."""
    from simulations.data import carriers

    ask.say(f"data: {carriers.fetch('fashion_mnist')}")
    chosen = {name: each for name, each in methods().items() if not ask.quick or name in QUICK}
    runs = trained(ask, chosen, QUICK_ROUNDS if ask.quick else ROUNDS)
    left = f"fractions .15 and .40, uneven silos, the shift; rounds: {QUICK_ROUNDS} of {ROUNDS}, too few to see leaks"
    return Findings(
        criteria=soon(runs) if ask.quick else [*least(runs), *soon(runs), *leaks(runs), *most(runs), *shift(runs)],
        sheets=sheets(chosen, runs),
        figures=figures(runs, len(ask.seeds)),
        rows=rows(chosen, runs, ask.seeds),
        skipped=[left] if ask.quick else [],
        notes=[
            "no privacy: a filter sees single updates, so silos have none; examples could, by privacy.example",
            "attack success is that of both models together, on 1,000 dresses of the official test set with the patch",
            "flags: on uneven silos those of benign silos that hold mostly rare classes are told apart; where silos "
            "are alike there are no such silos",
        ],
    )


def trained(ask: Ask, chosen: dict[str, Method], rounds: int) -> Runs:
    """Every method with every seed."""
    wanted = [(name, seed) for seed in ask.seeds for name in chosen]
    experiments = [experiment(name, chosen[name], seed, rounds) for name, seed in wanted]
    cells = dict(zip(wanted, ask.cells.run(experiments, columns=COLUMNS)))
    return {name: [cells[name, seed] for seed in ask.seeds] for name in chosen}


def experiment(name: str, method: Method, seed: int, rounds: int) -> Experiment:
    """The shipped experiment with a method's changes."""
    own = [] if method.changes == UNDEFENDED else [f"strategy.malicious={method.fraction}"]
    base = load(find("shadow_fashion"), [f"seed={seed}", f"name={name}.seed-{seed}", f"rounds={rounds}", *own])
    attack = [replace(each, fraction=method.fraction) for each in base.attacks]
    changed = load(find("shadow_fashion"), [f"seed={seed}", f"rounds={rounds}", *own, *method.changes])
    every = replace(changed.metrics, every=5)
    return replace(changed, name=base.name, attacks=tuple(attack), metrics=every)


def claim(name: str, number: int, values: Sequence[float], relation: Any, threshold: float) -> Criterion:
    """A required claim about a mean over seeds."""
    return Criterion(
        name=name,
        spec_id=f"shadow_learning.{number}",
        measured=mean(values),
        threshold=threshold,
        relation=relation,
        spread=spread(values),
    )


def least(runs: Runs) -> list[Criterion]:
    """At .15 a filter suffices, and shadow learning is as good."""
    own = runs["shadow_15"]
    return [
        claim("15% malicious: attack success", 1, success(own), "<=", 0.06),
        claim("15% malicious: malicious silos found", 2, recalls(own), ">=", 0.95),
    ]


def soon(runs: Runs) -> list[Criterion]:
    """At .30 shadow learning keeps the backdoor out, at little cost."""
    own = runs["shadow_30"]
    lost = [whole - served for whole, served in zip(backbone(own), accuracies(own))]
    return [
        claim("30% malicious: attack success, no defence", 3, success(runs["none_30"]), ">=", 0.95),
        claim("30% malicious: attack success, shadow learning", 6, success(own), "<=", 0.25),
        claim("30% malicious: accuracy lost to the backbone", 7, lost, "<=", 0.01),
    ]


def leaks(runs: Runs) -> list[Criterion]:
    """At .30 a filter leaks, the more the longer it runs; each run's growth is its own."""
    leaking = runs["filter_30"]
    early = success(leaking, EARLY)
    grown = [late / before if before > 0 else math.nan for late, before in zip(success(leaking), early)]
    return [
        claim("30% malicious: attack success, filter of one round, never stopped", 4, success(leaking), ">=", 0.3),
        claim(f"30% malicious: the same over its own in round {EARLY}", 5, grown, ">=", 2.0),
    ]


def most(runs: Runs) -> list[Criterion]:
    """At .40 less was hoped for."""
    found = claim("40% malicious: attack success", 8, success(runs["shadow_40"]), "<=", 0.3)
    return [replace(found, kind="goal")]


def shift(runs: Runs) -> list[Criterion]:
    """Data that change make one new shadow, which is as good."""
    own = runs["shift_30"]
    before, after = accuracies(own, SHIFTED - 5), accuracies(own, SHIFTED + LATER)
    wrong = largest([abs(count - 1) for count in restarts(own)])
    return [
        replace(claim("shift: restarts, distance from one", 9, [wrong], "<=", 0.0), spread=None),
        claim(f"shift: attack success {LATER} rounds later", 10, success(own, SHIFTED + LATER), "<=", 0.3),
        claim("shift: accuracy lost by then", 11, [one - other for one, other in zip(before, after)], "<=", 0.02),
    ]
