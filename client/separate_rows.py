"""Whether a model treats the rows of a batch apart: DP-SGD bounds what an example's own gradient adds, and no more.

A model that looks at other rows (a batch's mean, a ranking, negatives taken from the batch) gives gradients that add up
as they should, so no sum tells. But one example then moves the gradients of all others, which no clip norm bounds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.device import seeded
from strategies.tasks import Task

ROWS = 8  # Of a batch that are looked at.
APART = ((torch.float64, 1e-7), (torch.float32, 1e-3))  # Relative; for models that only know single precision.
STIRRED = 0.1  # At its start a model may be zero where it mixes rows.


class Mixed(ValueError):
    """A row's loss depends on other rows of its batch."""


def separate(module: nn.Module, task: Task, features: Tensor, targets: Tensor) -> bool:
    """Whether this batch can tell, and does: each row's loss is the same when all others are replaced by copies of it.

    Args:
        module: the model; a copy is used, with other parameters.
        task: the loss of each row.
        features: of a batch.
        targets: likewise.

    Returns:
        False where the rows are alike, or a loss is not finite, and so nothing was shown.

    Raises:
        Mixed: a loss changed.
    """
    features, targets = features[:ROWS], targets[:ROWS]
    if bool((features == features[:1]).all()):
        return False
    model = _stirred(module)
    for dtype, tolerance in APART:
        try:
            return _apart(model.to(dtype), task, _as(features, dtype), _as(targets, dtype), tolerance)
        except (RuntimeError, TypeError):
            if dtype is torch.float32:
                raise
    return False


@torch.no_grad()
def _apart(model: nn.Module, task: Task, features: Tensor, targets: Tensor, tolerance: float) -> bool:
    mine = _losses(model, task, features, targets)
    if not bool(torch.isfinite(mine).all()):
        return False
    for row in range(len(targets)):
        copies = [row] * len(targets)
        alone = _losses(model, task, features[copies], targets[copies])[row]
        if not bool((alone - mine[row]).abs() <= tolerance * mine[row].abs().clamp(min=1.0)):
            raise Mixed("it mixes the rows of a batch, so one example would change the gradients of others")
    return True


def _losses(model: nn.Module, task: Task, features: Tensor, targets: Tensor) -> Tensor:
    """Every row's loss; dropout draws the same for the same shape."""
    with seeded(0, features.device):
        losses = task.losses(model(features), targets)
    if losses.shape[:1] != targets.shape[:1]:
        raise Mixed("its losses are not one for each example")
    return losses


def _stirred(module: nn.Module) -> nn.Module:
    model, rng = copy.deepcopy(module).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(STIRRED * torch.randn(parameter.shape, generator=rng).to(parameter.device))
    return model


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def ends(rows: int) -> Sequence[int]:
    """The rows of a batch whose own gradients are compared: the first and the last."""
    return sorted({0, rows - 1}) if rows else ()
