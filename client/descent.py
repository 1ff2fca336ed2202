"""What follows a released gradient: it reads no data, so it costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.base import Correction, Penalty
from strategies.experiment import Train


class Descent:
    """Steps of SGD on vectors `(N,)` or `(silos, N)`, in place; momentum starts from zero.

    Args:
        weights: what is trained.
        train: step size, momentum and weight decay.
        correct: a strategy's change of the gradient.
    """

    def __init__(self, weights: Tensor, train: Train, correct: Correction | None) -> None:
        self.weights, self.train, self.correct = weights, train, correct
        self.momentum = torch.zeros_like(weights) if train.momentum else None

    def step(self, gradient: Tensor) -> None:
        """One step along a gradient of the weights' shape."""
        if self.train.weight_decay:
            gradient = gradient.add(self.weights, alpha=self.train.weight_decay)
        if self.correct is not None:
            gradient = self.correct(self.weights, gradient)
        if self.momentum is not None:
            gradient = self.momentum.mul_(self.train.momentum).add_(gradient)
        self.weights.sub_(gradient, alpha=self.train.learning_rate)


def beside(correct: Correction | None, penalty: Penalty | None) -> Correction | None:
    """Where no example is clipped, a penalty in each one's gradient adds to their mean, before `correct`."""
    if penalty is None:
        return correct
    return lambda w, g: g + penalty(w) if correct is None else correct(w, g + penalty(w))
