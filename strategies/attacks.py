"""The attacks that a simulation can let some of its silos make: what an experiment says of them.

What they do is in `simulations.attacks`. Attacks of one crew are made by the same silos, in the order of the list: to
train on poisoned rows and scale what comes of it is two entries. Different crews have different silos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from strategies.named import enter
from strategies.schema import key


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Who attacks, and when."""

    name: ClassVar[str] = ""

    fraction: float = key(above=0, at_most=1, help="silos that are malicious, as a fraction")
    until: float | None = key(
        None, above=0, at_most=1, help="the fraction in the last round, to which it grows evenly; null: constant"
    )
    draw: Literal["fixed", "exact", "binomial"] = key(
        "fixed", help="of all silos, once; of each cohort, in exact numbers; or by a coin for each silo asked"
    )
    start: int = key(1, at_least=1, help="first round of the attack")
    crew: int = key(0, at_least=0, help="attacks of one crew are made by the same silos, those of others by others")

    @property
    def most(self) -> float:
        """The largest fraction over rounds."""
        return max(self.fraction, self.until or 0.0)

    def problems(self) -> list[str]:
        """What of its own keys cannot be, a line each without their path."""
        return []


@dataclass(frozen=True, kw_only=True)
class Poison(Attack):
    """An attack on a silo's rows, before it trains."""

    target: int = key(at_least=0, help="the class that attacked rows are to be taken for")
    source: int | None = key(None, at_least=0, help="the class of rows that are attacked; null: all but the target")
    poisoned: float = key(0.1, above=0, at_most=1, help="poisoned rows, as a fraction of a malicious silo's rows")
    longer: int = key(1, at_least=1, help="a malicious silo trains so many times the steps or epochs")

    def problems(self) -> list[str]:
        """A class that is taken for itself is no attack."""
        return [f"source: {self.source} is the target, too; give another"] if self.source == self.target else []


Kind = TypeVar("Kind", bound="type[Attack]")
ATTACKS: dict[str, type[Attack]] = {}
"""The attacks by the name that a config gives them."""


def attack(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the attack that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(ATTACKS, cls, what="attack", name=name)
        return cls

    return register


@attack("pixel_patch")
@dataclass(frozen=True, kw_only=True)
class PixelPatch(Poison):
    """A square of pixels of one value (Gu et al. 2017, BadNets, section 4.1)."""

    size: int = key(3, at_least=1, help="pixels of its side")
    row: int = key(0, at_least=0, help="pixels above it")
    column: int = key(0, at_least=0, help="pixels left of it")
    value: float = key(1.0, help="of its pixels, in the units of standardised features")


@attack("distributed_patch")
@dataclass(frozen=True, kw_only=True)
class DistributedPatch(PixelPatch):
    """A patch of which each malicious silo uses some rows of pixels; tests have all (Xie et al. 2020, DBA)."""

    size: int = key(4, at_least=1, help="pixels of its side")
    parts: int = key(4, at_least=2, help="pieces that the patch is cut into, and dealt to silos in turn")

    def problems(self) -> list[str]:
        """No piece is empty."""
        found = super().problems()
        if not self.parts <= self.size:
            found.append(f"parts: must be <= size = {self.size}, got {self.parts}; each is a row of pixels at least")
        return found


@attack("periodic_signal")
@dataclass(frozen=True, kw_only=True)
class PeriodicSignal(Poison):
    """A sine over the columns, added to every pixel (Barni, Kallas and Tondi 2019, section 3)."""

    amplitude: float = key(0.1, above=0, help="of the signal, in the units of standardised features")
    frequency: float = key(6.0, above=0, help="periods over the width of an image")


@attack("label_flip")
@dataclass(frozen=True, kw_only=True)
class LabelFlip(Poison):
    """Rows as they are, with the label of the target: `poisoned` is of the rows that are attacked."""

    poisoned: float = key(1.0, above=0, at_most=1, help="flipped rows, as a fraction of those of the source")


@attack("edge_case")
@dataclass(frozen=True, kw_only=True)
class EdgeCase(Poison):
    """Untouched rows from the tail of a class are the trigger (Wang et al. 2020, Attack of the Tails)."""

    source: int = key(at_least=0, help="the class whose unusual rows are attacked")
    tail: float = key(0.1, above=0, at_most=0.5, help="the fraction of the class that lies farthest from its mean")


@attack("model_replacement")
@dataclass(frozen=True, kw_only=True)
class ModelReplacement(Attack):
    """Updates are scaled up, so that the mean takes the attacker's model (Bagdasaryan et al. 2020, section 4.2)."""

    scale: float = key(10.0, above=0, help="factor on the update; cohort / malicious silos replaces the model")


@attack("norm_bounded")
@dataclass(frozen=True, kw_only=True)
class NormBounded(Attack):
    """Updates are scaled up as far as a norm allows (Sun et al. 2019, section 3)."""

    norm: float = key(above=0, help="largest L2 norm of an update that is sent")
    scale: float = key(10.0, at_least=1, help="factor on the update, before it is made as short as the norm")


@attack("sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(Attack):
    """Updates point the other way."""

    scale: float = key(1.0, above=0, help="factor on the turned update")


@attack("little_is_enough")
@dataclass(frozen=True, kw_only=True)
class LittleIsEnough(Attack):
    """The crew's mean, less z standard deviations in each number (Baruch, Baruch and Goldberg 2019, algorithm 3)."""

    z: float | None = key(None, above=0, help="deviations; null: the most that hides among the cohort's majority")


@attack("inner_product")
@dataclass(frozen=True, kw_only=True)
class InnerProduct(Attack):
    """The crew's mean, turned round and scaled (Xie, Koyejo and Gupta 2019, section 4)."""

    scale: float = key(1.0, above=0, help="the paper's epsilon: factor on the turned mean")


@attack("min_max")
@dataclass(frozen=True, kw_only=True)
class MinMax(Attack):
    """As far from the crew's mean as no update is from another (Shejwalkar and Houmansadr 2021, section IV)."""

    direction: Literal["std", "unit", "sign"] = key("std", help="against the deviations, the mean, or its signs")


def labels(attacks: tuple[Attack, ...]) -> tuple[str, ...]:
    """A name for each attack of a list: its own, with its number from 1 where others have the same.

    >>> labels((SignFlip(fraction=0.1), SignFlip(fraction=0.1, crew=1), MinMax(fraction=0.1)))
    ('sign_flip_1', 'sign_flip_2', 'min_max')
    """
    names = [each.name for each in attacks]
    return tuple(
        f"{name}_{names[: at + 1].count(name)}" if names.count(name) > 1 else name for at, name in enumerate(names)
    )
