"""The experiments of the study `scoreboard`: small garments in 200 silos, the defences, and the attacks.

Silos hold 100 images each, dealt at random (`alike`) or in Dirichlet(.5) proportions of classes (`skewed`), as DBA was
tested; 40 are asked in a round, of which exactly the fraction is malicious. Every defence that asks how many silos are
hostile is told the truth. Malicious silos that plant a backdoor poison a tenth of their rows, from class 3 (dress) to
class 1 (trouser), and train four times as long; those that only spoil the model train as the others do.
Settings were chosen on seeds 100 and 101.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strategies.experiment import Experiment
from strategies.loading import parse

ROUNDS, SILOS, ROWS, COHORT = 40, 200, 20_000, 40
TARGET, SOURCE = 1, 3
FRACTIONS = (0.05, 0.15, 0.30, 0.40)
USUAL = 0.15
QUICK_THREATS = ("patch", "inner product")
SKEWED_THREATS = ("patch", "inner product")
UNATTACKED = "no attack"
PARTITIONS: dict[str, Any] = {"alike": {"name": "iid"}, "skewed": {"name": "dirichlet", "alpha": 0.5}}


@dataclass(frozen=True)
class Defence:
    """What a federation does.

    Attributes:
        strategy: its section, to which `told` is added.
        told: the key that says which fraction is malicious, or nothing.
        more: other sections.
    """

    strategy: Mapping[str, Any]
    told: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def section(self, fraction: float) -> dict[str, Any]:
        """The strategy's section against a fraction of malicious silos."""
        return dict(self.strategy) | ({self.told: fraction} if self.told else {})


def _shadow(**changes: Any) -> Defence:
    # A clean shadow is wrong on poisoned rows, half of what a malicious silo has of the class: .4 of silos cost it .2.
    course = {"target": [TARGET], "pool": 5, "shift": 0.1, "stop_floor": 0.7}
    return Defence({"name": "shadow", **course, **changes}, told="malicious")


# An honest update is .25 to .5 long.
CLIPPED = {"clip_norm": 0.3, "noise_multiplier": 0.1, "delta": 1e-3, "neighbours": "replace"}
DEFENCES: dict[str, Defence] = {
    "none": Defence({"name": "fedavg"}),
    "norm clipping + noise": Defence(
        {"name": "fedavg"}, more={"privacy": {"silo": CLIPPED}, "metrics": {"privacy": "research"}}
    ),
    "Krum": Defence({"name": "krum"}, told="malicious"),
    "Multi-Krum": Defence({"name": "multi_krum"}, told="malicious"),
    "median": Defence({"name": "median"}),
    "trimmed mean": Defence({"name": "trimmed_mean"}, told="trim"),
    "geometric median": Defence({"name": "geometric_median"}),
    "FoolsGold": Defence({"name": "foolsgold"}),
    "FLAME": Defence({"name": "flame"}),
    "SPECTRE, gradients": Defence({"name": "spectre"}, told="malicious"),
    "SPECTRE, representations": _shadow(stopping=False),
    "shadow learning": _shadow(),
}


@dataclass(frozen=True)
class Threat:
    """What malicious silos do.

    Attributes:
        attacks: entries of `attacks`, to which fraction and draw are added.
        backdoor: the label under which success is measured; empty where only accuracy tells.
    """

    attacks: tuple[Mapping[str, Any], ...]
    backdoor: str = ""


BACKDOOR = {"target": TARGET, "source": SOURCE, "poisoned": 0.1, "longer": 4}
PATCH = {"name": "pixel_patch", "size": 3, **BACKDOOR}
THREATS: dict[str, Threat] = {
    "patch": Threat((PATCH,), "pixel_patch"),
    "model replacement": Threat((PATCH, {"name": "model_replacement", "scale": 5.0}), "pixel_patch"),
    "distributed patch": Threat(({"name": "distributed_patch", **BACKDOOR},), "distributed_patch"),
    "a little is enough": Threat(({"name": "little_is_enough"},)),
    "inner product": Threat(({"name": "inner_product", "scale": 2.0},)),
    "min-max": Threat(({"name": "min_max"},)),
}


def experiment(defence: str, threat: str, fraction: float, seed: int, *, silos: str = "alike") -> Experiment:
    """The experiment of a cell; without a threat the defence still expects the fraction."""
    chosen, drawn = DEFENCES[defence], {"fraction": fraction, "draw": "exact"}
    made = THREATS[threat].attacks if threat != UNATTACKED else ()
    word = f"{silos}.{defence}.{threat}.{fraction:g}.seed-{seed}".replace(" ", "-").replace(",", "").replace("+", "and")
    return parse(
        {
            "name": word,
            "seed": seed,
            "rounds": ROUNDS,
            "task": {"name": "mlp", "hidden": [64]},
            "data": {
                "name": "fashion_mnist:small",
                "silos": SILOS,
                "limit": ROWS,
                "partition": PARTITIONS[silos],
            },
            "cohort": {"sampling": "fixed", "size": COHORT},
            "train": {"epochs": 2, "batch_size": 20, "learning_rate": 0.1},
            "strategy": chosen.section(fraction),
            "attacks": [{**each, **drawn} for each in made],
            **{name: value for name, value in chosen.more.items() if name != "metrics"},
            "metrics": {"every": ROUNDS, **chosen.more.get("metrics", {})},
        }
    )
