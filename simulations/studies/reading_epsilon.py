"""The pictures of privacy/READING_EPSILON.md, drawn from the accountant; its numbers are in `reading_epsilon_said`.

Nothing is trained and nothing is drawn at random: every point is what the accountant, or the estimator of the audit,
says of a plan. `confide study reading_epsilon` makes them in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from privacy.events import Composed, Event, Gaussian, Poisson, Repeated, Sampled
from privacy.meaning import caught, posterior, wrong_guesses
from simulations.report.axes import Point
from simulations.report.plots import Curve, plot
from simulations.report.scales import Axis
from simulations.studies.findings import Figure, Findings, Sheet
from simulations.studies.registry import Ask, study

DELTA = 1e-5  # Of single Gaussian releases.
QUICKSTART_DELTA, ROUNDS, RATE, NOISE = 1e-4, 60, 0.25, 2.0  # The plan of configs/quickstart.yaml.
DELTAS = tuple(10.0**-power for power in range(2, 10))
GROUP = (1, 2, 3, 5, 7, 10, 14, 20)  # Rows to protect together.
STANDARD_ERRORS = 1.96
AUDITED = (1.0, 2.0, 4.0, 6.0, 8.0)
CANARIES = (64, 1000)


@study("reading_epsilon", about="What an epsilon says, as pictures from the accountant", seeds=(), quick_seeds=())
def reading_epsilon(ask: Ask) -> Findings:
    """The eight pictures, and all numbers that the page says in words."""
    from simulations.studies.reading_epsilon_said import said

    figures = []
    for draw in (guesses, beliefs, accusations, deltas, units, rounds, spending, audits):
        ask.go_on()
        figures.append(draw())
    body = [(name, words) for name, words in said().items()]
    return Findings(sheets=[Sheet("What the page says", ("of", "words"), body)], figures=figures)


def plan(rounds_: int = ROUNDS, rate: float = RATE, noise: float = NOISE) -> Event:
    """The quickstart's rounds, or others."""
    one = Gaussian(noise)
    return Repeated(one if rate == 1 else Sampled(Poisson(rate), one), rounds_)


@lru_cache(maxsize=512)
def price(event: Event, delta: float) -> float:
    """What is proved of an event."""
    from privacy.accountant import upper_epsilon

    return upper_epsilon(event, delta)


@lru_cache(maxsize=512)
def noise_at(epsilon: float, delta: float = DELTA) -> float:
    """The noise of one Gaussian release that costs epsilon."""
    from privacy.accountant import noise_multiplier_for

    return noise_multiplier_for(epsilon, delta, Gaussian)


