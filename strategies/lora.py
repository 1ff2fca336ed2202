"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): a frozen layer W0 learns as W0 + (alpha / rank) B A.

A starts as PyTorch starts a dense layer and B at zero, so that an adapted model begins as its base. Names, shapes and
starts are those of the peft library, whose checkpoints `strategies.adapter_files` reads and writes; peft itself is not
needed. A and B are ordinary layers: whatever finds the gradients of single examples there finds them here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A frozen layer and its low-rank addition.

    Attributes:
        base_layer: what is adapted, frozen.
        lora_A: to `rank` numbers, or channels.
        lora_B: from there to what `base_layer` gives; starts at zero.
    """

    lora_A: nn.Module
    lora_B: nn.Module

    def __init__(self, base: nn.Module, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.base_layer = base
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    @abstractmethod
    def addition(self) -> Tensor:
        """(alpha / rank) B A, in the shape of the base's weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The base's outputs plus the scaled low-rank ones; dropout acts on the inputs of A alone."""
        base: Tensor = self.base_layer(inputs)
        low: Tensor = self.lora_B(self.lora_A(self.lora_dropout(inputs)))
        return base + self.scaling * low

    def merged(self) -> nn.Module:
        """The base layer with the addition in its weight, which changes."""
        weight = self.base_layer.get_parameter("weight")
        with torch.no_grad():
            weight.add_(self.addition())
        return self.base_layer


class LoRALinear(Adapter):
    """An adapted `nn.Linear`: A is `(rank, in)`, B `(out, rank)`."""

    def __init__(self, base: nn.Module, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank=rank, alpha=alpha, dropout=dropout)
        into, out = _widths(base)
        self.lora_A = nn.Linear(into, rank, bias=False, **_like(base))
        self.lora_B = nn.Linear(rank, out, bias=False, **_like(base))
        _start(self.lora_A, self.lora_B)

    def addition(self) -> Tensor:
        """`(out, in)`."""
        return self.scaling * (self.lora_B.get_parameter("weight") @ self.lora_A.get_parameter("weight"))


class LoRAConv1D(LoRALinear):
    """An adapted `Conv1D` of the transformers library (GPT-2): a dense layer whose weight is `(in, out)`."""

    def addition(self) -> Tensor:
        """`(in, out)`."""
        return super().addition().T


class LoRAConv2d(Adapter):
    """An adapted `nn.Conv2d`: A has its kernel and stride and gives `rank` channels, B is a 1x1 convolution."""

    def __init__(self, base: nn.Conv2d, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base, rank=rank, alpha=alpha, dropout=dropout)
        size, stride, padding = base.kernel_size, base.stride, base.padding
        self.lora_A = nn.Conv2d(base.in_channels, rank, size, stride, padding, bias=False, **_like(base))  # type: ignore[arg-type]
        self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False, **_like(base))
        _start(self.lora_A, self.lora_B)

    def addition(self) -> Tensor:
        """`(out, in, height, width)`."""
        into, out = self.lora_A.get_parameter("weight"), self.lora_B.get_parameter("weight")
        return self.scaling * (out.flatten(1) @ into.flatten(1)).view(len(out), *into.shape[1:])


def adapt(
    module: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    dropout: float = 0.1,
    targets: Sequence[str] | None = None,
    head: Sequence[str] = (),
) -> list[str]:
    """Freezes a module, in place, and gives some of its layers adapters; these and the head are what trains.

    Trained parameters keep the order of the module, A before B; heads come last where the module holds them last.

    Args:
        module: not adapted yet. Random starts draw from torch's global CPU generator.
        rank: of every addition.
        alpha: additions are scaled by `alpha / rank`.
        dropout: chance that a number into A is zero while training.
        targets: layers to adapt, by name or by its end (`"query"` for every `...query`); None: every dense and
            convolutional layer outside of `head`.
        head: parts that train in full, by name.

    Returns:
        The names of the adapted layers, in the module's order.

    Raises:
        ValueError: a setting out of range, a name that is nowhere, or a layer that no adapter is for; one line.
    """
    _require(rank, alpha, dropout)
    names = list(_chosen(module, targets, head))
    module.requires_grad_(False)
    for name in names:
        parent, _, child = name.rpartition(".")
        kind = _kind(module.get_submodule(name))
        assert kind is not None  # `_chosen` looked.
        adapter = kind(module.get_submodule(name), rank=rank, alpha=alpha, dropout=dropout)
        setattr(module.get_submodule(parent), child, adapter)
    for name in head:
        module.get_submodule(name).requires_grad_(True)
    return names


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """The adapted layers by name, in the module's order."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Adapter)}


