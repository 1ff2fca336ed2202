"""Training a stack of silos at once, for chains of dense layers, by batched matrix products.

Forward, backward and step are written out for `Chain` models (linear, logistic, MLP): one batched product per layer
does for a whole chunk of silos what a loop would do with thousands of small calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.batches import Plan
from client.examples import Examples
from strategies.base import Correction
from strategies.experiment import Train
from strategies.tasks import Chain


@dataclass(frozen=True)
class _Layer:
    """One dense layer of every silo."""

    weight: Tensor  # (silos, out, in)
    bias: Tensor  # (silos, out)


class StackedTrainer:
    """Local SGD on `(silos, N)` vectors."""

    def __init__(self, chain: Chain, train: Train) -> None:
        self.chain, self.train = chain, train
        self.losses: list[float] = []

    def fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        correct: Correction | None = None,
        record: bool = False,
    ) -> Tensor:
        """Trains every silo of a plan from `start`, `(N,)` or `(silos, N)`; returns `(silos, N)`.

        With `record`, each silo's mean loss over its steps is appended to `losses`.
        """
        silos = plan.rows.shape[0]
        features, targets = rows.features.flatten(1), rows.targets
        plain = correct is None and not self.train.momentum and not self.train.weight_decay
        walk: _Plain | _Corrected
        walk = _Plain(self, start, silos) if plain else _Corrected(self, start, silos, correct)
        total = torch.zeros(silos)
        for step in range(plan.steps):
            index, count = plan.rows[:, step].reshape(-1), None if plan.full else plan.counts[:, step]
            values = self.forward(walk.layers, features.index_select(0, index).view(silos, -1, features.shape[1]))
            goals = targets.index_select(0, index).view(silos, -1)
            signal, losses = self._signal(values[-1], goals, count, record=record)
            if losses is not None:
                total += losses
            walk.step(values, signal, count)
        if record:
            self.losses += (total / (plan.counts > 0).sum(1)).tolist()  # NaN for a silo without a step: it has no loss.
        vectors = walk.vectors()
        idle = plan.counts.sum(1) == 0
        if bool(idle.any()):  # Its padding is another silo's row, of which nothing may show, not even that it is NaN.
            vectors[idle] = start.expand(silos, -1)[idle]
        return vectors

    def layers(self, flat: Tensor) -> list[_Layer]:
        """Views of flat vectors `(silos, N)`, layer by layer."""
        layers, at, silos = [], 0, flat.shape[0]
        for inputs, outputs in zip(self.chain.widths, self.chain.widths[1:]):
            weight = flat[:, at : at + outputs * inputs].view(silos, outputs, inputs)
            at += outputs * inputs
            layers.append(_Layer(weight, flat[:, at : at + outputs]))
            at += outputs
        return layers

    def forward(self, layers: Sequence[_Layer], inputs: Tensor) -> list[Tensor]:
        """The input of every layer, and at the end the outputs; each `(silos, batch, width)`."""
        values = [inputs]
        for number, layer in enumerate(layers):
            value = torch.bmm(values[-1], layer.weight.transpose(1, 2)).add_(layer.bias.unsqueeze(1))
            if number < len(layers) - 1:
                value = value.relu_() if self.chain.activation == "relu" else value.tanh_()
            values.append(value)
        return values

    def _signal(
        self, outputs: Tensor, goals: Tensor, count: Tensor | None, *, record: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of each silo's mean loss by its outputs; and with `record` that mean loss, `(silos,)`."""
        share = _shares(goals.shape[1], count)
        signal = self.slopes(outputs, goals)
        losses = (self.row_losses(outputs, goals) * share.squeeze(-1)).sum(1) if record else None
        return signal.mul_(share), losses

    def slopes(self, outputs: Tensor, goals: Tensor) -> Tensor:
        """The gradient of each row's loss by its own outputs, `(silos, batch, outputs)`."""
        if self.chain.loss == "squared":
            return outputs - goals.unsqueeze(-1)
        signal = torch.softmax(outputs, -1)
        return signal.scatter_add_(-1, goals.unsqueeze(-1), signal.new_full((), -1.0).expand(*goals.shape, 1))

    def row_losses(self, outputs: Tensor, goals: Tensor) -> Tensor:
        """Each row's loss, `(silos, batch)`."""
        if self.chain.loss == "squared":
            return 0.5 * (outputs.squeeze(-1) - goals).square()
        return -torch.log_softmax(outputs, -1).gather(-1, goals.unsqueeze(-1)).squeeze(-1)

    def signals(
        self, layers: Sequence[_Layer], values: Sequence[Tensor], signal: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The gradient by every layer's outputs, last layer first.

        A layer's weight is read before its gradient is given out, so the taker may change it at once.
        """
        for number in reversed(range(len(layers))):
            below = torch.bmm(signal, layers[number].weight) if number else None
            yield number, signal
            if below is not None:
                inputs = values[number]
                slope = inputs.sign() if self.chain.activation == "relu" else 1 - inputs.square()
                signal = below.mul_(slope)  # A relu's output is never negative: its sign is its slope.


class _Plain:
    """Plain SGD: every layer steps in place, on tensors of its own, which batched products need to be fast."""

    def __init__(self, trainer: StackedTrainer, start: Tensor, silos: int) -> None:
        self.trainer = trainer
        views = trainer.layers(start.expand(silos, -1))
        # Cloned: a stack of one silo is contiguous already, and stepping in place would train the caller's vector.
        kept = torch.contiguous_format
        self.layers = [_Layer(v.weight.clone(memory_format=kept), v.bias.clone(memory_format=kept)) for v in views]

    def step(self, values: Sequence[Tensor], signal: Tensor, count: Tensor | None) -> None:
        """Steps; padding has no gradient, so a silo without rows stays where it is."""
        rate = self.trainer.train.learning_rate
        for number, part in self.trainer.signals(self.layers, values, signal):
            layer = self.layers[number]
            layer.weight.baddbmm_(part.transpose(1, 2), values[number], alpha=-rate)
            layer.bias.sub_(part.sum(1), alpha=rate)

    def vectors(self) -> Tensor:
        """The trained vectors, `(silos, N)`."""
        return torch.cat([part.flatten(1) for layer in self.layers for part in (layer.weight, layer.bias)], dim=1)


class _Corrected:
    """SGD on flat vectors, with momentum, weight decay and a strategy's correction of the gradient."""

    def __init__(self, trainer: StackedTrainer, start: Tensor, silos: int, correct: Correction | None) -> None:
        self.trainer, self.correct = trainer, correct
        self.weights = start.expand(silos, -1).clone()
        self.layers = trainer.layers(self.weights)
        self.momentum = torch.zeros_like(self.weights) if trainer.train.momentum else None

    def step(self, values: Sequence[Tensor], signal: Tensor, count: Tensor | None) -> None:
        """Steps; a silo without rows in this step stays where it is."""
        train, parts = self.trainer.train, {}
        for number, part in self.trainer.signals(self.layers, values, signal):
            weight = torch.bmm(part.transpose(1, 2), values[number])
            parts[number] = (weight.flatten(1), part.sum(1))
        gradient = torch.cat([piece for number in sorted(parts) for piece in parts[number]], dim=1)
        if train.weight_decay:
            gradient.add_(self.weights, alpha=train.weight_decay)
        if self.correct is not None:
            gradient = self.correct(self.weights, gradient)
        if self.momentum is not None:
            gradient = self.momentum.mul_(train.momentum).add_(gradient)
        if count is not None:
            gradient = gradient * (count > 0).unsqueeze(-1)
        self.weights.sub_(gradient, alpha=train.learning_rate)

    def vectors(self) -> Tensor:
        """The trained vectors, `(silos, N)`."""
        return self.weights


def _shares(batch: int, count: Tensor | None) -> Tensor:
    """What each row weighs in its silo's mean, `(silos or 1, batch or 1, 1)`; 0 for padding."""
    if count is None:
        return torch.full((1, 1, 1), 1.0 / batch)
    real = torch.arange(batch) < count.unsqueeze(-1)
    return (real / count.clamp(min=1).unsqueeze(-1)).float().unsqueeze(-1)