def normal(value: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def guesses() -> Figure:
    """Right guesses between two equally likely worlds: the promise, and one Gaussian release at the same epsilon."""
    grid = [0.05, *np.arange(0.25, 10.01, 0.25).tolist()]
    curves = [
        Curve("the most that ε allows", [(each, 100 * (1 - wrong_guesses(each, DELTA))) for each in grid]),
        Curve("one Gaussian release", [(each, 100 * normal(0.5 / noise_at(each))) for each in grid]),
        Curve("a coin", [(0.0, 50.0), (10.0, 50.0)]),
    ]
    told = "did a silo take part, or not? at δ = 10⁻⁵"
    y = Axis("right guesses, %", low=40, high=100)
    return _figure("guesses", "How often the best attacker guesses right", told, curves, Axis("ε", low=0, high=10), y)


def beliefs() -> Figure:
    """What may be believed afterwards, against what was believed before."""
    priors = [0.00005, 0.0005, 0.002, *np.linspace(0.01, 0.99, 50).tolist(), 0.998, 0.9995]
    curves = [
        Curve(f"ε = {each:g}", [(0.0, 0.0), *((100 * prior, 100 * posterior(prior, each)) for prior in priors)])
        for each in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
    ]
    told = "at most, whatever else is known; apart from about δ"
    x, y = Axis("suspicion before, %", low=0, high=100), Axis("suspicion after, at most, %", low=0, high=100)
    return _figure("beliefs", "What a suspicion may become", told, curves, x, y)


def proved(event: Event) -> list[Point]:
    """Pairs of epsilon and delta that hold of one event, all of them together."""
    close = np.geomspace(1e-6, 0.8, 48).tolist()
    return [(price(event, delta), delta) for delta in close]


def accusations() -> Figure:
    """How many of the members are found by who accuses few others: the promise as a trade."""
    grid = np.geomspace(1e-4, 1, 49).tolist()
    pair = (price(plan(), QUICKSTART_DELTA), QUICKSTART_DELTA)
    every = proved(plan())
    curves = [
        Curve(f"quickstart, ε = {pair[0]:.3g}", [(100 * x, 100 * caught(x, [pair])) for x in grid]),
        Curve("quickstart, at every δ", [(100 * x, 100 * caught(x, every)) for x in grid]),
        *(Curve(f"one release, ε = {each:g}", _released(each, grid)) for each in (1.0, 4.0)),
        Curve("accusing at random", [(100 * x, 100 * x) for x in grid]),
    ]
    told = "the best attacker, by others accused wrongly"
    marks = [(value, f"{value:g}") for value in (0.01, 0.1, 1, 10, 100)]
    x, y = Axis("others accused wrongly, %", log=True, marks=marks), Axis("members found, %", low=0, high=100)
    return _figure("accusations", "Members found against others accused", told, curves, x, y)


def _released(epsilon: float, grid: Sequence[float]) -> list[Point]:
    """The exact trade of one Gaussian release: Dong, Roth & Su 2022, equation 6."""
    from scipy.special import ndtri

    apart = 1 / noise_at(epsilon)
    return [(100 * x, 100 * normal(float(ndtri(x)) + apart)) for x in grid]


def deltas() -> Figure:
    """Epsilon of one and the same run at many deltas."""
    curves = [
        Curve(label, [(delta, price(event, delta)) for delta in reversed(DELTAS)], dots=True)
        for label, event in (("the quickstart", plan()), ("the same with noise 4", plan(noise=4.0)))
    ]
    told = "400 silos, 60 rounds; one run all along a line"
    marks = [(delta, f"10{str(round(math.log10(delta))).translate(_RAISED)}") for delta in DELTAS]
    x, y = Axis("δ", log=True, marks=marks), Axis("ε", low=0, high=8)
    return _figure("deltas", "One run has many epsilons, one for each δ", told, curves, x, y)


def units() -> Figure:
    """One person with many rows, under a promise for a row and under one for the silo."""
    curves = [
        Curve(f"for a row, {each:g}", [(float(rows), group(each, rows)) for rows in GROUP], dots=True)
        for each in (0.1, 0.3, 1.0)
    ]
    curves.append(Curve("for the silo, 4", [(1.0, 4.0), (float(GROUP[-1]), 4.0)]))
    told = "one Gaussian release at δ = 10⁻⁵, all rows in it"
    x, y = Axis("rows of one person", low=0, high=20), Axis("ε of that person", log=True, low=0.1, high=100)
    return _figure("units", "A promise for a row, and who has many", told, curves, x, y)


def group(epsilon: float, rows: int) -> float:
    """What rows cost together, of which each alone costs epsilon in one release: they move the sum so much farther."""
    return price(Gaussian(noise_at(epsilon) / rows), DELTA)


def rounds() -> Figure:
    """Epsilon over rounds at one noise, by how many silos are in a round and whether that is a secret."""
    counts = sorted({1, 3, 6, *range(10, 101, 10)})
    curves = [
        Curve(label, [(float(n), price(plan(n, rate), QUICKSTART_DELTA)) for n in counts])
        for label, rate in (
            ("all, or known cohorts", 1.0),
            ("a secret quarter", 0.25),
            ("a secret tenth", 0.1),
            ("a secret hundredth", 0.01),
        )
    ]
    told = "noise of 2 clip norms in each round, δ = 10⁻⁴"
    x, y = Axis("rounds", low=0, high=100), Axis("ε", log=True, low=0.01, high=100)
    return _figure("rounds", "Epsilon over rounds, and what secret cohorts save", told, curves, x, y)


def parts() -> list[tuple[str, Event]]:
    """What a ledger may hold, in its order: a name and the events of each part."""
    return [
        ("moments, once", Gaussian(5.0)),
        ("a run of 60 rounds", plan()),
        ("a round done again", plan(1)),
        ("a second such run", plan()),
        ("20 of half the noise", plan(20, noise=1.0)),
    ]


def spending() -> Figure:
    """Epsilon of a ledger, line by line."""
    before: tuple[Event, ...] = ()
    curves, lines = [], 0
    last: Point = (0.0, 0.0)
    for name, event in parts():
        many = event.times if isinstance(event, Repeated) else 1
        one = event.event if isinstance(event, Repeated) else event
        steps = sorted({*range(5, many, 5), many})
        points = [(float(lines + n), price(Composed((*before, Repeated(one, n))), QUICKSTART_DELTA)) for n in steps]
        curves.append(Curve(name, [last, *points], dots=many == 1))
        before, lines, last = (*before, event), lines + many, points[-1]
    told = "the same silos; δ = 10⁻⁴, rate ¼, noise 2"
    x, y = Axis("lines of the ledger", low=0, high=150), Axis("ε so far", low=0, high=12)
    return _figure("spending", "What spends a budget", told, curves, x, y)


def reading(noise: float, canaries: float, side: int = 0) -> float:
    """What the audit reads of one release in the mean, or at an end of its 95% interval; for few parameters it is less.

    The mean score of canaries is 1 / noise, with a standard error of canaries^-1/2 (Andrew et al. 2024).
    """
    shift = 1 / noise + side * STANDARD_ERRORS / math.sqrt(canaries)
    return price(Gaussian(1 / shift), DELTA) if shift > 0 else 0.0


def audits() -> Figure:
    """What an audit reads where noise is right, and where half of it is missing."""
    curves = [Curve("measured = claimed", [(0.0, 0.0), (9.0, 9.0)])]
    for aside, canaries in zip((-0.08, 0.08), CANARIES):
        points = [(each + aside, reading(noise_at(each), canaries)) for each in AUDITED]
        bars = [tuple(reading(noise_at(each), canaries, side) for side in (-1, 1)) for each in AUDITED]
        label = f"{canaries} canaries"
        curves.append(Curve(label, points, dots=True, line=False, bars=[(low, high) for low, high in bars]))
    halved = [(each, reading(noise_at(each) / 2, 1000)) for each in AUDITED]
    curves.append(Curve("1000, half the noise", halved, dots=True))
    told = "one Gaussian release, 95% intervals, δ = 10⁻⁵"
    x, y = Axis("ε claimed", low=0, high=9), Axis("ε measured", low=0, high=20)
    return _figure("audits", "Claimed, and what canaries measure", told, curves, x, y)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _figure(name: str, title: str, told: str, curves: Sequence[Curve], x: Axis, y: Axis) -> Figure:
    return Figure(f"epsilon_{name}", plot(f"epsilon-{name}", title, told=told, curves=curves, x=x, y=y))
