"""What a task is: a model, what it is trained to do, and how well it does it.

The objective follows the targets: classes (int64) are scored by cross-entropy and accuracy, numbers (floating point) by
squared error. A sequence's loss is the mean over its positions, so that one row is one example whatever its length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from strategies.layout import Layout
from strategies.named import enter

Kind = TypeVar("Kind", bound="type[Task]")

TASKS: dict[str, type[Task]] = {}
"""The tasks by the name that a config gives them."""


@dataclass(frozen=True)
class Shape:
    """What a model must fit; known publicly, and the same for every silo.

    Attributes:
        features: the shape of one row's features: `(64,)`, `(1, 8, 8)`, or `(80,)` tokens.
        outputs: how many classes; 1 for regression; the vocabulary's size for sequences.
    """

    features: tuple[int, ...]
    outputs: int

    def __post_init__(self) -> None:
        if not self.features or not all(size >= 1 for size in self.features):
            raise ValueError(f"features has shape {self.features}: a row needs at least one number")
        if not self.outputs >= 1:
            raise ValueError(f"outputs must be >= 1, got {self.outputs!r}")

    @property
    def metric(self) -> Literal["accuracy", "mse"]:
        """What the score means: mean squared error for one output, accuracy for classes."""
        return "mse" if self.outputs == 1 else "accuracy"


@dataclass(frozen=True)
class Chain:
    """A model that is dense layers in a row, described so that an engine can train many silos by batched products.

    The flat vector holds, layer by layer, the weight `(out, in)` in row-major order and then the bias `(out,)`; layer
    `i` maps `widths[i]` numbers to `widths[i + 1]`, on features flattened to one axis.

    Attributes:
        widths: numbers into the first layer, out of each layer.
        activation: between layers, never after the last; None for a single layer.
        loss: what `Task.losses` computes for this model.
    """

    widths: tuple[int, ...]
    activation: Literal["relu", "tanh"] | None
    loss: Literal["cross_entropy", "squared"]


class Task(ABC):
    """A learning problem's model and objective. Subclasses are frozen dataclasses; their fields are their YAML schema.

    Attributes:
        name: what a config calls it.
        kinds: the kinds of data it accepts, of "classification", "regression" and "sequence".
        places: keys that may hold a path of this machine, which is no part of the experiment's digest. What the file
            holds must be frozen in the model: then it is a part of the run's identity.
        tokens: whether rows are tokens, `(rows, length)` int64, and not quantities.
    """

    name: ClassVar[str] = ""
    kinds: ClassVar[frozenset[str]] = frozenset()
    places: ClassVar[frozenset[str]] = frozenset()
    tokens: ClassVar[bool] = False

    @abstractmethod
    def module(self, shape: Shape) -> nn.Module:
        """A new model: features `(rows, *shape.features)` to outputs `(rows, outputs)`.

        A sequence's outputs are `(rows, length, outputs)`. Random starts draw from torch's global CPU generator.

        Raises:
            ValueError: the model cannot take such features or give such outputs.
        """

    def structure(self, shape: Shape) -> nn.Module:
        """A model of the same names and shapes, to load a saved one into; files that only start one are not needed."""
        return self.module(shape)

    def notes(self, shape: Shape) -> tuple[str, ...]:
        """What a reader of results must know of the model's start; lines for people."""
        return ()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each row, `(rows,)`: cross-entropy, or half the squared error.

        Args:
            outputs: `(rows, classes)`, `(rows, length, classes)`, or `(rows, 1)` for regression.
            targets: `(rows,)` or `(rows, length)` int64 classes, or `(rows,)` floating point.
        """
        if targets.is_floating_point():
            return 0.5 * squared_error(outputs, targets)
        each = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return _per_row(each.view(targets.shape))

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How well each row is predicted, `(rows,)` float32: 1 or 0 for a class, the squared error for a number.

        A sequence's score is the fraction of positions predicted correctly. Arguments as for `losses`.
        """
        if targets.is_floating_point():
            return squared_error(outputs, targets)
        return _per_row((outputs.argmax(-1) == targets).float())

    def stack(self, shape: Shape) -> Chain | None:
        """The model as a chain of dense layers whose `losses` are the inherited ones, or None if it is not one."""
        return None

    def stack_adapted(self, shape: Shape) -> Chain | None:
        """The base as such a chain, where the model is that base with adapters that draw nothing; else None."""
        return None


def task(name: str) -> Callable[[Kind], Kind]:
    """Registers a frozen dataclass as the task that a config calls `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(cls: Kind) -> Kind:
        enter(TASKS, cls, what="task", name=name)
        return cls

    return register


def initial(task: Task, shape: Shape, *, seed: int) -> tuple[nn.Module, Tensor]:
    """A new model and its flat start vector `(N,)`, the same for the same seed; global generators stay untouched.

    Raises:
        ValueError: the task does not fit the shape, or its model has no `Layout`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every accelerator.
        module = task.module(shape)
    return module, Layout.of(module).flatten(module)


def evaluate(
    task: Task,
    module: nn.Module,
    layout: Layout,
    vector: Tensor,
    features: Tensor,
    targets: Tensor,
    *,
    batch: int = 1024,
) -> dict[str, float]:
    """The mean loss and score of a model over rows.

    Args:
        task: says what loss and score are.
        module: the model's structure; its parameters are left as they are.
        layout: where the module's parameters lie in `vector`.
        vector: the parameters to evaluate, `(N,)`; rows are moved to its device.
        features: `(rows, ...)`.
        targets: `(rows,)` or `(rows, length)`.
        batch: rows per forward pass.

    Returns:
        "loss", and "accuracy" for classes or "mse" for numbers.

    Raises:
        ValueError: there are no rows, or batch is not positive.
    """
    rows = len(targets)
    if rows == 0 or not batch > 0:
        raise ValueError(f"evaluating {rows} rows, {batch} at a time: both must be at least 1")
    parameters = layout.unflatten(vector)
    loss = score = 0.0
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            for x, y in zip(torch.split(features, batch), torch.split(targets, batch)):
                x, y = x.to(vector.device), y.to(vector.device)
                outputs = functional_call(module, parameters, (x,))
                loss += task.losses(outputs, y).sum(dtype=torch.float64).item()
                score += task.score(outputs, y).sum(dtype=torch.float64).item()
    finally:
        for child, training in modes:  # One by one: a plug-in may hold a part of its model in evaluation.
            child.training = training
    return {"loss": loss / rows, "mse" if targets.is_floating_point() else "accuracy": score / rows}


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error of each row, `(rows,)`, of outputs `(rows, 1)`.

    Raises:
        ValueError: the shapes disagree; broadcasting would pair every output with every target.
    """
    if outputs.shape != (*targets.shape, 1):
        raise ValueError(f"outputs has shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}: need one per row")
    return (outputs.squeeze(-1) - targets).square()


def _per_row(values: Tensor) -> Tensor:
    return values if values.dim() == 1 else values.flatten(1).mean(1)
