"""Every strategy gets a model that it can train."""

from __future__ import annotations

import pytest

from strategies.tasks.dense import MLP
from strategies.tasks.lora import LoRA

ADAPTED = frozenset({"rank_tiers"})
"""Strategies that work on adapters."""


@pytest.fixture(autouse=True)
def _adapters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's TASK with adapters, where the strategy needs them."""
    callspec = getattr(request.node, "callspec", None)
    strategy = None if callspec is None else callspec.params.get("strategy")
    if getattr(strategy, "name", None) in ADAPTED:
        monkeypatch.setattr(request.module, "TASK", LoRA(base=MLP((6,), "tanh"), rank=4, alpha=4.0, dropout=0.0))
