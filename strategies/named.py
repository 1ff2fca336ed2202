"""Registries: classes by the name that a config gives them."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar


class Named(Protocol):
    """What can be registered."""

    name: ClassVar[str]


N = TypeVar("N", bound=Named)


def enter(registry: dict[str, type[N]], cls: type[N], *, what: str, name: str) -> None:
    """Puts a class into a registry and tells it its name.

    Args:
        registry: by name.
        cls: what to put there.
        what: the kind of thing, for the message.
        name: what a config calls it.

    Raises:
        ValueError: the name is taken by another class.
    """
    taken = registry.get(name)
    if taken is not None and taken is not cls:
        raise ValueError(f"{what} {name!r} is already {taken.__module__}.{taken.__qualname__}")
    cls.name = name
    registry[name] = cls
