"""What was released, as frozen values; what it costs is the accountant's business.

An event holds public numbers only. It reads and writes JSON by an explicit table of kinds, so a ledger cannot name
code to run.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from privacy.checks import finite, positive, probability


@dataclass(frozen=True)
class NonPrivate:
    """A release without any guarantee: epsilon is infinite.

    Attributes:
        reason: one line for the report: which number left unprotected, and why.
    """

    reason: str = ""


@dataclass(frozen=True)
class Gaussian:
    """A sum of clipped vectors plus Gaussian noise.

    Attributes:
        noise_multiplier: standard deviation of the noise / clip norm, on the SUM.

    Raises:
        ValueError: if it is not a positive finite number; a release without noise is `NonPrivate`.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        positive(noise_multiplier=self.noise_multiplier)
        finite(noise_multiplier=self.noise_multiplier)


@dataclass(frozen=True)
class Poisson:
    """Every unit takes part with probability `rate`, independently and secretly."""

    rate: float

    def __post_init__(self) -> None:
        probability(rate=self.rate)


@dataclass(frozen=True)
class FixedSize:
    """`size` of `population` units take part, drawn without replacement and secretly."""

    size: int
    population: int

    def __post_init__(self) -> None:
        _whole(1, size=self.size, population=self.population)
        if self.size > self.population:
            raise ValueError(f"size must be <= population, got {self.size} of {self.population}")


@dataclass(frozen=True)
class Capped:
    """A Poisson sample of which a uniformly random `cap` remain if more are drawn, secretly.

    Attributes:
        rate: probability that a unit is drawn.
        cap: the most that take part.
        population: how many units there are; under `add_remove`, in the larger of two neighbours.
    """

    rate: float
    cap: int
    population: int

    def __post_init__(self) -> None:
        probability(rate=self.rate)
        _whole(1, cap=self.cap, population=self.population)


Sampler: TypeAlias = Poisson | FixedSize | Capped


@dataclass(frozen=True)
class Sampled:
    """`event` computed on one secret sample; two releases on one sample are `Sampled(s, Composed((a, b)))`."""

    sampler: Sampler
    event: Event

    def __post_init__(self) -> None:
        _typed("sampler", self.sampler, SAMPLERS)
        _typed("event", self.event, EVENTS)


@dataclass(frozen=True)
class Repeated:
    """`event` done `times` times, each with fresh noise and a fresh sample."""

    event: Event
    times: int

    def __post_init__(self) -> None:
        _typed("event", self.event, EVENTS)
        _whole(0, times=self.times)


@dataclass(frozen=True)
class Composed:
    """All of `events`; an empty composition released nothing and costs 0."""

    events: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.events, tuple):
            raise ValueError(f"events must be a tuple of events, got {type(self.events).__name__}")
        for index, event in enumerate(self.events):
            _typed(f"events[{index}]", event, EVENTS)


@dataclass(frozen=True)
class Turn:
    """`event` on one of several groups of units that take turns; a unit is in one round of every cycle at most.

    So the rounds of a cycle cost together what one of them does. A round that is done again is charged again, for all:
    under correlated noise its second release tells of the groups before it, too.

    Attributes:
        event: what the round released, of units that were in it.
        charged: whether this line pays. The first round of a cycle does, and every round that is done again.
    """

    event: Event
    charged: bool

    def __post_init__(self) -> None:
        _typed("event", self.event, EVENTS)
        if not isinstance(self.charged, bool):
            raise ValueError(f"charged must be true or false, got {reprlib.repr(self.charged)}")


Event: TypeAlias = NonPrivate | Gaussian | Sampled | Repeated | Composed | Turn
EVENTS = (NonPrivate, Gaussian, Sampled, Repeated, Composed, Turn)
SAMPLERS = (Poisson, FixedSize, Capped)
MAX_DEPTH = 64  # Of JSON read from outside; a real plan nests four or five deep.


