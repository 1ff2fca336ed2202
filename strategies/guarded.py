"""Two models served as one: the second answers where the first says a certain class."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from strategies.base import Guard
from strategies.layout import Layout
from strategies.tasks import Task, evaluate


class Guarded(nn.Module):
    """`y = model(x)`, and `guard(x)` where y says the label; each saved under its own name, with the label.

    Args:
        model: answers, and is copied.
        guard: of the same structure, answers where that says the label; None is a copy of the model.
        label: the class; -1 is none, to load a saved one into.
    """

    label: Tensor

    def __init__(self, model: nn.Module, guard: nn.Module | None = None, *, label: int = -1) -> None:
        super().__init__()
        self.model, self.guard = deepcopy(model), deepcopy(model if guard is None else guard)
        self.register_buffer("label", torch.tensor(label))

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `(rows, classes)` of whichever model answers for a row."""
        outputs: Tensor = self.model(features)
        says = outputs.argmax(-1, keepdim=True) == self.label
        return torch.where(says, self.guard(features), outputs)


def evaluate_served(
    task: Task, module: nn.Module, model: Tensor, guard: Guard | None, features: Tensor, targets: Tensor
) -> dict[str, float]:
    """The mean loss and score of what is served; see `strategies.tasks.evaluate`.

    Args:
        task: says what loss and score are.
        module: the model's structure.
        model: the predictor, `(N,)`; rows are moved to its device.
        guard: goes with it, or None.
        features: `(rows, ...)`.
        targets: `(rows,)` or `(rows, length)`.
    """
    module, model = served_as_one(module, model, guard)
    return evaluate(task, module, Layout.of(module), model, features, targets)


def served_as_one(module: nn.Module, model: Tensor, guard: Guard | None) -> tuple[nn.Module, Tensor]:
    """The structure of what is served, and its vector: the model's own without a guard."""
    if guard is None:
        return module, model
    return Guarded(module, label=guard.label), torch.cat([model, guard.model.to(model)])
