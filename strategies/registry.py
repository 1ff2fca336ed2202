"""The strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from strategies.base import Strategy
from strategies.named import enter

STRATEGIES: dict[str, type[Strategy]] = {}

Kind = TypeVar("Kind", bound="type[Strategy]")


def strategy(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the strategy that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(STRATEGIES, cls, what="strategy", name=name)
        return cls

    return register


def _load() -> None:
    from strategies import (  # noqa: F401  One line per strategy.
        afl,
        bounded_group_loss,
        ditto,
        fedavg,
        finetune,
        flasc,
        ifca,
        local,
        mocha,
        mr_mtl,
        pruning,
        q_fedavg,
        rank_tiers,
        robust,
        robust_filters,
        shadow,
        silo_group_loss,
        spectre_filter,
        term,
    )


_load()