def gaussian_composed(*noise_multipliers: float) -> float:
    """The one noise multiplier that costs what all these Gaussians on the same units cost: (sum z^-2)^(-1/2).

    Answers of several Gaussians are one Gaussian in more dimensions (McMahan et al. 2018, arXiv 1812.06210,
    section 3). None at all is infinite noise.

    >>> round(gaussian_composed(3.0, 4.0), 12)
    2.4
    """
    positive(**{f"noise_multipliers[{index}]": value for index, value in enumerate(noise_multipliers)})
    precision = math.hypot(*(1 / value for value in noise_multipliers))  # hypot: neither over- nor underflows.
    return 1 / precision if precision > 0 else math.inf


def to_json(event: Event) -> dict[str, Any]:
    """The event as plain dictionaries, lists, strings and numbers; `from_json` reads it back.

    >>> to_json(Sampled(Poisson(0.01), Gaussian(1.0)))["event"]
    {'kind': 'gaussian', 'noise_multiplier': 1.0}
    """
    data: dict[str, Any] = _write(event)
    return data


def from_json(data: object) -> Event:
    """Reads what `to_json` wrote.

    Raises:
        ValueError: unknown kind, extra or missing key, wrong type, number out of range or NaN; one line with the path.
    """
    return _event(data, "event")


def _whole(least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not value >= least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def _typed(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise ValueError(
            f"{name} must be one of {', '.join(kind.__name__ for kind in kinds)}, got {reprlib.repr(value)}"
        )


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path}: expected text, found {reprlib.repr(value)}")
    return value


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: expected a number, found {reprlib.repr(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{path}: the number is too large") from None


def _count(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{path}: expected a whole number, found {reprlib.repr(value)}")
    return value


def _flag(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{path}: expected true or false, found {reprlib.repr(value)}")
    return value


def _events(value: object, path: str) -> tuple[Event, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: expected a list of events, found {reprlib.repr(value)}")
    return tuple(_event(item, f"{path}[{index}]") for index, item in enumerate(value))


def _event(data: object, path: str) -> Event:
    event: Event = _read(data, path, _EVENT_KINDS)
    return event


def _sampler(data: object, path: str) -> Sampler:
    sampler: Sampler = _read(data, path, _SAMPLER_KINDS)
    return sampler


_Readers: TypeAlias = Mapping[str, Callable[[object, str], object]]
_Kinds: TypeAlias = dict[str, tuple[Callable[..., Any], _Readers]]
_EVENT_KINDS: _Kinds = {
    "non_private": (NonPrivate, {"reason": _text}),
    "gaussian": (Gaussian, {"noise_multiplier": _number}),
    "sampled": (Sampled, {"sampler": _sampler, "event": _event}),
    "repeated": (Repeated, {"event": _event, "times": _count}),
    "composed": (Composed, {"events": _events}),
    "turn": (Turn, {"event": _event, "charged": _flag}),
}
_SAMPLER_KINDS: _Kinds = {
    "poisson": (Poisson, {"rate": _number}),
    "fixed_size": (FixedSize, {"size": _count, "population": _count}),
    "capped": (Capped, {"rate": _number, "cap": _count, "population": _count}),
}
_NAMES = {build: kind for kind, (build, _) in (_EVENT_KINDS | _SAMPLER_KINDS).items()}


def _read(data: object, path: str, kinds: _Kinds) -> Any:
    if path.count(".") + path.count("[") > MAX_DEPTH:
        raise ValueError(f"event: nested deeper than {MAX_DEPTH} levels; flatten it")
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: expected an object with a 'kind', found {reprlib.repr(data)}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{path}.kind: unknown kind {reprlib.repr(kind)}, known are {', '.join(kinds)}")
    build, readers = kinds[kind]
    wanted = {"kind", *readers}
    if data.keys() != wanted:
        missing, extra = sorted(wanted - data.keys()), reprlib.repr(sorted(map(str, data.keys() - wanted)))
        raise ValueError(f"{path}: {kind} has the keys {sorted(readers)}; missing {missing}, not known {extra}")
    values = {name: read(data[name], f"{path}.{name}") for name, read in readers.items()}
    try:
        return build(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _write(value: Any) -> Any:
    if isinstance(value, EVENTS + SAMPLERS):
        kind = _NAMES[type(value)]
        _, readers = (_EVENT_KINDS | _SAMPLER_KINDS)[kind]
        return {"kind": kind} | {name: _write(getattr(value, name)) for name in readers}
    return [_write(item) for item in value] if isinstance(value, tuple) else value
