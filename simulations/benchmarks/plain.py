"""The same rounds as a plain PyTorch loop, as most people would write them: what the engines are measured against."""

from __future__ import annotations

import torch
from torch import nn

from client.examples import Shards
from strategies.tasks import Shape, Task, initial


class PlainLoop:
    """FedAvg with silo-level DP: a module, torch.optim.SGD, one silo after the other.

    Args:
        task: model and loss.
        shape: what the model fits.
        shards: the silos' rows.
        batch: rows per step.
        learning_rate: of SGD.
        clip_norm: of a silo's update.
        noise_multiplier: std of the noise on the sum / clip norm.
        threads: of torch, while a round runs.
    """

    def __init__(
        self,
        task: Task,
        shape: Shape,
        shards: Shards,
        *,
        batch: int,
        learning_rate: float,
        clip_norm: float,
        noise_multiplier: float,
        threads: int,
    ) -> None:
        self.task, self.shards, self.batch, self.learning_rate = task, shards, batch, learning_rate
        self.clip_norm, self.noise_multiplier, self.threads = clip_norm, noise_multiplier, threads
        self.module, _ = initial(task, shape, seed=0)

    def round(self) -> int:
        """One round over all silos, one epoch each; returns how many were trained."""
        before, silos = torch.get_num_threads(), len(self.shards)
        torch.set_num_threads(self.threads)
        start = [parameter.detach().clone() for parameter in self.module.parameters()]
        total = [torch.zeros_like(value) for value in start]
        for silo in range(silos):
            self._train(silo, start)
            with torch.no_grad():
                delta = [now - value for now, value in zip(self.module.parameters(), start)]
                norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in delta]))
                factor = min(1.0, self.clip_norm / (float(norm) + 1e-12))
                for part, sum_ in zip(delta, total):
                    sum_.add_(part, alpha=factor)
        with torch.no_grad():
            for parameter, value, sum_ in zip(self.module.parameters(), start, total):
                sum_.add_(torch.randn_like(sum_), alpha=self.noise_multiplier * self.clip_norm)
                parameter.copy_(value + sum_ / silos)
        torch.set_num_threads(before)
        return silos

    def _train(self, silo: int, start: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.module.parameters(), start):
                parameter.copy_(value)
        rows = self.shards.silo(silo)
        optimizer = torch.optim.SGD(self.module.parameters(), lr=self.learning_rate)
        self.module.train()
        for batch in torch.split(torch.randperm(len(rows)), self.batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.module(rows.features[batch]), rows.targets[batch])
            torch.autograd.backward(loss)
            optimizer.step()
