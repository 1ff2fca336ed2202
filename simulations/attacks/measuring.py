"""How far attacks get: how often triggered test rows are taken for the target, and whom a strategy flagged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from client.examples import Examples, Shards
from simulations.attacks.poison import tails
from simulations.attacks.roles import Roles
from simulations.attacks.triggers import attacked, triggered
from strategies.attacks import Attack, Poison, labels
from strategies.base import State, Strategy

SUCCESS = "attack_success."  # Goes before an attack's label in a round's line.
RARE = 0.2  # Of all rows: classes are rare that hold no more than this together.
MOSTLY = 0.5  # Of a silo's rows: beyond it they are mostly of rare classes.


def attack_tests(attacks: Sequence[Attack], public: Examples | None, train: Shards) -> dict[str, Examples]:
    """For each attack on rows, the public test rows of other classes with its whole trigger, as rows of its target.

    An attack that finds no such row in the public test has no test; what accuracy there is on its test is the attack's
    success rate.
    """
    found, unusual = {}, tails(attacks, train.rows)
    for at, (attack, label) in enumerate(zip(attacks, labels(tuple(attacks)))):
        if public is None or not isinstance(attack, Poison):
            continue
        fit = attacked(attack, public.features, public.targets, unusual.get(at))
        if bool(fit.any()):
            features = triggered(attack, public.features[fit])
            found[SUCCESS + label] = Examples(features, torch.full((len(features),), attack.target))
    return found


def minority_silos(shards: Shards, classes: int | None) -> frozenset[int]:
    """The silos whose rows are mostly of rare classes; none where there are no classes.

    Rare are the classes with fewest rows, as many of them as hold a fifth of all rows at most, and one at least.
    """
    targets = shards.rows.targets
    if classes is None or targets.dim() != 1 or targets.is_floating_point():
        return frozenset()
    counts = torch.bincount(targets, minlength=classes)
    order = counts.argsort(stable=True)
    rare_classes = order[: max(int((counts[order].cumsum(0) <= RARE * len(targets)).sum()), 1)]
    rare = torch.isin(targets, rare_classes)
    per_silo = [rare[int(low) : int(high)] for low, high in zip(shards.offsets, shards.offsets[1:])]
    return frozenset(silo for silo, own in enumerate(per_silo) if len(own) and float(own.double().mean()) > MOSTLY)


class Watch:
    """Counts whom a strategy flagged, against who was malicious: the simulation knows, the strategy does not.

    Args:
        roles: who is malicious.
        strategy: that may flag silos.
        minority: silos whose rows are mostly of rare classes; empty where private numbers may not be recorded.
    """

    def __init__(self, roles: Roles, strategy: Strategy, minority: frozenset[int]) -> None:
        self.roles, self.strategy, self.minority = roles, strategy, minority

    def __call__(self, round_: int, cohort: Sequence[int], state: State) -> dict[str, Any]:
        """What a round's line says of the attack: silos asked by their part, and those flagged among them."""
        malicious = set(self.roles.acting(round_, cohort))
        found = {"asked": self._parts(set(cohort), malicious)}
        flagged = self.strategy.flagged(state)
        if flagged is not None:
            found["flagged"] = self._parts(set(flagged.tolist()) & set(cohort), malicious)
        return {"attackers": found}

    def _parts(self, silos: set[int], malicious: set[int]) -> dict[str, int]:
        benign = silos - malicious
        return {
            "malicious": len(silos & malicious),
            "benign": len(benign),
            "minority": len(benign & self.minority),
        }


def summary(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], attacks: tuple[Attack, ...], minority: int | None
) -> dict[str, Any]:
    """What result.json says of attacks.

    Args:
        rows: the rounds' lines.
        metrics: of the served model.
        attacks: of the experiment.
        minority: silos whose rows are mostly of rare classes; None where that may not be shown.

    Returns:
        `success` by attack, None for those without a test; `accuracy` on clean rows; silos asked over all rounds, by
        their part; and `detection`, over the rounds in which the strategy judged silos: `recall`, the fraction of
        malicious silos that it flagged, and the fractions of benign and of benign minority silos that it flagged.
    """
    asked = _total(row["attackers"]["asked"] for row in rows)
    judged = [row["attackers"] for row in rows if "flagged" in row["attackers"]]
    detection = None
    if judged:
        among, flagged = _total(each["asked"] for each in judged), _total(each["flagged"] for each in judged)
        rates = {part: flagged[part] / among[part] if among[part] else None for part in among}
        detection = {
            "rounds": len(judged),
            "recall": rates["malicious"],
            "false_flag_rate": rates["benign"],
            "minority_false_flag_rate": rates["minority"],
        }
    return {
        "success": {label: metrics.get(SUCCESS + label) for label in labels(attacks)},
        "accuracy": metrics.get("accuracy"),
        "asked": asked,
        "minority_silos": minority,
        "detection": detection,
    }


def _total(parts: Any) -> dict[str, int]:
    found = dict.fromkeys(("malicious", "benign", "minority"), 0)
    for part in parts:
        for name, count in part.items():
            found[name] += count
    return found
