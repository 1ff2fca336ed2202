"""How far a model with its multipliers is from the best under bounds on groups' losses, where the task is convex.

Source: Agarwal, Dudik, Wu 2019, as in Hu, Wu, Smith 2022 (arXiv 2203.10190): a saddle point up to nu has a model with
F(w) <= F* + 2 nu, and no group above its bound by more than (range of F + 2 nu) / bound. Rows of all silos are needed,
so this is for simulations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from client.examples import Examples, Shards
from strategies.bounded_group_loss import BoundedGroupLoss
from strategies.layout import Layout
from strategies.tasks import Task

if TYPE_CHECKING:
    from simulations.running import ActiveRun

STEPS = 400  # Of L-BFGS, at most.
NUMBERS = 2**22  # Of all rows' features: more would take longer than a small run.


def certified(active: ActiveRun, state: Mapping[str, Tensor]) -> dict[str, float]:
    """`certificate`, nu at the end of a run that bounds groups' losses, where its task is convex and small.

    It is computed on the silos' own rows, so only where private numbers may be shown.
    """
    experiment, train = active.experiment, active.federation.train
    strategy, chain = experiment.strategy, experiment.task.stack(active.model.shape)
    convex = chain is not None and len(chain.widths) == 2
    if not isinstance(strategy, BoundedGroupLoss) or not convex or not active.records:
        return {}
    if train.rows.features.numel() > NUMBERS:
        return {}
    rows = Examples(
        train.rows.features.flatten(1), train.rows.targets, strategy.grouped(train.rows.groups, train.rows.targets)
    )
    saddle = Saddle(
        experiment.task,
        copy.deepcopy(active.model.module).cpu(),
        rows,
        parts_of(train, by_rows=strategy.groups.weighting == "examples"),
        strategy.bounds(),
        strategy.bound,
        experiment.train.weight_decay,
    )
    return {"certificate": saddle.nu(state["model"], state["lam"])}


def parts_of(shards: Shards, *, by_rows: bool) -> Tensor:
    """p_k / n_k of each row, `(rows,)` float64."""
    if by_rows:
        return torch.full((len(shards.rows),), 1.0 / len(shards.rows), dtype=torch.float64)
    sizes = shards.sizes.double()
    return (1.0 / (len(shards) * sizes)).repeat_interleave(shards.sizes)


@dataclass(frozen=True)
class Saddle:
    """The problem min_w F(w) under r(w) <= 0, with all rows in one place.

    Attributes:
        task: whose loss is convex in the parameters of `module`.
        module: the model; evaluated in double precision.
        rows: of all silos, with their groups.
        parts: what each row weighs in F, `(rows,)`; p_k / n_k.
        zeta: bound of each group's mean loss, `(groups,)`.
        bound: largest sum of multipliers.
        decay: L2 penalty, a part of F.
    """

    task: Task
    module: nn.Module
    rows: Examples
    parts: Tensor
    zeta: Tensor
    bound: float
    decay: float = 0.0

    def objective(self, model: Tensor) -> Tensor:
        """F(w)."""
        return self.parts.double() @ self._losses(model) + 0.5 * self.decay * model.square().sum()

    def violations(self, model: Tensor) -> Tensor:
        """r(w), `(groups,)`."""
        assert self.rows.groups is not None
        losses = self._losses(model)
        zero = torch.zeros(len(self.zeta), dtype=torch.float64)
        counts = zero.index_add(0, self.rows.groups, torch.ones_like(losses))
        return zero.index_add(0, self.rows.groups, losses) / counts - self.zeta.double()

    def _losses(self, model: Tensor) -> Tensor:
        parameters = Layout.of(self.module).unflatten(model)
        return self.task.losses(functional_call(self.module, parameters, (self.rows.features.double(),)), self._targets)

    @property
    def _targets(self) -> Tensor:
        return self.rows.targets.double() if self.rows.targets.is_floating_point() else self.rows.targets

    def least(self, lam: Tensor, start: Tensor) -> Tensor:
        """The model with the least F(w) + lam'r(w), `(N,)` float64."""
        model = start.double().clone().requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [model], max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = self._lagrangian(model, lam)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return model.detach()

    def _lagrangian(self, model: Tensor, lam: Tensor) -> Tensor:
        return self.objective(model) + lam.double() @ self.violations(model)

    def nu(self, model: Tensor, lam: Tensor) -> float:
        """[F(w) + bound max(0, max r)] - min_w G(w, lam): never below 0, and 0 at the saddle point."""
        wide = model.double()
        best = self.least(lam, wide)
        with torch.no_grad():
            worst = self.objective(wide) + self.bound * self.violations(wide).max().clamp(min=0.0)
            return float(worst - self._lagrangian(best, lam))
