"""Epsilon of an event: a bracket around the truth, or a refusal.

Gaussians that saw every unit have an exact price (Balle & Wang 2018). Poisson samples are priced by privacy-loss
distributions, bounded by Renyi accounting, and samples of fixed size by Renyi accounting alone. Epsilon is a pure
function of the event: order, process and time of asking do not matter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from privacy.checks import open_unit, positive
from privacy.events import Composed, Event, Repeated
from privacy.terms import LEAST_NOISE, History, Neighbours, Part, Unpriceable, history_of, lower_parts, upper_parts

__all__ = [
    "Bracket",
    "Neighbours",
    "Spend",
    "Unpriceable",
    "epsilon",
    "epsilon_curve",
    "noise_multiplier_for",
    "upper_bound",
    "upper_epsilon",
]

MEANINGLESS = 50.0  # At epsilon 50 an attacker's odds may change by e^50.
_REPLACE_MEANINGLESS = 4 * MEANINGLESS  # The Renyi bound for replaced units passes through absence and is this loose.
_THROUGH_ABSENCE = {"poisson_replace", "capped", "capped_replace"}
_CURVE_POINTS = 40
_TOLERANCE = 1e-3
_NOISE_RANGE = (1e-3, 1e6)


@dataclass(frozen=True)
class Bracket:
    """The true epsilon lies between `lower` and `upper`; promise `upper`.

    Attributes:
        lower: what the release costs at least; infinite for a release without guarantee.
        upper: what is proved.
        method: how `upper` was found: exact, PLD, RDP, or none.
        neighbours: what may differ between two neighbouring data sets.
        delta: at which both hold.
        note: one line a reader of the number should know; empty if there is none.
    """

    lower: float
    upper: float
    method: str
    neighbours: Neighbours
    delta: float
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper:  # Written so that NaN fails too.
            raise ValueError(f"a bracket needs 0 <= lower <= upper, got {self.lower!r} and {self.upper!r}")


def epsilon(event: Event, delta: float, *, neighbours: Neighbours = "add_remove") -> Bracket:
    """What an event costs.

    Args:
        event: what was released, or a plan of it.
        delta: in (0, 1).
        neighbours: `add_remove`: a unit more or less. `zero_out`: a unit sends zero instead; the same price, and a
            sample of fixed size is charged as replaced. `replace`: a unit sends anything else, so the sum moves by up
            to 2 clip norms.

    Raises:
        Unpriceable: nobody proved a price for this pairing; the message says what would fit.
        ValueError: delta outside (0, 1), or an unknown relation.

    >>> from privacy.events import FixedSize, Gaussian, Sampled
    >>> round(epsilon(Gaussian(1.0), 1e-5).upper, 3)
    4.377
    >>> epsilon(Sampled(FixedSize(10, 1000), Gaussian(1.0)), 1e-5)
    Traceback (most recent call last):
        ...
    privacy.terms.Unpriceable: fixed-size cohorts have no add/remove price; use neighbours: replace
    """
    _check(delta, neighbours)
    return _bracket(history_of(event), delta, neighbours)


def upper_epsilon(event: Event, delta: float, *, neighbours: Neighbours = "add_remove") -> float:
    """The upper end of `epsilon`, without the work that the lower end is."""
    return upper_bound(event, delta, neighbours=neighbours)[0]


def upper_bound(event: Event, delta: float, *, neighbours: Neighbours = "add_remove") -> tuple[float, str]:
    """`upper_epsilon`, and the method that found it."""
    _check(delta, neighbours)
    return _upper(history_of(event), delta, neighbours)


def epsilon_curve(event: Event, rounds: int, delta: float, *, neighbours: Neighbours = "add_remove") -> list[float]:
    """Upper bounds after 1, 2, ... `rounds` repetitions of `event`; never falling, the last as `epsilon` says.

    Renyi accounting gives every point; tight points at a few counts bound all smaller counts too. Hence cheap, and in
    between up to about 20% above what `epsilon` would say.
    """
    import numpy as np

    from privacy import gaussian, rdp

    _check(delta, neighbours)
    last, _ = _upper(history_of(Repeated(event, rounds)), delta, neighbours)
    parts = upper_parts(history_of(event), neighbours)
    if math.isinf(last) or not parts:
        return [last] * rounds
    counts = np.arange(1.0, rounds + 1)
    if _only_all(parts):
        curve = gaussian.epsilons(parts[0].noise / np.sqrt(counts), delta)
    else:
        curve = rdp.epsilons(parts, delta, counts)
        for count, tight in _tight_points(event, rounds, delta, neighbours):
            curve[:count] = np.minimum(curve[:count], tight)
    curve = np.minimum(curve, last)
    curve[rounds - 1 :] = last  # What `epsilon` says, to the last digit.
    return [float(value) for value in curve]


def _tight_points(event: Event, rounds: int, delta: float, neighbours: Neighbours) -> Iterator[tuple[int, float]]:
    """A few counts below `rounds`, and upper bounds there from one coarse grid: valid, in a third of the time."""
    from privacy import pld, rdp

    even = {-(-rounds * point // _CURVE_POINTS) for point in range(1, _CURVE_POINTS)}
    early = {1 << power for power in range((rounds // _CURVE_POINTS).bit_length())}  # Epsilon rises fastest at first.
    for count in sorted(even | early):
        parts = upper_parts(history_of(Repeated(event, count)), neighbours)
        if _tight(parts, delta, rdp.epsilon(parts, delta)):
            yield count, pld.upper_at(parts, delta, pld.first_step(parts))


def noise_multiplier_for(
    target: float, delta: float, build: Callable[[float], Event], *, neighbours: Neighbours = "add_remove"
) -> float:
    """The smallest noise multiplier, to 0.1%, whose upper epsilon is at most `target`; never one that costs more.

    Args:
        target: the epsilon to keep.
        delta: in (0, 1).
        build: the plan as a function of the noise multiplier; more noise must not cost more.
        neighbours: as in `epsilon`.

    Raises:
        Unpriceable: the plan has no price, or no noise in the searched range keeps the target.
    """
    positive(target=target)
    _check(delta, neighbours)

    def kept(noise: float) -> bool:
        return _upper(history_of(build(noise)), delta, neighbours)[0] <= target

    least, most = _NOISE_RANGE
    high = 1.0
    while not kept(high):
        if high >= most:
            raise Unpriceable(f"no noise multiplier up to {most:g} keeps epsilon <= {target:g}; is a part non-private?")
        high = min(2 * high, most)
    low = high / 2
    while low >= least and kept(low):
        low, high = low / 2, low
    while high > low * (1 + _TOLERANCE) and high > least:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


class Spend:
    """A history that grows; its epsilon is that of `event()`, whatever the order of the additions.

    Equal events are counted, so 10,000 equal rounds cost no more memory or time than one.

    >>> from privacy.events import Gaussian
    >>> spend = Spend(1e-5)
    >>> spend.add(Gaussian(5.0), 100)
    >>> round(spend.epsilon().upper, 3)
    9.997
    """

    def __init__(self, delta: float, neighbours: Neighbours = "add_remove") -> None:
        _check(delta, neighbours)
        self.delta = float(delta)
        self.neighbours: Neighbours = neighbours
        self._counts: Counter[Event] = Counter()

    def add(self, event: Event, times: int = 1) -> None:
        """Adds `times` releases of `event`.

        Raises:
            Unpriceable: the event has no price; the history then is as before.
        """
        repeated = Repeated(event, times)
        upper_parts(history_of(repeated), self.neighbours)
        self._counts[event] += times

    def event(self) -> Event:
        """All that was added, as one event."""
        return Composed(tuple(Repeated(event, times) for event, times in self._counts.items() if times))

    def epsilon(self) -> Bracket:
        """What the history costs; a tenth of a second or more when it has sampled rounds and has grown."""
        return _bracket(history_of(self.event()), self.delta, self.neighbours)

    def upper(self) -> float:
        """An upper bound to print after every round: cheap, at most some 6% above `epsilon().upper`.

        It prices sampled rounds rounded up to 5 binary digits of their count, so most calls find the answer cached.
        """
        history = history_of(self.event())
        terms = tuple((s, z, n if s is None else _rounded_up(n)) for s, z, n in history.terms)
        return _upper(History(terms, history.non_private), self.delta, self.neighbours)[0]


def _check(delta: float, neighbours: Neighbours) -> None:
    open_unit(delta=delta)
    if neighbours not in get_args(Neighbours):
        raise ValueError(f"neighbours: unknown {neighbours!r}; use one of {', '.join(get_args(Neighbours))}")


def _rounded_up(count: int) -> int:
    unit = 1 << max(0, count.bit_length() - 5)
    return -(-count // unit) * unit


@lru_cache(maxsize=4096)
def _bracket(history: History, delta: float, neighbours: Neighbours) -> Bracket:
    from privacy import pld

    high, method = _upper(history, delta, neighbours)
    if math.isinf(high):
        reason = history.non_private or "less noise than can be priced"
        return Bracket(high, high, method, neighbours, delta, f"no guarantee: {reason}")
    low = high if method == "exact" else min(high, pld.lower(lower_parts(history, neighbours), delta, high))
    return Bracket(low, high, method, neighbours, delta, _note(history, low, high, method, neighbours))


@lru_cache(maxsize=4096)
def _upper(history: History, delta: float, neighbours: Neighbours) -> tuple[float, str]:
    """The upper bound and the method that found it."""
    from privacy import gaussian, pld, rdp

    parts = upper_parts(history, neighbours)  # First: a refusal must not depend on what else is in the history.
    if history.non_private is not None or any(part.noise < LEAST_NOISE for part in parts):
        return math.inf, "none"
    if not parts:
        return 0.0, "exact"
    if _only_all(parts):
        return gaussian.epsilon(parts[0].noise, delta), "exact"
    guard = rdp.epsilon(parts, delta)
    tight = pld.upper(parts, delta) if _tight(parts, delta, guard) else math.inf
    return (tight, "PLD") if tight < guard else (guard, "RDP")


def _only_all(parts: tuple[Part, ...]) -> bool:
    return all(part.law == "all" for part in parts)


def _tight(parts: tuple[Part, ...], delta: float, guard: float) -> bool:
    """Whether a privacy-loss distribution has a meaning here, and its memory and rounding are in bounds."""
    from privacy import pld

    laws = {part.law for part in parts}
    most = _REPLACE_MEANINGLESS if laws & _THROUGH_ABSENCE else MEANINGLESS
    return "fixed_size" not in laws and guard <= most and pld.resolves(parts, delta)


def _note(history: History, low: float, high: float, method: str, neighbours: Neighbours) -> str:
    notes = []
    if high > MEANINGLESS:
        notes.append("no meaningful privacy")
    laws = {part.law for part in upper_parts(history, neighbours)}
    if laws & {"capped", "capped_replace"} and low < 0.95 * high:
        notes.append("cohorts with a cap: the range is wide because the lower end is one pair of neighbours")
    if "fixed_size" in laws:
        as_replaced = "charged as replaced, " if neighbours == "zero_out" else ""
        notes.append(
            f"fixed-size cohorts: {as_replaced}the range is wide because the upper end is a general Renyi bound and "
            "the lower end one pair of neighbours"
        )
    elif method == "RDP" and high <= MEANINGLESS:
        notes.append("Renyi bound: delta is too small, or the rounds too various, for a privacy-loss distribution")
    return "; ".join(notes)
