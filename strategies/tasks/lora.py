"""Any other task with a frozen, usually pretrained, base and low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from strategies import backbones
from strategies.lora import adapt
from strategies.schema import key
from strategies.tasks.base import TASKS, Chain, Shape, Task, task


def _bases() -> Mapping[str, type[Any]]:
    return {name: kind for name, kind in TASKS.items() if name != LoRA.name}


@task("lora")
@dataclass(frozen=True)
class LoRA(Task):
    """Low-rank adapters on the frozen layers of another task's model (Hu et al. 2021); its last layer trains in full.

    Only what trains travels, is clipped and is noised; the rest is the same, public and known to every silo.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"classification", "regression", "sequence"})
    places: ClassVar[frozenset[str]] = frozenset({"weights"})

    base: Task = key("mlp", variants=_bases, help="the task whose model is adapted")
    weights: str | None = key(
        None, help="what the base starts from: a backbone's name, or a safetensors file; null: the base's own start"
    )
    rank: int = key(16, at_least=1, help="rank of every adapter")
    alpha: float = key(16.0, above=0, help="adapters are scaled by alpha / rank")
    dropout: float = key(0.1, at_least=0, below=1, help="chance that a number into an adapter is zero in training")
    targets: tuple[str, ...] | None = key(
        None, help="layers to adapt, by the ends of their names; null: all dense and convolutional ones but the head"
    )
    freeze: Literal["none", "a"] = key(
        "none", help="a: A stays as it started and B alone trains (FFA-LoRA), so that means of B A are exact"
    )
    head: bool = key(True, help="train the base's last layer in full; false: frozen")

    def __post_init__(self) -> None:
        if isinstance(self.base, LoRA):
            raise ValueError("base: adapters on adapters; give the task that is adapted")
        object.__setattr__(self, "kinds", self.base.kinds)  # An instance is for what its own base is for.
        object.__setattr__(self, "tokens", self.base.tokens)

    def module(self, shape: Shape) -> nn.Module:
        """The base with its weights, frozen, and adapters that add nothing yet.

        Raises:
            ValueError: the base cannot take such features, weights that do not fit it, or nothing to adapt.
        """
        module, _ = self._started(shape)
        return self._adapted(module)

    def structure(self, shape: Shape) -> nn.Module:
        """The same names and shapes, without the weights."""
        return self._adapted(self.base.structure(shape))

    def notes(self, shape: Shape) -> tuple[str, ...]:
        """Says where the head starts anew, and what the base says itself."""
        if self.weights is None:
            return self.base.notes(shape)
        _, unfit = self._started(shape)
        anew = f"task.weights: the head starts anew, since {self.weights} holds {unfit}"
        return (*self.base.notes(shape), *([] if unfit is None else [anew]))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The base's."""
        return self.base.losses(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The base's."""
        return self.base.score(outputs, targets)

    def stack_adapted(self, shape: Shape) -> Chain | None:
        """The base's chain; None with dropout, whose draws belong to one silo at a time."""
        return None if self.dropout else self.base.stack(shape)

    def _started(self, shape: Shape) -> tuple[nn.Module, str | None]:
        """The base, and why its head is not that of the weights, where it is not."""
        module = self.base.module(shape)
        if self.weights is None:
            return module, None
        try:
            tensors = backbones.read(self.weights)
        except ValueError as error:
            raise ValueError(f"task.weights: {error}") from error
        try:
            unfit = backbones.fill(module, tensors, head=_head(module))
        except ValueError as error:
            raise ValueError(f"task.weights: {self.weights}: {error}") from error
        if unfit is not None and not self.head:
            line = f"holds {unfit}; the head must fit where it is not trained: set head: true, or give other weights"
            raise ValueError(f"task.weights: {self.weights}: {line}")
        return module, unfit

    def _adapted(self, module: nn.Module) -> nn.Module:
        head, settings = _head(module), {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        try:
            adapt(module, **settings, targets=self.targets, head=[head])  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"task.{error}") from error
        if not self.head:
            module.get_submodule(head).requires_grad_(False)
        if (
            self.freeze == "a"
        ):  # Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning", 2403.12313.
            for name, parameter in module.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad_(False)
        return module


def _head(module: nn.Module) -> str:
    """The name of the last layer, which gives the outputs.

    Raises:
        ValueError: it is not dense, so nobody knows what to train in full.
    """
    layers = [(name, part) for name, part in module.named_modules() if list(part.parameters(recurse=False))]
    name: str
    name, last = layers[-1]
    if not name or type(last) is not nn.Linear:
        raise ValueError(f"task.base: the last layer of its model is a {type(last).__name__}; a head must be dense")
    return name
