"""Training a stack of silos at once, for chains of dense layers that are frozen and have low-rank adapters.

What is frozen is the same for every silo, so one matrix product serves the whole stack; only the adapters and the head
are batched over silos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from client.stacked import Corrected, Dense, Layer, StackedTrainer
from strategies.base import Correction
from strategies.experiment import Train
from strategies.layout import Layout
from strategies.lora import Adapter, LoRALinear, adapters
from strategies.tasks import Chain


@dataclass(frozen=True)
class Frozen:
    """A dense layer that does not train.

    Attributes:
        weight: `(out, in)`.
        bias: `(out,)`.
    """

    weight: Tensor
    bias: Tensor

    def outputs(self, inputs: Tensor) -> Tensor:
        """One product for all silos."""
        return nn.functional.linear(inputs, self.weight, self.bias)

    def below(self, signal: Tensor) -> Tensor:
        """One product for all silos."""
        return signal @ self.weight

    def slopes(self, inputs: Tensor, signal: Tensor) -> list[Tensor]:
        """Of nothing."""
        return []


@dataclass(frozen=True)
class Adapted:
    """A frozen layer with an adapter.

    Attributes:
        base: what is frozen.
        scaling: what B A is multiplied by.
        into: A, `(silos, rank, in)`.
        out: B, `(silos, out, rank)`.
        fixed: A does not train.
    """

    base: Frozen
    scaling: float
    into: Tensor
    out: Tensor
    fixed: bool

    def outputs(self, inputs: Tensor) -> Tensor:
        """The base's outputs, and the low-rank ones added to them."""
        low = torch.bmm(inputs, self.into.transpose(1, 2))
        return self.base.outputs(inputs).baddbmm_(low, self.out.transpose(1, 2), alpha=self.scaling)

    def below(self, signal: Tensor) -> Tensor:
        """Through the base, and through B and A."""
        low = torch.bmm(signal, self.out)
        return self.base.below(signal).baddbmm_(low, self.into, alpha=self.scaling)

    def slopes(self, inputs: Tensor, signal: Tensor) -> list[Tensor]:
        """Of A, where it trains, and of B."""
        low = torch.bmm(inputs, self.into.transpose(1, 2))
        out = torch.bmm(signal.transpose(1, 2), low).mul_(self.scaling).flatten(1)
        if self.fixed:
            return [out]
        into = torch.bmm(torch.bmm(signal, self.out).transpose(1, 2), inputs)
        return [into.mul_(self.scaling).flatten(1), out]


class StackedAdapters(StackedTrainer):
    """Local SGD on `(silos, N)` vectors of adapters and a head.

    Args:
        chain: the base as a chain of dense layers.
        train: the experiment's training section.
        module: the base, adapted, without dropout; its frozen tensors are used as they are.

    Raises:
        ValueError: the module is not such a chain.
    """

    def __init__(self, chain: Chain, train: Train, module: nn.Module) -> None:
        super().__init__(chain, train)
        self.layout, self.parts = Layout.of(module), _parts(module)
        bases = [_base(layer) for layer in self.parts.values()]
        widths = [base.weight.shape[::-1] if base.bias is not None else None for base in bases]
        trained = [name for part, layer in self.parts.items() for name in _trained(part, layer)]
        whole = all(_sends(layer) for layer in self.parts.values())
        dropout = any(isinstance(each, nn.Dropout) for each in module.modules())
        if widths != list(pairwise(chain.widths)) or trained != list(self.layout.names) or not whole or dropout:
            raise ValueError(f"{type(module).__name__} is no chain {chain.widths} of dense layers, adapted or whole")

    def layers(self, flat: Tensor) -> Sequence[Layer]:
        """Views of flat vectors `(silos, N)`, beside what is frozen, layer by layer."""
        views = self.layout.unflatten(flat)
        return [_layer(layer, [views[name] for name in _trained(part, layer)]) for part, layer in self.parts.items()]

    def _walk(self, start: Tensor, silos: int, correct: Correction | None) -> Corrected:
        return Corrected(self, start, silos, correct)


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """The dense layers in order, adapted ones as their adapters."""
    inside = tuple(f"{name}." for name in adapters(module))
    found = {name: each for name, each in module.named_modules() if isinstance(each, LoRALinear | nn.Linear)}
    return {name: each for name, each in found.items() if not name.startswith(inside)}


def _layer(layer: nn.Module, trained: Sequence[Tensor]) -> Layer:
    base = _base(layer)
    frozen = Frozen(base.weight.detach(), base.bias.detach())
    if not isinstance(layer, Adapter):
        return Dense(*trained) if trained else frozen
    into, *_ = trained
    fixed = len(trained) == 1  # FFA-LoRA: B alone trains.
    if fixed:
        into = layer.lora_A.get_parameter("weight").detach().expand(len(into), -1, -1)
    return Adapted(frozen, layer.scaling, into, trained[-1], fixed)


def _base(layer: nn.Module) -> nn.Linear:
    base = layer.base_layer if isinstance(layer, Adapter) else layer
    assert isinstance(base, nn.Linear)  # A Conv1D is no part of a chain's own module.
    return base


def _trained(part: str, layer: nn.Module) -> list[str]:
    """The names of what trains there."""
    return [f"{part}.{name}" for name, parameter in layer.named_parameters() if parameter.requires_grad]


def _sends(layer: nn.Module) -> bool:
    """Whether what trains there is A and B, B alone, all of a dense layer, or nothing."""
    trained = _trained("", layer)
    if isinstance(layer, Adapter):
        return trained in ([".lora_A.weight", ".lora_B.weight"], [".lora_B.weight"])
    return trained in ([".weight", ".bias"], [])
