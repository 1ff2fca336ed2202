"""DP-SGD of a stack of silos at once, for chains of dense layers: per-example norms in closed form.

One example's gradient of a dense layer is the outer product of its slope d and its input a, so its squared norm is
|d|^2 (|a|^2 + 1), bias included (Goodfellow 2015, arXiv 1510.01799): one forward and one backward pass give all norms,
and one more product per layer the sum of the clipped gradients. No example's gradient is ever written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.batches import Plan
from client.descent import Descent
from client.examples import Examples
from client.reweighting import Weigh
from client.stacked import StackedTrainer
from privacy.noise import SystemNoise
from privacy.steps import NoisySteps
from strategies.base import Correction, Penalty, Reweight
from strategies.experiment import Train
from strategies.tasks import Chain


class PrivateStackedTrainer:
    """Local DP-SGD on `(silos, N)` vectors."""

    def __init__(self, chain: Chain, train: Train) -> None:
        self.train, self.dense = train, StackedTrainer(chain, train)
        self.losses: list[float] = []

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        steps: Sequence[NoisySteps],
        noise: Sequence[torch.Generator | SystemNoise],
        correct: Correction | None = None,
        penalty: Penalty | None = None,
        reweight: Reweight | None = None,
        record: bool = False,
    ) -> Tensor:
        """Trains every silo of a Poisson plan from `start`, `(N,)` or `(silos, N)`; returns `(silos, N)`.

        As `client.private.PrivateTrainer.fit`, with `steps` and `noise` of each silo; all clip alike.
        """
        silos = plan.rows.shape[0]
        weights = start.expand(silos, -1).clone(memory_format=torch.contiguous_format)
        descent, total = Descent(weights, self.train, correct), torch.zeros(silos)
        for step in range(plan.steps):
            count = plan.counts[:, step]
            index = plan.rows[:, step, : int(count.max())]
            pull = None if penalty is None else penalty(weights)
            sums, losses = self.sums(weights, rows, index, count, steps, pull, reweight=reweight)
            descent.step(torch.stack([own.release(part, rng) for own, part, rng in zip(steps, sums, noise)]))
            total += losses
        if record:
            self.losses += (total / plan.counts.sum(1)).tolist()  # NaN without a row: there is no loss.
        return weights

    def sums(
        self,
        weights: Tensor,
        rows: Examples,
        index: Tensor,
        count: Tensor,
        steps: Sequence[NoisySteps],
        pull: Tensor | None = None,
        *,
        reweight: Reweight | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sums of clipped gradients, `(silos, N)`, and the sums of losses, `(silos,)`.

        Args:
            weights: `(silos, N)`.
            rows: all silos' rows.
            index: `(silos, batch)`, the rows of each silo's batch; what is past `count` is padding.
            count: `(silos,)`.
            steps: of each silo; all clip alike.
            pull: `(silos, N)`, a silo's vector that is added to each of its rows' gradients before the clip.
            reweight: what multiplies each row's loss before that; see `strategies.base.Silo.fit`.
        """
        silos, batch = index.shape
        if batch == 0:
            return torch.zeros_like(weights), weights.new_zeros(silos)
        if len({own.clip_norm for own in steps}) > 1:
            raise ValueError("silos in one stack must clip alike; train them one by one")
        real = torch.arange(batch) < count.unsqueeze(-1)
        features = rows.features.flatten(1).index_select(0, index.reshape(-1)).view(silos, batch, -1)
        # Zeros, not weights of zero: padding is some silo's real row, and 0 times infinity would show it.
        features = features.masked_fill(~real.unsqueeze(-1), 0.0)
        goals = rows.targets.index_select(0, index.reshape(-1)).view(silos, batch)
        layers = self.dense.layers(weights)
        values = self.dense.forward(layers, features)
        losses = self.dense.row_losses(values[-1], goals)
        signal = self.dense.slopes(values[-1], goals)
        if reweight is not None:
            groups = None if rows.groups is None else rows.groups.index_select(0, index.reshape(-1)).view(silos, batch)
            signal.mul_(Weigh(reweight, groups, private=True)(losses).unsqueeze(-1))
        losses = losses.masked_fill(~real, 0.0).sum(1)
        slopes = dict(self.dense.signals(layers, values, signal))
        if pull is not None:
            return self._pulled(values, slopes, real, steps[0], pull.expand_as(weights)).to(weights.dtype), losses
        factors = steps[0].factors(_squares(values, slopes).sqrt()) * real
        return _weighted(values, slopes, factors), losses

    def _pulled(
        self, values: Sequence[Tensor], slopes: dict[int, Tensor], real: Tensor, steps: NoisySteps, pull: Tensor
    ) -> Tensor:
        """The sum of the clipped g + r, where r is the pull: |g + r|^2 = |g|^2 + 2 <g, r> + |r|^2, layer by layer.

        In double precision: gradient and pull may cancel, and what single precision leaves of two long vectors would be
        clipped by a norm that is too small.
        """
        values, slopes, pull = _wide(values, slopes, pull)
        inner = [
            (slopes[number] * (torch.bmm(values[number], own.weight.transpose(1, 2)) + own.bias.unsqueeze(1))).sum(-1)
            for number, own in enumerate(self.dense.dense(pull))
        ]
        both = _squares(values, slopes) + 2.0 * torch.stack(inner).sum(0) + pull.square().sum(-1, keepdim=True)
        factors = steps.factors(both.clamp(min=0.0).sqrt()) * real
        times = factors.sum(1, keepdim=True)
        shared = torch.where(times > 0, times * pull, 0.0)  # A pull that is not finite went with its rows.
        return _weighted(values, slopes, factors) + shared


def _wide(
    values: Sequence[Tensor], slopes: dict[int, Tensor], pull: Tensor
) -> tuple[list[Tensor], dict[int, Tensor], Tensor]:
    """All in double precision."""
    return [value.double() for value in values], {at: slope.double() for at, slope in slopes.items()}, pull.double()


def _squares(values: Sequence[Tensor], slopes: dict[int, Tensor]) -> Tensor:
    """The squared norm of each row's whole gradient, `(silos, batch)`."""
    squares = [
        slope.square().sum(-1) * (values[number].square().sum(-1) + 1.0)  # The 1 is the bias.
        for number, slope in slopes.items()
    ]
    return torch.stack(squares).sum(0)


def _weighted(values: Sequence[Tensor], slopes: dict[int, Tensor], factors: Tensor) -> Tensor:
    """The sum of all rows' gradients, each times its factor, `(silos, N)`."""
    unused, several = (factors == 0).unsqueeze(-1), bool((factors == 0).any())
    parts: list[Tensor] = []
    for number in sorted(slopes):
        slope, inputs = slopes[number] * factors.unsqueeze(-1), values[number]
        if several:  # What is not finite must leave: 0 times infinity is not 0.
            slope, inputs = slope.masked_fill(unused, 0.0), inputs.masked_fill(unused, 0.0)
        parts += [torch.bmm(slope.transpose(1, 2), inputs).flatten(1), slope.sum(1)]
    return torch.cat(parts, dim=1)
