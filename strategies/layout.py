"""A model's trainable numbers as ONE flat float32 vector.

Strategies, clipping, noise and checkpoints work on the vector's last axis; a `Layout` says which stretch of it is which
parameter. Buffers are neither trained nor shipped, so a module whose buffers change in training is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Layout:
    """Where each trainable parameter lies in the flat vector: one after the other, each in row-major order.

    Attributes:
        names: the parameters' names, in the order of `module.named_parameters()`.
        shapes: their shapes, in the same order.

    >>> layout = Layout.of(nn.Linear(3, 2))
    >>> layout.names, layout.shapes, layout.size
    (('weight', 'bias'), ((2, 3), (2,)), 8)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module's trainable parameters (those with `requires_grad`).

        Raises:
            ValueError: no trainable parameter, one that is not float32 or has no shape yet, tied parameters, or a
                module whose buffers change in training (BatchNorm).
        """
        _refuse_changing_buffers(module)
        parameters = _trainable(module)
        _refuse_tied(module)
        for name, parameter in parameters.items():
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(f"parameter {name!r} has no shape yet: run the model on one batch first")
            if parameter.dtype != torch.float32:
                raise ValueError(f"parameter {name!r} is {parameter.dtype}: train in torch.float32, or freeze it")
        if not parameters:
            raise ValueError(f"{type(module).__name__} has no trainable parameter: set requires_grad on what to train")
        return cls(tuple(parameters), tuple(tuple(parameter.shape) for parameter in parameters.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each parameter has."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """N, the length of the flat vector."""
        return sum(self.sizes)

    def flatten(self, module: nn.Module) -> Tensor:
        """A copy of the module's trainable parameters as one vector, `(N,)` float32.

        Raises:
            ValueError: the module has another layout.
        """
        return torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters(module).values()])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector as named parameters; nothing is copied.

        Args:
            vector: `(N,)`, or `(..., N)` for a stack of models.

        Returns:
            Name to `(*shape)`, or `(..., *shape)`.

        Raises:
            ValueError: the last axis is not N long.
        """
        if vector.dim() == 0 or vector.shape[-1] != self.size:
            raise ValueError(f"vector has shape {tuple(vector.shape)}: its last axis must be {self.size} long")
        lead = vector.shape[:-1]
        parts = torch.split(vector, list(self.sizes), dim=-1)
        return {name: part.view((*lead, *shape)) for name, shape, part in zip(self.names, self.shapes, parts)}

    def load(self, module: nn.Module, vector: Tensor) -> None:
        """Copies a vector `(N,)` into the module's parameters, in place.

        Raises:
            ValueError: the vector is not `(N,)`, or the module has another layout.
        """
        if vector.dim() != 1:
            raise ValueError(f"vector has shape {tuple(vector.shape)}: one module takes ({self.size},)")
        values = self.unflatten(vector)
        with torch.no_grad():
            for name, parameter in self._parameters(module).items():
                parameter.copy_(values[name])

    def _parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        parameters = _trainable(module)
        found = [(name, tuple(parameter.shape)) for name, parameter in parameters.items()]
        for has, expected in zip_longest(found, zip(self.names, self.shapes)):
            if has != expected:
                raise ValueError(f"{type(module).__name__} does not fit this layout: expected {expected}, found {has}")
        return parameters


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _refuse_tied(module: nn.Module) -> None:
    """Tied weights would have two places in the vector, or gradients of one place missing from the other."""
    seen: dict[object, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if isinstance(parameter, nn.UninitializedParameter):
            continue
        # Shared memory counts as well as a shared object; memory of size 0 and on the meta device has address 0.
        address = parameter.data_ptr()
        for identity in (id(parameter), (parameter.device, address) if address else id(parameter)):
            first = seen.setdefault(identity, name)
            if first != name:
                raise ValueError(f"parameters {first!r} and {name!r} are tied: give each its own weights")


def _refuse_changing_buffers(module: nn.Module) -> None:
    for name, child in module.named_modules():
        # BatchNorm mixes the rows of a batch even without statistics, so that no row's gradient is its own.
        batch = isinstance(child, _NormBase) and not isinstance(child, nn.modules.instancenorm._InstanceNorm)
        running = any(getattr(child, buffer, None) is not None for buffer in _RUNNING)
        if batch or running:
            where = f"module {name!r} ({type(child).__name__})" if name else f"module {type(child).__name__}"
            raise ValueError(f"{where} mixes rows or keeps running statistics: use GroupNorm or LayerNorm instead")
