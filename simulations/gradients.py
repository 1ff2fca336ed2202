"""Whether a model's per-example gradients are what they should be: compared with one example at a time, by autograd.

DP-SGD rests on them. Hooks that miss a use of a parameter, or a layer that mixes the rows of a batch, give wrong ones
and raise nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.example_sums import ExampleSums
from client.examples import Examples
from client.private_stacked import PrivateStackedTrainer
from privacy.steps import NoisySteps
from simulations.preparing import Prepared
from strategies.experiment import Experiment
from strategies.layout import Layout
from strategies.tasks import Task

ROWS = 6
TOLERANCE = 1e-8  # Relative; everything here is in double precision.


@dataclass(frozen=True)
class Compared:
    """One parameter of the model.

    Attributes:
        parameter: its name.
        shape: its shape.
        gradients: relative error of all examples' gradients, as Opacus' hooks find them.
        clipped: relative error of the clipped sum, as training computes it.
    """

    parameter: str
    shape: tuple[int, ...]
    gradients: float
    clipped: float

    @property
    def ok(self) -> bool:
        """Whether both agree; NaN does not."""
        return self.gradients <= TOLERANCE and self.clipped <= TOLERANCE


def compare(experiment: Experiment, prepared: Prepared) -> list[Compared]:
    """Compares a few rows of the experiment's data, at a random model, parameter by parameter.

    Half of the rows are clipped.

    Raises:
        UnsupportedModel: there are no per-example gradients to compare.
    """
    module, rows = copy.deepcopy(prepared.model.module), _double(prepared.federation.train.rows.select(slice(ROWS)))
    layout = Layout.of(module)
    _stir(module)
    task = experiment.task
    hooked = ExampleSums(module, task, hooks=True)
    hooked.double()
    found = hooked.gradients(rows.features, rows.targets)
    start = layout.flatten(module).double()
    truth = _brute(module.double(), task, rows)
    norms = truth.norm(dim=1)
    steps = NoisySteps(float(norms.median()) or 1.0, 1.0, 1.0, 1)
    clipped = layout.unflatten(_clipped(experiment, prepared, module.float(), start, rows, steps))
    exact, wanted = layout.unflatten(truth), layout.unflatten(steps.factors(norms) @ truth)
    return [
        Compared(name, shape, _error(own, exact[name]), _error(clipped[name], wanted[name]))
        for name, shape, own in zip(layout.names, layout.shapes, found)
    ]


def _clipped(
    experiment: Experiment, prepared: Prepared, module: nn.Module, start: Tensor, rows: Examples, steps: NoisySteps
) -> Tensor:
    """The clipped sum by the trainer that a run would use, `(N,)`."""
    chain = experiment.task.stack(prepared.model.shape) if experiment.engine.stacked == "auto" else None
    if chain is not None:
        dense, index = PrivateStackedTrainer(chain, experiment.train), torch.arange(len(rows))[None]
        return dense.sums(start[None], rows, index, torch.tensor([len(rows)]), [steps])[0][0]
    sums = ExampleSums(module, experiment.task)
    sums.double()
    return torch.cat([part.reshape(-1) for part in sums.total(rows.features, rows.targets, steps)[0]])


def _brute(module: nn.Module, task: Task, rows: Examples) -> Tensor:
    """Each row's gradient, computed alone, `(rows, N)`."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def gradients() -> Iterator[Tensor]:
        for row in range(len(rows)):
            own = rows.select(slice(row, row + 1))
            loss = task.losses(module.train()(own.features), own.targets).sum()
            parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
            yield torch.cat([part.reshape(-1) for part in parts])

    return torch.stack(list(gradients()))


def _stir(module: nn.Module) -> None:
    """Moves a model off its start: at zeros a wrong gradient can look right. Dropout is off: it would draw anew."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0


def _double(rows: Examples) -> Examples:
    features, targets = (t.double() if t.is_floating_point() else t for t in (rows.features, rows.targets))
    return Examples(features, targets)


def _error(found: Tensor, truth: Tensor) -> float:
    scale = float(truth.norm())
    return float((found - truth).norm()) / (scale if scale > 0 else 1.0)
