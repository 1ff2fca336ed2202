"""The strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from strategies.base import Strategy

STRATEGIES: dict[str, type[Strategy]] = {}

S = TypeVar("S", bound=Strategy)


def strategy(name: str) -> Callable[[type[S]], type[S]]:
    """Registers a frozen dataclass as the strategy that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: type[S]) -> type[S]:
        taken = STRATEGIES.get(name)
        if taken is not None and taken is not cls:
            raise ValueError(f"strategy {name!r} is already {taken.__module__}.{taken.__qualname__}")
        cls.name = name
        STRATEGIES[name] = cls
        return cls

    return register


def _load() -> None:
    from strategies import fedavg  # noqa: F401  One import line per strategy.


_load()
