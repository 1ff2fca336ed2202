"""Models of dense layers: linear and softmax regression, the multilayer perceptron. Features are flattened first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import nn

from strategies.schema import key
from strategies.tasks.base import Chain, Shape, Task, task


@task("linear")
@dataclass(frozen=True)
class Linear(Task):
    """Linear regression: loss `0.5 * (prediction - target)**2`, score `(prediction - target)**2`; starts at zero."""

    kinds: ClassVar[frozenset[str]] = frozenset({"regression"})

    def module(self, shape: Shape) -> nn.Module:
        """One dense layer with one output."""
        return _zeroed(_dense(self.stack(shape)))

    def stack(self, shape: Shape) -> Chain:
        """One layer."""
        if shape.outputs != 1:
            raise ValueError(
                f"task linear: regression has 1 output, found {shape.outputs} classes: use logistic or mlp"
            )
        return Chain((math.prod(shape.features), 1), None, "squared")


@task("logistic")
@dataclass(frozen=True)
class Logistic(Task):
    """Softmax regression: cross-entropy of one dense layer's logits; starts at zero, so on every machine alike."""

    kinds: ClassVar[frozenset[str]] = frozenset({"classification"})

    def module(self, shape: Shape) -> nn.Module:
        """One dense layer with a logit per class."""
        return _zeroed(_dense(self.stack(shape)))

    def stack(self, shape: Shape) -> Chain:
        """One layer."""
        if shape.outputs == 1:
            raise ValueError(
                "task logistic: needs at least 2 classes, found 1 output: use linear or mlp for regression"
            )
        return Chain((math.prod(shape.features), shape.outputs), None, "cross_entropy")


@task("mlp")
@dataclass(frozen=True)
class MLP(Task):
    """A multilayer perceptron, for classes or for one number."""

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    hidden: tuple[int, ...] = key((128,), at_least=1, help="width of each hidden layer")
    activation: Literal["relu", "tanh"] = key("relu", help="between layers")

    def __post_init__(self) -> None:
        if not self.hidden:
            raise ValueError("hidden is empty, give at least one width; without hidden layers use logistic or linear")

    def module(self, shape: Shape) -> nn.Module:
        """Dense layers with the activation in between, as PyTorch starts them."""
        return _dense(self.stack(shape))

    def stack(self, shape: Shape) -> Chain:
        """Every hidden layer and the output layer."""
        widths = (math.prod(shape.features), *self.hidden, shape.outputs)
        return Chain(widths, self.activation, "squared" if shape.outputs == 1 else "cross_entropy")


def _dense(chain: Chain) -> nn.Sequential:
    """A chain as a module: the widths and their order are written once, so the two cannot drift apart."""

    def layers() -> Iterator[nn.Module]:
        yield nn.Flatten()
        for layer, (into, out) in enumerate(pairwise(chain.widths)):
            if layer > 0:
                yield nn.Tanh() if chain.activation == "tanh" else nn.ReLU()
            yield nn.Linear(into, out)

    return nn.Sequential(*layers())


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
