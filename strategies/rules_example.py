"""The rules between the keys of `privacy.example`, and between them and the sections that train."""

from __future__ import annotations

from collections.abc import Iterator

from strategies.experiment import Budget, Data, ExamplePrivacy, Privacy, Train
from strategies.words import spell


def numbers_rules(privacy: Privacy) -> Iterator[str]:
    """The numbers of the section against each other."""
    example = privacy.example
    if example is None:
        return
    if (example.noise_multiplier is None) == (example.epsilon is None):
        found = "neither" if example.epsilon is None else "both"
        yield f"privacy.example: give one of noise_multiplier and epsilon, found {found}"
    for name, values in _per_silo(example):
        if not values:
            yield f"privacy.example.{name}: found an empty list; give one number, or one per silo"
    if not example.rows:
        return
    if not example.batch <= min(example.rows):
        yield f"privacy.example.batch: must be <= rows = {min(example.rows)}, got {spell(example.batch)}"
    if not example.allow_large_delta and not example.delta * max(example.rows) < 1:
        yield (
            f"privacy.example.delta: must be < 1 / rows = {1 / max(example.rows):.4g}, got {spell(example.delta)}; "
            "lower it, or set allow_large_delta: true"
        )


def _per_silo(example: ExamplePrivacy) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The keys that may hold one number per silo."""
    for name in ("noise_multiplier", "epsilon", "rows"):
        values = getattr(example, name)
        if values is not None:
            yield name, values


def uneven(example: ExamplePrivacy, silos: int) -> Iterator[str]:
    """Keys that hold neither one number nor one per silo, a line each."""
    for name, values in _per_silo(example):
        if values and len(values) not in (1, silos):
            yield f"privacy.example.{name}: found {len(values)} numbers for {silos} silos; give one, or one per silo"


def lengths_rules(privacy: Privacy, data: Data) -> Iterator[str]:
    """One number, or one per silo."""
    if privacy.example is not None and data.silos is not None:
        yield from uneven(privacy.example, data.silos)


def budget_rules(budget: Budget | None, privacy: Privacy, data: Data) -> Iterator[str]:
    """The budget of examples against what spends it."""
    if budget is None or budget.example is None:
        return
    example, own = privacy.example, budget.example
    if example is None:
        yield "budget.example: there is no privacy.example to spend it; add it or remove budget.example"
    elif own.delta != example.delta:
        yield f"budget.example.delta: must equal privacy.example.delta = {spell(example.delta)}, got {spell(own.delta)}"
    if not own.epsilon:
        yield "budget.example.epsilon: found an empty list; give one number, or one per silo"
    if data.silos is not None:
        yield from uneven_budget(budget, data.silos)


def uneven_budget(budget: Budget | None, silos: int) -> Iterator[str]:
    """Whether the budget of examples holds neither one number nor one per silo; at most a line."""
    found = 1 if budget is None or budget.example is None else len(budget.example.epsilon)
    if found not in (0, 1, silos):
        yield f"budget.example.epsilon: found {found} numbers for {silos} silos; give one, or one per silo"


def steps_rules(train: Train, privacy: Privacy) -> Iterator[str]:
    """Steps are planned, and batches are Poisson's."""
    if privacy.example is None:
        return
    if train.steps is None:  # How many batches an epoch has says how many rows there are.
        yield "train.steps: missing, privacy.example charges a planned number of steps a round; remove epochs"
    if train.batch_size is not None:
        yield (
            f"train.batch_size: found {train.batch_size}, but privacy.example.batch says how large batches are; "
            "remove it"
        )
