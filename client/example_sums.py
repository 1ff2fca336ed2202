"""Clipped sums of per-example gradients, for any model, by Opacus' hooks.

Opacus finds every example's gradient, or its norm alone (ghost clipping); clipping, noise and accounting are ours. Its
PrivacyEngine is not used: that takes the rate from the data's size and forgets what was spent when a process ends.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privacy.steps import NoisySteps
from strategies.layout import Layout
from strategies.tasks import Task

GHOST = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm)
"""Layers trained by ghost clipping; a model with any other trainable layer keeps every example's gradient."""


class UnsupportedModel(ValueError):
    """A model whose single examples have no gradients of their own, or that Opacus cannot take; one line."""


class ExampleSums:
    """A model's twin that knows its per-example gradients.

    Args:
        module: the model; copied, its float32 parameters have a `Layout`.
        task: the loss of each row.
        ghost: norms first, then one weighted backward pass; None: wherever all layers allow it.

    Raises:
        UnsupportedModel: it keeps buffers, or Opacus cannot take it.
    """

    def __init__(self, module: nn.Module, task: Task, *, ghost: bool | None = None) -> None:
        self.task = task
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:  # A running statistic mixes the rows of a batch, and leaves the silo by no channel that is noised.
            raise UnsupportedModel(
                f"{type(module).__name__} cannot be trained by DP-SGD: it keeps buffers ({buffers[0]}); use GroupNorm"
            )
        twin = _recurrent_replaced(copy.deepcopy(module)).train()
        named = dict(twin.named_parameters())
        self.parameters = [named[name] for name in Layout.of(module).names]
        self._wrap(twin, ghost=_all_ghost(twin) if ghost is None else ghost)

    def _wrap(self, twin: nn.Module, *, ghost: bool) -> None:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

        self.ghost = ghost
        try:
            self.wrapped: Any = (GradSampleModuleFastGradientClipping if ghost else GradSampleModule)(
                twin, loss_reduction="sum"
            )
        except Exception as error:  # Opacus has no common class for what it refuses.
            line = " ".join(str(error).split())
            raise UnsupportedModel(f"{type(twin).__name__} cannot be trained by DP-SGD: {line[:200]}") from error

    def _forward(self, features: Tensor) -> Tensor:
        try:
            outputs: Tensor = self.wrapped(features)
        except NotImplementedError:  # Ghost clipping has no norm for a layer that is used twice; hooks have.
            if not self.ghost:
                raise
            self._wrap(self.wrapped.to_standard_module(), ghost=False)
            outputs = self.wrapped(features)
        return outputs

    def total(self, features: Tensor, targets: Tensor, steps: NoisySteps) -> tuple[list[Tensor], Tensor]:
        """The sum of clipped gradients, one tensor per parameter in the order of the layout, and each row's loss.

        An example whose gradient is not finite adds nothing. No rows at all add up to zeros.
        """
        if len(targets) == 0:
            return [torch.zeros_like(parameter) for parameter in self.parameters], targets.new_zeros(0).float()
        losses = self.task.losses(self._forward(features), targets)
        with traced():  # What it returns is not looked at: the hooks see the examples on the way.
            torch.autograd.grad(losses.sum(), self.parameters, retain_graph=self.ghost, allow_unused=True)
        factors = steps.factors(self._norms(losses))
        if not bool((factors > 0).all()):  # A factor of 0 would still turn what is not finite into NaN.
            self._forget()
            kept = factors > 0
            totals, _ = self.total(features[kept], targets[kept], steps)
            return totals, losses.detach()
        sums = self._weighted(losses, factors)
        self._forget()
        return sums, losses.detach()

    def gradients(self, features: Tensor, targets: Tensor) -> list[Tensor]:
        """Every example's own gradient, `(rows, *shape)` per parameter in the order of the layout; hooks only."""
        losses = self.task.losses(self._forward(features), targets)
        with traced():
            torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
        found = [_sample(parameter, len(targets)) for parameter in self.parameters]
        self._forget()
        return found

    def _norms(self, losses: Tensor) -> Tensor:
        name = "_norm_sample" if self.ghost else "grad_sample"
        samples = [sample for p in self.parameters if (sample := getattr(p, name, None)) is not None]
        norms = samples if self.ghost else [sample.flatten(1).norm(dim=1) for sample in samples]
        return torch.stack(norms).norm(dim=0) if norms else torch.zeros_like(losses)

    def _weighted(self, losses: Tensor, factors: Tensor) -> list[Tensor]:
        if not self.ghost:
            return [torch.tensordot(factors, _sample(p, len(factors)), dims=1) for p in self.parameters]
        self.wrapped.disable_hooks()
        try:
            weighted = (losses * factors.detach()).sum()
            with traced():
                return list(torch.autograd.grad(weighted, self.parameters, materialize_grads=True))
        finally:
            self.wrapped.enable_hooks()

    def _forget(self) -> None:
        """Nothing of a batch stays behind for the next one."""
        for parameter in self.parameters:
            for name in ("grad_sample", "_norm_sample"):
                if getattr(parameter, name, None) is not None:
                    setattr(parameter, name, None)


def _sample(parameter: nn.Parameter, rows: int) -> Tensor:
    sample: Tensor | None = getattr(parameter, "grad_sample", None)
    return sample if sample is not None else parameter.new_zeros((rows, *parameter.shape))


@contextmanager
def traced() -> Iterator[None]:
    """The first layer's inputs need no gradient; torch warns of it, and its hook does what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _all_ghost(module: nn.Module) -> bool:
    return all(isinstance(child, GHOST) for child in module.modules() if any(True for _ in child.parameters(False)))


def _recurrent_replaced(module: nn.Module) -> nn.Module:
    """The module with torch's recurrent layers as Opacus writes them, with the same names and numbers.

    Torch's own are one fused operation, inside of which no hook sees an example.
    """
    from opacus.layers import DPGRU, DPLSTM, DPRNN

    private = {nn.LSTM: DPLSTM, nn.GRU: DPGRU, nn.RNN: DPRNN}
    for name, child in list(module.named_children()):
        if type(child) not in private:
            _recurrent_replaced(child)
            continue
        sizes = (child.input_size, child.hidden_size, child.num_layers)
        options = {key: getattr(child, key) for key in ("bias", "batch_first", "dropout", "bidirectional")}
        twin = private[type(child)](*sizes, **options)
        twin.load_state_dict(child.state_dict())
        setattr(module, name, twin)
    return module
