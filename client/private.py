"""DP-SGD of one silo at a time, for any model: Poisson batches, clipped by Opacus' hooks, noised and divided here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from client.batches import Plan
from client.descent import Descent
from client.device import seeded
from client.example_sums import ExampleSums
from client.examples import Examples
from client.reweighting import Weigh
from client.single import layout_of_images
from privacy.noise import SystemNoise
from privacy.steps import NoisySteps
from strategies.base import Correction, Penalty, Reweight
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.tasks import Task


class PrivateTrainer:
    """Runs DP-SGD on a twin of the module, where that lies; the twin is wrapped once and kept for the whole run.

    Clipped sums are found on that device; noise, and all that follows it, is the CPU's.

    Raises:
        UnsupportedModel: Opacus cannot take the module.
    """

    def __init__(self, module: nn.Module, task: Task, train: Train) -> None:
        self.train, self.sums = train, ExampleSums(module, task)
        self.layout = Layout.of(module)
        self.device = next(iter(self.sums.parameters)).device
        self.weights = torch.zeros(self.layout.size, device=self.device)
        self._views(self.sums)
        self._module = module
        self._written: ExampleSums | None = None
        self.losses: list[float] = []

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        steps: NoisySteps,
        noise: torch.Generator | SystemNoise,
        correct: Correction | None = None,
        penalty: Penalty | None = None,
        reweight: Reweight | None = None,
        key: int = 0,
        record: bool = False,
    ) -> Tensor:
        """Trains one silo from `start` `(N,)` along a Poisson plan of one silo; returns the trained `(N,)`.

        Every step of the plan is taken, on an empty batch too: how many rows there were is private.

        Args:
            start: where to begin.
            rows: all silos' rows.
            plan: from `client.poisson`.
            steps: clip, noise and divisor.
            noise: the silo's own for this fit.
            correct: acts after the noise, on weights and gradient alone.
            penalty: added to every row's gradient before it is clipped.
            reweight: multiplies every row's loss before that.
            key: seeds layers that draw (dropout); the process's own generator is left as it was.
            record: append the mean loss over all rows seen to `losses`; private.
        """
        self.weights.copy_(start)
        weights = self.weights.cpu()  # On the CPU the very same tensor.
        descent, seen = Descent(weights, self.train, correct), []
        with seeded(key, self.device):
            for step in range(plan.steps):
                batch = rows.select(plan.rows[0, step, : int(plan.counts[0, step])])
                pull = None if penalty is None else penalty(weights).to(self.device)
                weigh = None if reweight is None else Weigh(reweight, batch.groups, private=True)
                sums, losses = self._total(batch.features, batch.targets, steps, pull, weigh)
                descent.step(steps.release(torch.cat([part.reshape(-1) for part in sums]).cpu(), noise))
                if weights is not self.weights:
                    self.weights.copy_(weights)
                seen.append(losses)
        if record:
            self.losses.append(float(torch.cat(seen).mean()))  # NaN without a row: there is no loss.
        return weights.clone()

    def _total(
        self, features: Tensor, targets: Tensor, steps: NoisySteps, pull: Tensor | None, weigh: Weigh | None
    ) -> tuple[list[Tensor], Tensor]:
        targets = targets.to(self.device)
        if pull is None:
            return self.sums.total(layout_of_images(features).to(self.device), targets, steps, weigh=weigh)
        # A penalty meets gradients that are written out, which only hooks do; those of a convolution go wrong with
        # channels last, and are then refused.
        if self._written is None:
            self._written = ExampleSums(self._module, self.sums.task, hooks=True)
            self._views(self._written)
        return self._written.total(
            features.to(self.device),
            targets,
            steps,
            pull=list(self.layout.unflatten(pull).values()),
            weigh=weigh,
        )

    def _views(self, sums: ExampleSums) -> None:
        """Makes parameters views of the one vector that is trained."""
        for parameter, view in zip(sums.parameters, self.layout.unflatten(self.weights).values()):
            parameter.data = view