def merge(module: nn.Module) -> list[str]:
    """Puts every addition into its layer's weight and takes the adapters away, in place; returns the layers' names.

    The module computes as before in evaluation, and has the names and shapes of its base again. What was frozen stays.
    """
    found = adapters(module)
    for name, adapter in found.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, adapter.merged())
    return list(found)


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """All that trains, by name, in the module's order: every A and B, and the head."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def _chosen(module: nn.Module, targets: Sequence[str] | None, head: Sequence[str]) -> Iterator[str]:
    inside = {name for name, _ in module.named_modules()}
    for part in head:
        if not part or part not in inside:
            raise ValueError(f"head: {type(module).__name__} has no part {part!r}; there are {_few(inside)}")
    if adapters(module):
        raise ValueError(f"{type(module).__name__} has adapters already; merge them first")
    free = {name: child for name, child in module.named_modules() if name and not _within(name, head)}
    named = {name: child for name, child in free.items() if targets is None or _named(name, targets)}
    for target in targets or ():
        if not any(_named(name, [target]) for name in free):
            raise ValueError(f"targets: no part outside of the head ends in {target!r}; there are {_few(free)}")
    for name, child in named.items():
        if _kind(child) is not None:
            yield name
        elif targets is not None:
            raise ValueError(f"targets: {name!r} is a {type(child).__name__}, for which there is no adapter here")
    if not any(_kind(child) is not None for child in named.values()):
        raise ValueError(f"targets: {type(module).__name__} has no dense or convolutional layer besides its head")


def _kind(layer: nn.Module) -> Any:
    """The adapter for exactly this layer, or None; a subclass may compute anything with its weight."""
    if type(layer) is nn.Linear:
        return LoRALinear
    if type(layer) is nn.Conv2d:
        # A has the base's kernel over plain zeros: what is grouped, dilated or padded otherwise has no such addition.
        plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        return LoRAConv2d if plain and not isinstance(layer.padding, str) else None
    if type(layer).__name__ == "Conv1D" and hasattr(layer, "nf"):  # Known by its looks: transformers is an extra.
        weight = getattr(layer, "weight", None)
        return LoRAConv1D if isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == layer.nf else None
    return None


def _widths(layer: nn.Module) -> tuple[int, int]:
    weight = layer.get_parameter("weight")
    return (weight.shape[1], weight.shape[0]) if isinstance(layer, nn.Linear) else (weight.shape[0], weight.shape[1])


def _like(layer: nn.Module) -> dict[str, Any]:
    weight = layer.get_parameter("weight")
    return {"device": weight.device, "dtype": weight.dtype}


def _start(into: nn.Module, out: nn.Module) -> None:
    """A uniform in +-1 / sqrt(numbers into A), as peft starts it; B zero."""
    nn.init.kaiming_uniform_(into.get_parameter("weight"), a=math.sqrt(5))
    nn.init.zeros_(out.get_parameter("weight"))


def _require(rank: int, alpha: float, dropout: float) -> None:
    if not rank >= 1:
        raise ValueError(f"rank must be >= 1, got {rank!r}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be > 0 and finite, got {alpha!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be >= 0 and < 1, got {dropout!r}")


def _named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _within(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _few(names: Sequence[str] | set[str] | dict[str, nn.Module]) -> str:
    found = [name for name in sorted(names) if name]
    return ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
