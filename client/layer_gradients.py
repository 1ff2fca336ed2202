"""What one layer adds to each example's gradient, from its inputs and the slopes of the losses at its outputs.

Each rule knows two things of its layer: the squared norm of every example's gradient, and the sum of all examples'
gradients, each times its factor. Where an example's gradient is large and its positions are few, it is never written
out (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679); where it is small, it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerGradients(Protocol):
    """The gradients of all examples of a batch at one layer."""

    def squares(self) -> Tensor:
        """Squared norm of each example's gradient, `(rows,)`."""
        ...

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """The sum of the examples' gradients times `factors` `(rows,)`: a tensor per trained parameter, in order."""
        ...


class Written:
    """Examples' gradients written out, `(rows, *shape)` each; right for layers with few parameters.

    Attributes:
        each: one tensor per trained parameter.
    """

    def __init__(self, each: Sequence[Tensor]) -> None:
        self.each = list(each)

    def squares(self) -> Tensor:
        """Sums over all that an example has."""
        return torch.stack([own.flatten(1).square().sum(1) for own in self.each]).sum(0)

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """One product per parameter."""
        return [torch.tensordot(factors, own, dims=1) for own in self.each]


class Products:
    """A dense layer on `(rows, positions, width)`: an example's gradient is the sum over positions of slope x input.

    Its squared norm is the sum over pairs of positions of <a, a'> <d, d'>; no gradient is written out.
    """

    def __init__(self, layer: nn.Linear, inputs: Tensor, slopes: Tensor) -> None:
        self.layer, self.inputs, self.slopes = layer, inputs, slopes

    def squares(self) -> Tensor:
        """From Gram matrices over positions; of a single one, a product of two norms."""
        total = self.slopes.new_zeros(len(self.slopes))
        if self.layer.weight.requires_grad:
            if self.slopes.shape[1] == 1:
                total = total + self.inputs.square().sum((1, 2)) * self.slopes.square().sum((1, 2))
            else:
                alike = self.inputs @ self.inputs.transpose(1, 2) * (self.slopes @ self.slopes.transpose(1, 2))
                total = total + alike.sum((1, 2)).clamp(min=0.0)  # Rounding may leave it just below.
        if _trained(self.layer.bias):
            total = total + self.slopes.sum(1).square().sum(1)
        return total

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """One matrix product over all rows and positions."""
        slopes = (self.slopes * factors[:, None, None]).flatten(0, 1)
        parts = [slopes.T @ self.inputs.flatten(0, 1)] if self.layer.weight.requires_grad else []
        return [*parts, slopes.sum(0)] if _trained(self.layer.bias) else parts


class Lookups:
    """An embedding: an example's gradient has a row for each token it holds, the sum of the slopes at its places."""

    def __init__(self, layer: nn.Embedding, tokens: Tensor, slopes: Tensor) -> None:
        self.layer, self.tokens, self.slopes = layer, tokens.flatten(1), slopes.flatten(1, -2)
        if layer.padding_idx is not None:  # Its row is never trained.
            self.slopes = self.slopes.masked_fill((self.tokens == layer.padding_idx).unsqueeze(-1), 0.0)

    def squares(self) -> Tensor:
        """Sums over pairs of places with the same token."""
        same = self.tokens.unsqueeze(1) == self.tokens.unsqueeze(2)
        alike = self.slopes @ self.slopes.transpose(1, 2)
        return alike.masked_fill(~same, 0.0).sum((1, 2)).clamp(min=0.0)

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Adds every slope to its token's row."""
        slopes = (self.slopes * factors[:, None, None]).flatten(0, 1)
        return [torch.zeros_like(self.layer.weight).index_add_(0, self.tokens.flatten(), slopes)]


def layer_gradients(layer: nn.Module, inputs: Tensor, slopes: Tensor) -> LayerGradients:
    """The gradients of a layer that `known` accepts.

    Args:
        layer: it.
        inputs: what it was given, rows first.
        slopes: of the losses at its outputs, rows first.
    """
    match layer:
        case nn.Linear():
            rows = len(slopes)
            inputs, slopes = inputs.reshape(rows, -1, layer.in_features), slopes.reshape(rows, -1, layer.out_features)
            return _dense(layer, inputs, slopes)
        case nn.Conv2d():
            return _convolution(layer, inputs, slopes)
        case nn.Embedding():
            return Lookups(layer, inputs, slopes)
        case nn.GroupNorm():
            plain = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
            return _scales(layer, plain, slopes, (len(slopes), 1, layer.num_channels, -1), at=(1, 3))
        case nn.LayerNorm():
            plain = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
            return _scales(layer, plain, slopes, (len(slopes), -1, *layer.normalized_shape), at=(1,))
    raise TypeError(f"no rule for {type(layer).__name__}")


def known(layer: nn.Module) -> bool:
    """Whether `layer_gradients` has a rule for exactly this layer; a subclass may compute anything."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.Embedding:
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return type(layer) in (nn.Linear, nn.GroupNorm, nn.LayerNorm)


def _trained(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _dense(layer: nn.Linear, inputs: Tensor, slopes: Tensor) -> LayerGradients:
    positions, numbers = slopes.shape[1], inputs.shape[2] * slopes.shape[2]
    if positions == 1 or positions * positions <= numbers:
        return Products(layer, inputs, slopes)
    return Written(_asked(layer, slopes.transpose(1, 2) @ inputs, slopes.sum(1)))


def _convolution(layer: nn.Conv2d, inputs: Tensor, slopes: Tensor) -> LayerGradients:
    """Over patches a convolution is a dense layer."""
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    slopes = slopes.flatten(2)
    weights = (slopes @ patches.transpose(1, 2)).reshape(len(slopes), *layer.weight.shape)
    return Written(_asked(layer, weights, slopes.sum(2)))


def _scales(
    layer: nn.GroupNorm | nn.LayerNorm, plain: Tensor, slopes: Tensor, shape: Sequence[int], *, at: tuple[int, ...]
) -> LayerGradients:
    """A normalisation: its weights scale what is `plain`; what they share is summed over the axes `at` of `shape`."""
    plain, slopes = plain.reshape(shape), slopes.reshape(shape)
    return Written(_asked(layer, (plain * slopes).sum(at), slopes.sum(at)))


def _asked(layer: nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Those of the two that are trained."""
    return [own for own, parameter in ((weight, layer.weight), (bias, layer.bias)) if _trained(parameter)]
