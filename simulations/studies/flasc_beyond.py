"""FLASC beyond digits: a convolutional network on turned garments, and a transformer on tweets.

The shipped `flasc_fashion` and `flasc_tweets`, with dense and with sparse messages. Their claims are goals: few seeds
and, for the transformer, few rounds, because a cell takes minutes on a processor. `engine.device: auto` of the configs
uses a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulations.studies.findings import Criterion, Findings
from simulations.studies.flasc import less, trained
from simulations.studies.flasc_shown import Method, Runs, accuracies, figures, rows, sheet
from simulations.studies.registry import Ask, study

DENSITIES: Mapping[str, float] = {"flasc_4": 1 / 4, "flasc_10": 1 / 10}
ALLOWED = {"flasc_4": -0.02, "flasc_10": -0.03}  # As on digits.


@dataclass(frozen=True)
class Part:
    """A shipped experiment and how it is trained.

    Attributes:
        config: its name.
        carriers: what must be fetched.
        server: of the strategy's section, the same for all methods; empty for the plain mean.
        rounds: of the whole study, and of the quick one.
        rows: most rows of the quick one.
        about: in figures.
    """

    config: str
    carriers: tuple[str, ...]
    server: str
    rounds: tuple[int, int]
    rows: int
    about: str

    def methods(self) -> dict[str, Method]:
        """Dense and sparse messages."""
        end = f", server: {self.server}}}" if self.server else "}"
        found = {"dense": Method("dense LoRA", (f"strategy={{name: fedavg{end}",))}
        for name, density in DENSITIES.items():
            section = f"strategy={{name: flasc, density_down: {density}, density_up: {density}{end}"
            found[name] = Method(f"FLASC 1/{round(1 / density)}", (section,))
        return found


GARMENTS = Part(
    "flasc_fashion",
    ("fashion_mnist",),
    "{name: adam, learning_rate: 0.01, beta2: 0.999, eps: 1.0e-8}",
    (100, 20),
    10_000,
    "turned garments, 100 silos",
)
TWEETS = Part("flasc_tweets", ("healthtweets", "minilm"), "", (30, 2), 1_500, "health tweets, 16 outlets")


@study(
    "flasc_vision",
    about="Sparse LoRA messages of a convolutional network (Fashion-MNIST)",
    seeds=(0, 1, 2),
    quick_seeds=(0,),
)
def flasc_vision(ask: Ask) -> Findings:
    """Garments."""
    return compared(ask, GARMENTS, "flasc_vision")


@study(
    "flasc_text", about="Sparse LoRA messages of a transformer (MiniLM, health tweets)", seeds=(0, 1), quick_seeds=(0,)
)
def flasc_text(ask: Ask) -> Findings:
    """Tweets."""
    return compared(ask, TWEETS, "flasc_text")


def compared(ask: Ask, part: Part, name: str) -> Findings:
    """Dense and sparse messages of one part."""
    from simulations.data import carriers

    for carrier in part.carriers:
        ask.say(f"data: {carriers.fetch(carrier)}")
    methods, rounds = part.methods(), part.rounds[ask.quick]
    changes = [f"rounds={rounds}"]
    if ask.quick:
        methods = {key: methods[key] for key in ("dense", "flasc_4")}
        changes += [f"data.limit={part.rows}", f"metrics.every={min(5, rounds)}"]
    runs = trained(ask, part.config, methods, changes)
    left = [f"rounds: {rounds} of {part.rounds[0]}", f"rows: all but {part.rows:,}", "methods: FLASC 1/10"]
    return Findings(
        criteria=criteria(name, methods, runs),
        sheets=[sheet(methods, runs)],
        figures=figures(name, part.about, methods, runs),
        rows=rows(runs, ask.seeds),
        skipped=left if ask.quick else [],
    )


def criteria(name: str, methods: Mapping[str, Method], runs: Runs) -> list[Criterion]:
    """What holds on digits, as goals."""
    dense = accuracies(runs["dense"])
    return [
        replace(
            less(f"{methods[key].label} less dense, accuracy", name, accuracies(runs[key]), dense, least), kind="goal"
        )
        for key, least in ALLOWED.items()
        if key in runs
    ]
