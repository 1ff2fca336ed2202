"""Training a stack of silos at once, for chains of dense layers, by batched matrix products.

Forward, backward and step are written out for `Chain` models (linear, logistic, MLP): one batched product per layer
does for a whole chunk of silos what a loop would do with thousands of small calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from client.batches import Plan, alike, together
from client.examples import Examples
from client.reweighting import Weigh
from strategies.base import Correction, Reweight
from strategies.experiment import Train
from strategies.tasks import Chain


class Layer(Protocol):
    """One layer of every silo."""

    def outputs(self, inputs: Tensor) -> Tensor:
        """`(silos, batch, in)` to a new `(silos, batch, out)`."""
        ...

    def below(self, signal: Tensor) -> Tensor:
        """From the gradient by the outputs to that by the inputs."""
        ...

    def slopes(self, inputs: Tensor, signal: Tensor) -> list[Tensor]:
        """The gradient by what trains, in the order of the flat vector, `(silos, numbers)` each."""
        ...


@dataclass(frozen=True)
class Dense:
    """A dense layer that trains in full."""

    weight: Tensor  # (silos, out, in)
    bias: Tensor  # (silos, out)

    def outputs(self, inputs: Tensor) -> Tensor:
        """One batched product."""
        return torch.bmm(inputs, self.weight.transpose(1, 2)).add_(self.bias.unsqueeze(1))

    def below(self, signal: Tensor) -> Tensor:
        """One batched product."""
        return torch.bmm(signal, self.weight)

    def slopes(self, inputs: Tensor, signal: Tensor) -> list[Tensor]:
        """Of the weight and of the bias."""
        return [torch.bmm(signal.transpose(1, 2), inputs).flatten(1), signal.sum(1)]


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
        reweight: Reweight | None = None,
        record: bool = False,
    ) -> Tensor:
        """Trains every silo of a plan from `start`, `(N,)` or `(silos, N)`; returns `(silos, N)`.

        `correct` and `reweight` as `strategies.base.Silo.fit` has them.

        With `record`, each silo's mean loss over its steps is appended to `losses`.
        """
        # Those two are for the silos of this stack, in their order; and full batches are all alike.
        if correct is not None or reweight is not None or plan.full:
            plan = together(plan, self.train)
            return self._fit(start, rows, plan, correct=correct, reweight=reweight, record=record)
        stacks, known = alike(plan, self.train), len(self.losses)
        starts = [start[silos] if start.dim() == 2 else start for silos, _ in stacks]
        vectors = [self._fit(s, rows, own, correct=None, record=record) for s, (_, own) in zip(starts, stacks)]
        back = torch.cat([silos for silos, _ in stacks]).argsort()
        losses = self.losses[known:]
        self.losses[known:] = [losses[at] for at in back.tolist()] if record else []
        return torch.cat(vectors)[back]

    def _fit(
        self,
        start: Tensor,
        rows: Examples,
        plan: Plan,
        *,
        correct: Correction | None,
        record: bool,
        reweight: Reweight | None = None,
    ) -> Tensor:
        """As `fit`; silos without a step left are left out where they come last and nobody corrects."""
        silos = plan.rows.shape[0]
        features, targets = rows.features.flatten(1), rows.targets
        walk = self._walk(start, silos, correct)
        total = torch.zeros(silos)
        narrow = not plan.full and correct is None and reweight is None
        shapes = plan.shapes if narrow else [(silos, plan.rows.shape[2])] * plan.steps
        for step, (active, width) in enumerate(shapes):
            batch = plan.rows[:active, step, :width]
            count = None if plan.full else plan.counts[:active, step]
            if narrow:
                walk.narrow(active)
            index = batch.reshape(-1)
            values = self.forward(walk.layers, features.index_select(0, index).view(*batch.shape, -1))
            goals = targets.index_select(0, index).view(batch.shape)
            weigh = None
            if reweight is not None:
                groups = rows.groups
                weigh = Weigh(reweight, None if groups is None else groups.index_select(0, index).view(batch.shape))
            signal, losses = self._signal(values[-1], goals, count, weigh=weigh, record=record)
            if losses is not None:
                total[: len(losses)] += losses
            walk.step(values, signal, count)
        if record:
            self.losses += (total / (plan.counts > 0).sum(1)).tolist()  # NaN for a silo without a step: it has no loss.
        vectors = walk.vectors()
        idle = plan.counts.sum(1) == 0
        if bool(idle.any()):  # Its padding is another silo's row, of which nothing may show, not even that it is NaN.
            vectors[idle] = start.expand(silos, -1)[idle]
        return vectors

    def _walk(self, start: Tensor, silos: int, correct: Correction | None) -> _Plain | Corrected:
        plain = correct is None and not self.train.momentum and not self.train.weight_decay
        return _Plain(self, start, silos) if plain else Corrected(self, start, silos, correct)

    def layers(self, flat: Tensor) -> Sequence[Layer]:
        """Views of flat vectors `(silos, N)`, layer by layer."""
        return self.dense(flat)

    def dense(self, flat: Tensor) -> list[Dense]:
        """The same, for layers that train in full."""
        layers, at, silos = [], 0, flat.shape[0]
        for inputs, outputs in zip(self.chain.widths, self.chain.widths[1:]):
            weight = flat[:, at : at + outputs * inputs].view(silos, outputs, inputs)
            at += outputs * inputs
            layers.append(Dense(weight, flat[:, at : at + outputs]))
            at += outputs
        return layers

    def forward(self, layers: Sequence[Layer], inputs: Tensor) -> list[Tensor]:
        """The input of every layer, and at the end the outputs; each `(silos, batch, width)`."""
        values = [inputs]
        for number, layer in enumerate(layers):
            value = layer.outputs(values[-1])
            if number < len(layers) - 1:
                value = value.relu_() if self.chain.activation == "relu" else value.tanh_()
            values.append(value)
        return values

    def _signal(
        self, outputs: Tensor, goals: Tensor, count: Tensor | None, *, weigh: Weigh | None, record: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradient of each silo's mean weighed loss by its outputs; and with `record` its mean loss, `(silos,)`."""
        share = _shares(goals.shape[1], count)
        signal = self.slopes(outputs, goals)
        losses = (self.row_losses(outputs, goals) * share.squeeze(-1)).sum(1) if record else None
        if weigh is not None:  # Padding is some silo's row: its weight may be anything, and 0 times infinity is not 0.
            weights = weigh(self.row_losses(outputs, goals)).unsqueeze(-1)
            share = torch.where(share > 0, share * weights, 0.0)
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
        self, layers: Sequence[Layer], values: Sequence[Tensor], signal: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The gradient by every layer's outputs, last layer first.

        A layer's weight is read before its gradient is given out, so the taker may change it at once.
        """
        for number in reversed(range(len(layers))):
            below = layers[number].below(signal) if number else None
            yield number, signal
            if below is not None:
                inputs = values[number]
                slope = inputs.sign() if self.chain.activation == "relu" else 1 - inputs.square()
                signal = below.mul_(slope)  # A relu's output is never negative: its sign is its slope.


class _Plain:
    """Plain SGD: every layer steps in place, on tensors of its own, which batched products need to be fast."""

    def __init__(self, trainer: StackedTrainer, start: Tensor, silos: int) -> None:
        self.trainer = trainer
        views = trainer.dense(start.expand(silos, -1))
        # Cloned: a stack of one silo is contiguous already, and stepping in place would train the caller's vector.
        kept = torch.contiguous_format
        self.whole = [Dense(v.weight.clone(memory_format=kept), v.bias.clone(memory_format=kept)) for v in views]
        self.layers = self.whole

    def narrow(self, silos: int) -> None:
        """From now on only the first silos step."""
        self.layers = [Dense(each.weight[:silos], each.bias[:silos]) for each in self.whole]

    def step(self, values: Sequence[Tensor], signal: Tensor, count: Tensor | None) -> None:
        """Steps; padding has no gradient, so a silo without rows stays where it is."""
        rate = self.trainer.train.learning_rate
        for number, part in self.trainer.signals(self.layers, values, signal):
            layer = self.layers[number]
            layer.weight.baddbmm_(part.transpose(1, 2), values[number], alpha=-rate)
            layer.bias.sub_(part.sum(1), alpha=rate)

    def vectors(self) -> Tensor:
        """The trained vectors, `(silos, N)`."""
        return torch.cat([part.flatten(1) for layer in self.whole for part in (layer.weight, layer.bias)], dim=1)


class Corrected:
    """SGD on flat vectors, with momentum, weight decay and a strategy's correction of the gradient."""

    def __init__(self, trainer: StackedTrainer, start: Tensor, silos: int, correct: Correction | None) -> None:
        self.trainer, self.correct = trainer, correct
        self.whole = start.expand(silos, -1).clone()
        self.past = torch.zeros_like(self.whole) if trainer.train.momentum else None
        self.narrow(silos)

    def narrow(self, silos: int) -> None:
        """From now on only the first silos step."""
        self.weights = self.whole[:silos]
        self.momentum = None if self.past is None else self.past[:silos]
        self.layers = self.trainer.layers(self.weights)

    def step(self, values: Sequence[Tensor], signal: Tensor, count: Tensor | None) -> None:
        """Steps; a silo without rows in this step stays where it is."""
        train, parts = self.trainer.train, {}
        for number, part in self.trainer.signals(self.layers, values, signal):
            parts[number] = self.layers[number].slopes(values[number], part)
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
        return self.whole


def _shares(batch: int, count: Tensor | None) -> Tensor:
    """What each row weighs in its silo's mean, `(silos or 1, batch or 1, 1)`; 0 for padding."""
    if count is None:
        return torch.full((1, 1, 1), 1.0 / batch)
    real = torch.arange(batch) < count.unsqueeze(-1)
    return (real / count.clamp(min=1).unsqueeze(-1)).float().unsqueeze(-1)
