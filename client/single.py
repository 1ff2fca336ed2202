"""Training one silo at a time, for any model, by autograd on a flat vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from client.batches import Plan
from client.examples import Examples
from strategies.base import Correction
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Task


class SingleTrainer:
    """Runs local SGD on a module whose parameters and gradients are views of two flat vectors.

    One update of the vector then is one operation, whatever the number of layers.
    """

    def __init__(self, module: nn.Module, task: Task, train: Train) -> None:
        self.module, self.task, self.train = module, task, train
        self.layout = Layout.of(module)
        self.weights = torch.zeros(self.layout.size)
        self.gradient = torch.zeros(self.layout.size)
        views, slopes = self.layout.unflatten(self.weights), self.layout.unflatten(self.gradient)
        for name, parameter in module.named_parameters():
            if name in views:
                parameter.data, parameter.grad = views[name], slopes[name]
        self.losses: list[float] = []

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        correct: Correction | None = None,
        key: int = 0,
        record: bool = False,
    ) -> Tensor:
        """Trains one silo from `start` `(N,)` along a plan of one silo; returns the trained `(N,)`.

        `key` seeds layers that draw (dropout); the process's own generator is left as it was. With `record`, the mean
        loss over the steps is appended to `losses`.
        """
        self.weights.copy_(start)
        self.module.train()
        momentum = torch.zeros_like(self.weights) if self.train.momentum else None
        seen: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            for step in range(plan.steps):
                count = int(plan.counts[0, step])
                if count == 0:
                    break
                batch = rows.select(plan.rows[0, step, :count])
                self.gradient.zero_()
                loss = self.task.losses(self.module(_layout_of_images(batch.features)), batch.targets).mean()
                torch.autograd.backward(loss)
                self._step(momentum, correct)
                if record:
                    seen.append(loss.detach())
        if record:
            self.losses.append(float(torch.stack(seen).mean()) if seen else float("nan"))
        return self.weights.clone()

    def _step(self, momentum: Tensor | None, correct: Correction | None) -> None:
        gradient = self.gradient
        if self.train.weight_decay:
            gradient = gradient.add(self.weights, alpha=self.train.weight_decay)
        if correct is not None:
            gradient = correct(self.weights, gradient)
        if momentum is not None:
            gradient = momentum.mul_(self.train.momentum).add_(gradient)
        self.weights.sub_(gradient, alpha=self.train.learning_rate)


def _layout_of_images(features: Tensor) -> Tensor:
    """Channels last: convolution and pooling are several times faster there on a CPU."""
    return features.contiguous(memory_format=torch.channels_last) if features.dim() == 4 else features
