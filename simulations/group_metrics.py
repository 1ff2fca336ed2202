"""How well each group of rows is served: loss, score, support, and how far groups are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from client.examples import Examples
from simulations.data.federation import Federation
from strategies.base import Guard
from strategies.guarded import served_as_one
from strategies.layout import Layout
from strategies.tasks import Task

if TYPE_CHECKING:
    from simulations.running import ActiveRun

BATCH = 1024  # Rows of a forward pass.


def served(
    federation: Federation, active: ActiveRun, predictor: Tensor, guard: Guard | None, variants: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Groups of the public test rows and, where private numbers may be shown, of all silos' own test rows.

    Args:
        federation: the rows.
        active: the run.
        predictor: the model that is served,
        guard: and what is served with it, or None.
        variants: other models worth looking at, by name; on public rows only.

    Returns:
        `public_test`, `silos`, and `variants` of the first; None where the data names no groups, or where there are no
        such rows.
    """
    names, task = federation.group_names, active.experiment.task
    if not names:
        return None

    def measured(model: Tensor, rows: Examples, guard: Guard | None = None) -> dict[str, Any]:
        module, vector = served_as_one(active.model.module, model, guard)
        return groups(task, module, Layout.of(module), vector, rows, names)

    found: dict[str, Any] = {}
    if federation.public_test is not None:
        found["public_test"] = measured(predictor, federation.public_test, guard)
        found["variants"] = {name: measured(each, federation.public_test) for name, each in variants.items()}
    if federation.test is not None and len(federation.test.rows) and active.records:
        found["silos"] = measured(predictor, federation.test.rows, guard)
    return found or None


def groups(
    task: Task, module: nn.Module, layout: Layout, model: Tensor, rows: Examples, names: Sequence[str]
) -> dict[str, Any]:
    """The numbers of each group, by name, and how far groups are apart.

    Returns:
        `groups`, name to `rows`, `loss` and `accuracy` or `mse` (None without a row); `worst`, the group that loses
        most; and for classes `demographic_parity_difference`, the largest difference between groups in how often a
        class is predicted, and `equalized_odds_difference`, the same among rows of one true class.
    """
    if rows.groups is None:
        raise ValueError("rows name no groups")
    losses, scores, predicted = _each(task, module, layout, model, rows)
    metric = "mse" if rows.targets.is_floating_point() else "accuracy"
    table: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        own = rows.groups == number
        count = int(own.sum())
        means = [_number(float(each[own].double().mean())) if count else None for each in (losses, scores)]
        table[name] = {"rows": count, "loss": means[0], metric: means[1]}
    known = {name: each["loss"] for name, each in table.items() if each["loss"] is not None}
    found: dict[str, Any] = {"groups": table, "worst": max(known, key=lambda name: known[name], default=None)}
    if predicted is None:
        return found
    everyone = torch.ones_like(rows.targets, dtype=torch.bool)
    found["demographic_parity_difference"] = _apart(predicted, rows.groups, [everyone], len(names))
    classes = [rows.targets == label for label in sorted(set(rows.targets.tolist()))]
    return found | {"equalized_odds_difference": _apart(predicted, rows.groups, classes, len(names))}


def _each(
    task: Task, module: nn.Module, layout: Layout, model: Tensor, rows: Examples
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Every row's loss and score, and the class predicted for it where rows have one."""
    parameters, found = layout.unflatten(model), []
    device = next(module.parameters()).device
    parameters = {name: value.to(device) for name, value in parameters.items()}
    was, classes = module.training, rows.targets.dim() == 1 and not rows.targets.is_floating_point()
    module.eval()
    with torch.inference_mode():
        for x, y in zip(torch.split(rows.features, BATCH), torch.split(rows.targets, BATCH)):
            outputs = functional_call(module, parameters, (x.to(device),)).cpu()
            guessed = outputs.argmax(-1) if classes else torch.zeros(len(y))
            found.append((task.losses(outputs, y), task.score(outputs, y), guessed))
    module.train(was)
    losses, scores, predicted = (torch.cat(part) for part in zip(*found))
    return losses, scores, predicted if classes else None


def _apart(predicted: Tensor, groups: Tensor, among: Sequence[Tensor], count: int) -> float | None:
    """The largest difference between two groups in the rate of a predicted class, among some rows; None for one group.

    A group without such a row has no rate.
    """
    largest: float | None = None
    for rows in among:
        parts = [predicted[rows & (groups == number)] for number in range(count)]
        for label in sorted(set(predicted.tolist())):
            rates = [float((part == label).double().mean()) for part in parts if len(part)]
            if len(rates) > 1:
                largest = max(largest or 0.0, max(rates) - min(rates))
    return largest


def _number(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return value if math.isfinite(value) else None
