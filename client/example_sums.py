"""Clipped sums of per-example gradients, for any model: by book-keeping where all layers are known, else by Opacus.

Opacus' hooks find every example's gradient; clipping, noise and accounting are ours. Its PrivacyEngine is not used:
that takes the rate from the data's size and forgets what was spent when a process ends.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from client.book_keeping import BookKeeping, Unknown, checked
from client.reweighting import Weigh
from client.separate_rows import Mixed, separate
from privacy.steps import NoisySteps
from strategies.layout import Layout
from strategies.tasks import Task

_OWN: dict[type[nn.Module], tuple[str, ...]] = {nn.RNN: ("nonlinearity",), nn.LSTM: ("proj_size",)}


class UnsupportedModel(ValueError):
    """A model whose single examples have no gradients of their own, or that Opacus cannot take; one line."""


class ExampleSums:
    """A model's twin that knows its per-example gradients.

    Args:
        module: the model; copied, its float32 parameters have a `Layout`.
        task: the loss of each row.
        hooks: find every example's gradient by Opacus' hooks, whatever the layers.

    Raises:
        UnsupportedModel: it keeps buffers, or Opacus cannot take it.
    """

    def __init__(self, module: nn.Module, task: Task, *, hooks: bool = False) -> None:
        self.task, self.name = task, type(module).__name__
        buffers = [name for name, _ in module.named_buffers() if not _fixed(module, name)]
        if buffers:  # A running statistic mixes the rows of a batch, and leaves the silo by no channel that is noised.
            raise UnsupportedModel(
                f"{self.name} cannot be trained by DP-SGD: it keeps buffers ({buffers[0]}); use GroupNorm"
            )
        try:
            self.twin = _recurrent_replaced(copy.deepcopy(module)).train()
        except NotImplementedError as error:
            raise UnsupportedModel(_refusal(self.name, error)) from error
        named = dict(self.twin.named_parameters())
        self.parameters = [named[name] for name in Layout.of(module).names]
        self._numbers = [(name, each, each._version) for name, each in self.twin.named_buffers()]
        self.books: BookKeeping | None = None
        self.wrapped: Any = None
        self._module, self._checked, self._apart = module, False, False
        if not hooks:
            with suppress(Unknown):
                self.books = BookKeeping(self.twin, self.parameters, task)
        if self.books is None:
            self._wrap()

    def double(self) -> None:
        """Computes in double precision from now on."""
        self.twin.double()

    def total(
        self,
        features: Tensor,
        targets: Tensor,
        steps: NoisySteps,
        *,
        pull: Sequence[Tensor] | None = None,
        weigh: Weigh | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """The sum of clipped gradients, one tensor per parameter in the order of the layout, and each row's loss.

        An example whose gradient is not finite adds nothing. No rows at all add up to zeros. A `pull`, one tensor per
        parameter, is added to every example's gradient before it is clipped; that takes `hooks`. `weigh` multiplies
        every example's loss before that.

        Raises:
            UnsupportedModel: examples' gradients are not autograd's, or depend on other rows, which the first batch of
                several rows tells.
        """
        if len(targets) == 0:
            return [torch.zeros_like(parameter) for parameter in self.parameters], targets.new_zeros(0).float()
        self._require_apart(features, targets)
        if pull is not None and self.books is not None:
            raise ValueError("a pull is added to gradients that are written out; use hooks")
        found = self._total(features, targets, steps, pull, weigh)
        for name, each, version in self._numbers:
            if self.twin.get_buffer(name) is not each or each._version != version:
                raise UnsupportedModel(f"{self.name} cannot be trained by DP-SGD: it changes its buffer {name}")
        return found

    def _total(
        self,
        features: Tensor,
        targets: Tensor,
        steps: NoisySteps,
        pull: Sequence[Tensor] | None,
        weigh: Weigh | None,
    ) -> tuple[list[Tensor], Tensor]:
        if self.books is not None:
            try:
                return self.books.total(features, targets, steps, weigh)
            except Unknown:  # Only a batch shows how layers are used.
                self.books.close()
                self.books = None
                self._wrap()
        return self._by_hooks(features, targets, steps, pull, weigh)

    def _require_apart(self, features: Tensor, targets: Tensor) -> None:
        """Looks at batches until one has shown that rows are treated apart; a single row has none to be mixed with."""
        if self._apart:
            return
        try:
            self._apart = separate(self._module, self.task, features, targets)
        except Mixed as error:
            raise UnsupportedModel(_refusal(self.name, error)) from error

    def _wrap(self) -> None:
        from opacus.grad_sample import GradSampleModule

        try:
            self.wrapped = GradSampleModule(self.twin, loss_reduction="sum")
        except Exception as error:  # Opacus has no common class for what it refuses.
            raise UnsupportedModel(_refusal(self.name, error)) from error

    def _by_hooks(
        self,
        features: Tensor,
        targets: Tensor,
        steps: NoisySteps,
        pull: Sequence[Tensor] | None,
        weigh: Weigh | None,
    ) -> tuple[list[Tensor], Tensor]:
        losses, each = self._hooked(features, targets)
        if weigh is not None:  # A weight knows no parameter, so the gradient of u loss is u times that of the loss.
            weights = weigh(losses)
            each = [own * weights.view(-1, *[1] * (own.dim() - 1)).to(own.dtype) for own in each]
        if pull is not None:
            each = [own + part for own, part in zip(each, pull, strict=True)]
        factors = steps.factors(torch.stack([own.flatten(1).norm(dim=1) for own in each]).norm(dim=0))
        unused = factors == 0
        if bool(unused.any()):  # A factor of 0 would still turn what is not finite into NaN.
            each, factors = [own[~unused] for own in each], factors[~unused]
        return [_weighted(factors, own) for own in each], losses

    def _hooked(self, features: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Each row's loss and, per parameter, each row's gradient.

        Hooks see what layers do, and nothing else: a parameter that is used otherwise would be bounded by the wrong
        norm, and no error would say so. So what they saw is compared with autograd once.
        """
        try:
            losses = self.task.losses(self.wrapped(features), targets)
            with traced():
                torch.autograd.grad(losses.sum(), self.parameters, retain_graph=True, materialize_grads=True)
            each = [_sample(parameter, len(targets)) for parameter in self.parameters]
            self._checked = self._checked or self._true(losses, each)
        except Unknown as error:
            raise UnsupportedModel(_refusal(self.name, error)) from error
        except (RuntimeError, NotImplementedError) as error:
            if self._checked:
                raise
            raise UnsupportedModel(_refusal(self.name, error)) from error
        finally:
            self._forget()
        return losses.detach(), each

    def _true(self, losses: Tensor, each: list[Tensor]) -> bool:
        """Whether what the hooks saw is what autograd says; they take no notice while that is asked."""
        self.wrapped.disable_hooks()
        try:
            with traced():
                return checked(losses, self.parameters, lambda factors: [_weighted(factors, own) for own in each])
        finally:
            self.wrapped.enable_hooks()

    def gradients(self, features: Tensor, targets: Tensor) -> list[Tensor]:
        """Every example's own gradient, `(rows, *shape)` per parameter in the order of the layout; with `hooks`."""
        self._require_apart(features, targets)
        return self._hooked(features, targets)[1]

    def _forget(self) -> None:
        """Nothing of a batch stays behind for the next one."""
        for parameter in self.parameters:
            if getattr(parameter, "grad_sample", None) is not None:
                parameter.grad_sample = None  # type: ignore[attr-defined]


