"""Training one silo at a time, for any model, by autograd on a flat vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.batches import Plan
from client.device import CPU, seeded
from client.examples import Examples
from client.reweighting import Weigh
from strategies.base import Correction, Reweight
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Task


class SingleTrainer:
    """Runs local SGD on a module whose parameters are views of one flat vector.

    One update of the vector then is one operation, whatever the number of layers.

    Args:
        module: moved to `device`, and trained there.
        task: model and loss.
        train: the experiment's training section.
        device: of the work; rows, starts and results are on the CPU.
    """

    def __init__(self, module: nn.Module, task: Task, train: Train, *, device: torch.device = CPU) -> None:
        self.module, self.task, self.train, self.device = module.to(device), task, train, device
        self.layout = Layout.of(module)
        self.weights = torch.zeros(self.layout.size, device=device)
        self.views = self.layout.unflatten(self.weights)
        named = dict(module.named_parameters())
        self.parameters = [named[name] for name in self.views]
        for name, parameter in zip(self.views, self.parameters):
            parameter.data = self.views[name]
        self.losses: list[float] = []

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        correct: Correction | None = None,
        reweight: Reweight | None = None,
        key: int = 0,
        record: bool = False,
    ) -> Tensor:
        """Trains one silo from `start` `(N,)` along a plan of one silo; returns the trained `(N,)`.

        `reweight` multiplies each row's loss before their mean is taken, by the whole batch's number of rows.

        `key` seeds layers that draw (dropout); the process's own generator is left as it was. With `record`, the mean
        loss over the steps is appended to `losses`.
        """
        self.weights.copy_(start)
        self.module.train()
        momentum = torch.zeros_like(self.weights) if self.train.momentum else None
        seen: list[Tensor] = []
        with seeded(key, self.device):
            for step in range(plan.steps):
                count = int(plan.counts[0, step])
                if count == 0:
                    break
                batch = rows.select(plan.rows[0, step, :count])
                outputs = self.module(layout_of_images(batch.features).to(self.device))
                losses = self.task.losses(outputs, batch.targets.to(self.device))
                loss = (losses if reweight is None else losses * Weigh(reweight, batch.groups)(losses)).mean()
                # Fresh gradients, not .grad: nothing to set to zero and nothing to add onto.
                self._step(torch.autograd.grad(loss, self.parameters, materialize_grads=True), momentum, correct)
                if record:
                    seen.append(losses.detach().mean())
        if record:
            self.losses.append(float(torch.stack(seen).mean()) if seen else float("nan"))
        return self.weights.to(CPU, copy=True)

    def _step(self, slopes: Sequence[Tensor], momentum: Tensor | None, correct: Correction | None) -> None:
        if correct is None and momentum is None and not self.train.weight_decay:
            for view, slope in zip(self.views.values(), slopes):
                view.sub_(slope, alpha=self.train.learning_rate)
            return
        gradient = torch.cat([slope.reshape(-1) for slope in slopes])
        if self.train.weight_decay:
            gradient = gradient.add(self.weights, alpha=self.train.weight_decay)
        if correct is not None:
            # A strategy's own vectors are on the CPU, where moving to it gives the tensor itself.
            gradient = correct(self.weights.cpu(), gradient.cpu()).to(self.device)
        if momentum is not None:
            gradient = momentum.mul_(self.train.momentum).add_(gradient)
        self.weights.sub_(gradient, alpha=self.train.learning_rate)


def layout_of_images(features: Tensor) -> Tensor:
    """Channels last: convolution and pooling are several times faster there on a CPU.

    With one channel both layouts hold the same numbers in the same order, and torch would leave the strides, and so all
    layers, at channels first; hence the strides are given.
    """
    if features.dim() != 4:
        return features
    _, channels, height, width = features.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return torch.empty_strided(features.shape, strides, dtype=features.dtype).copy_(features)
