"""Clipped sums of per-example gradients by one forward and one backward pass, for models of well-known layers.

The backward pass asks for the slopes at the layers' outputs and for nothing else; norms, and the sum of the clipped
gradients, follow from what each layer was given (Bu et al. 2023, "Differentially Private Optimization on Large Model at
Small Cost", arXiv 2210.00038). Ghost clipping takes a second backward pass for that sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from client.layer_gradients import LayerGradients, known, layer_gradients
from client.reweighting import Weigh
from client.separate_rows import ends
from privacy.steps import NoisySteps
from strategies.tasks import Task

TOLERANCE = 1e-3  # Relative, of the check on the first batch: float32 errs by less, a use left out by more.
TINY = 1e-6  # Absolute: gradients that cancel leave only what float32 rounds.


class Unknown(ValueError):
    """A model that this way of finding gradients does not know; Opacus may."""


class BookKeeping:
    """Knows the per-example gradients of a model whose every trained layer has a rule.

    Unclipped gradients of the first batch, their sum and those of two rows, are compared with autograd's own, so that a
    parameter that is used outside of its layer is found, and a layer whose rows are not the examples.

    Args:
        module: the model, in training mode; gets a hook on each of its layers.
        parameters: its trained parameters, in the order of the sums.
        task: the loss of each row.

    Raises:
        Unknown: a layer without a rule, or parameters that two layers share.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter], task: Task) -> None:
        self.module, self.parameters, self.task = module, list(parameters), task
        layers = [layer for layer in module.modules() if _trained(layer)]
        odd = [type(layer).__name__ for layer in layers if not known(layer)]
        owned = [id(parameter) for layer in layers for parameter in _trained(layer)]
        if odd or len(set(owned)) < len(owned):
            raise Unknown(f"no rule for {odd[0] if odd else 'shared parameters'}")
        self._place = {id(parameter): at for at, parameter in enumerate(self.parameters)}
        self._seen: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}
        self._checked = False
        self._hooks = [layer.register_forward_hook(self._see) for layer in layers]
        for child in module.modules():
            if getattr(child, "inplace", False):  # It would overwrite the outputs whose slopes are asked for.
                child.inplace = False  # type: ignore[assignment]

    def close(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def total(
        self, features: Tensor, targets: Tensor, steps: NoisySteps, weigh: Weigh | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The sum of clipped gradients, a tensor per parameter, and each row's loss; see `ExampleSums.total`.

        Raises:
            Unknown: the model uses a layer twice, in place, or a parameter outside of its layer.
        """
        losses, found = self._gradients(features, targets)
        norms = self._squares(found, losses).sqrt()
        if weigh is None:
            factors = steps.factors(norms)
        else:  # The gradient of u loss is u times as long, and is clipped as it is.
            weights = weigh(losses)
            factors = torch.where(torch.isfinite(weights), steps.factors(weights * norms) * weights, 0.0)
        if not bool((factors > 0).all()):  # A factor of 0 would still turn what is not finite into NaN.
            kept = factors > 0
            if not bool(kept.any()):
                return [torch.zeros_like(parameter) for parameter in self.parameters], losses
            rest = None if weigh is None else weigh.select(kept)
            return self.total(features[kept], targets[kept], steps, rest)[0], losses
        return self._sum(found, factors), losses

    def _gradients(self, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[nn.Module, LayerGradients]]:
        self._seen.clear()
        losses = self.task.losses(self.module(features), targets)
        seen = dict(self._seen)
        self._seen.clear()  # Nothing of a batch stays behind for the next one.
        for layer, (_, output, version) in seen.items():
            if output._version != version:
                raise Unknown(f"the outputs of {type(layer).__name__} are changed in place")
            if len(output) != len(losses):
                raise Unknown(f"a {type(layer).__name__} has {len(output)} rows for {len(losses)} examples")
        check = not self._checked
        slopes = torch.autograd.grad(
            losses.sum(), [output for _, output, _ in seen.values()], retain_graph=check, materialize_grads=True
        )
        with torch.no_grad():
            found = {
                layer: layer_gradients(layer, inputs, slope)
                for (layer, (inputs, _, _)), slope in zip(seen.items(), slopes)
            }
        if check:
            self._checked = checked(losses, self.parameters, lambda factors: self._sum(found, factors))
        return losses.detach(), found

    @torch.no_grad()
    def _squares(self, found: dict[nn.Module, LayerGradients], losses: Tensor) -> Tensor:
        squares = [own.squares() for own in found.values()]
        return torch.stack(squares).sum(0) if squares else torch.zeros_like(losses)

    @torch.no_grad()
    def _sum(self, found: dict[nn.Module, LayerGradients], factors: Tensor) -> list[Tensor]:
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        for layer, own in found.items():
            for parameter, part in zip(_trained(layer), own.weighted(factors)):
                sums[self._place[id(parameter)]] = part
        return sums

    def _see(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if layer in self._seen:
            raise Unknown(f"a {type(layer).__name__} is used twice")
        self._seen[layer] = (inputs[0].detach(), output, output._version)


def checked(losses: Tensor, parameters: Sequence[nn.Parameter], weighted: Callable[[Tensor], Sequence[Tensor]]) -> bool:
    """Compares examples' gradients with autograd's: their sum, and those of the first and the last row alone.

    Sums alone would not do: rows that are positions of a text, or that were mixed, add up to the same.

    Args:
        losses: of the rows, with their graph.
        parameters: whose gradients they are.
        weighted: the sum of the examples' gradients, each times a factor `(rows,)`.

    Returns:
        False where gradients that are not finite, or zero, leave it open.

    Raises:
        Unknown: they differ.
    """
    one_row = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    every = [torch.ones_like(losses), *one_row[list(ends(len(losses)))]]
    found = []
    for factors in every:
        truth = torch.autograd.grad(losses, parameters, factors, retain_graph=True, materialize_grads=True)
        found.append(same(truth, weighted(factors.detach())))
    return all(found)


def same(truth: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether examples' gradients add up to autograd's; False where they are not finite, or zero, and leave it open.

    Raises:
        Unknown: they do not: a parameter is used where no rule, and no hook, sees it.
    """
    scale = math.hypot(*(float(part.norm()) for part in truth))
    if not math.isfinite(scale):
        return False
    apart = math.hypot(*(float((one - other).norm()) for one, other in zip(truth, found, strict=True)))
    if not apart <= TOLERANCE * scale + TINY:
        raise Unknown("examples' gradients are not those of autograd: is a parameter used outside of its layer?")
    return scale > 0


def _trained(layer: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of the layer itself."""
    return [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