def _fixed(module: nn.Module, name: str) -> bool:
    """Whether a buffer is a constant such as the numbers of a text's positions: integers that no model file holds."""
    owner, _, own = name.rpartition(".")
    buffer = module.get_buffer(name)
    saved = own not in module.get_submodule(owner)._non_persistent_buffers_set
    return not saved and not buffer.is_floating_point() and not buffer.is_complex()


def _refusal(name: str, error: Exception) -> str:
    return f"{name} cannot be trained by DP-SGD: {' '.join(str(error).split())[:200]}"


def _weighted(factors: Tensor, each: Tensor) -> Tensor:
    found: Tensor = torch.tensordot(factors, each, dims=1)
    return found


def _sample(parameter: nn.Parameter, rows: int) -> Tensor:
    sample: Tensor | None = getattr(parameter, "grad_sample", None)
    if sample is not None and len(sample) != rows:
        raise Unknown(f"a parameter has the gradients of {len(sample)} rows for {rows} examples")
    return sample if sample is not None else parameter.new_zeros((rows, *parameter.shape))


@contextmanager
def traced() -> Iterator[None]:
    """The first layer's inputs need no gradient; torch warns of it, and its hook does what is wanted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


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
        asked = ("bias", "batch_first", "dropout", "bidirectional", *_OWN.get(type(child), ()))
        options = {key: getattr(child, key) for key in asked}
        twin = private[type(child)](*sizes, **options)
        twin.load_state_dict(child.state_dict())
        setattr(module, name, twin)
    return module
