"""One silo, or a stack of them, in one round: what the silo half of a strategy may touch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from client.batches import Plan, plan
from client.descent import beside
from client.dpsgd import DPSGD
from client.examples import Examples
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from privacy import streams
from strategies.base import (
    Correction,
    Guard,
    Penalty,
    Reweight,
    Rows,
    Shown,
    Split,
)
from strategies.experiment import Train
from strategies.guarded import evaluate_served
from strategies.layout import Layout

if TYPE_CHECKING:
    from client.host import SiloHost


class Session:
    """One silo, or a stack of them, in one round: what `strategies.base.Silo` promises."""

    def __init__(
        self,
        host: SiloHost,
        silos: Sequence[int],
        round_: int,
        *,
        record: bool,
        stacked: bool | None = None,
        training: bool = False,
        split: Split = "test",
    ) -> None:
        self._host, self._silos, self._record, self._round = host, list(silos), record, round_
        self._stacked = (host.stack is not None) if stacked is None else stacked
        self._fits, self._training, self._split = 0, training, split
        self._asked: set[str] = set()
        self.losses: list[float] = []
        self.changes: dict[int, Tensor] = {}
        self.state: MutableMapping[str, Tensor] = (
            host.personal.rows(self._silos, stacked=self._stacked) if host.personal is not None else {}
        )

    @property
    def examples(self) -> Tensor:
        """Training rows, `()` or `(silos,)` float32; under example-level privacy the public nominal number."""
        sizes = torch.from_numpy(self._host.sizes[self._silos]).float()
        if self._host.dpsgd is not None:
            sizes = torch.tensor([float(self._host.dpsgd.silos[silo].rows) for silo in self._silos])
        return self._shaped(sizes)

    @property
    def layout(self) -> Layout:
        """Which stretch of a vector is which parameter; see `strategies.base.Silo`."""
        return self._host.single.layout

    @property
    def index(self) -> Tensor:
        """Which silo, `()` or `(silos,)` int64."""
        return self._shaped(torch.tensor(self._silos, dtype=torch.int64))

    @property
    def step_noise(self) -> Tensor:
        """Std of the noise in one number of a step's gradient, `()` or `(silos,)` float32."""
        dpsgd = self._host.dpsgd
        stds = [0.0 if dpsgd is None else dpsgd.silos[silo].std for silo in self._silos]
        return self._shaped(torch.tensor(stds, dtype=torch.float32))

    @property
    def train(self) -> Train:
        """The experiment's training section."""
        return self._host.train

    def _shaped(self, values: Tensor) -> Tensor:
        return values if self._stacked else values[0]

    def fit(
        self,
        start: Tensor,
        *,
        correct: Correction | None = None,
        penalty: Penalty | None = None,
        reweight: Reweight | None = None,
    ) -> Tensor:
        """Trains from `start`; see `strategies.base.Silo.fit`."""
        host = self._host
        if host.dpsgd is not None:
            return self._private_fit(host.dpsgd, start, correct, penalty, reweight)
        batches, keys = self._plan()
        correct = beside(correct, penalty)
        self._fits += 1
        trainer: SingleTrainer | StackedTrainer
        if self._stacked and host.stack is not None:
            trainer = host.stack
            trained = trainer.fit(
                start, host.shards.rows, batches, correct=correct, reweight=reweight, record=self._record
            )
        else:
            trainer, key = host.single, int(keys[0] >> np.uint64(1))
            trained = trainer.fit(
                start, host.shards.rows, batches, correct=correct, reweight=reweight, key=key, record=self._record
            )
        self.losses += trainer.losses
        trainer.losses = []
        return trained

    def _private_fit(
        self,
        dpsgd: DPSGD,
        start: Tensor,
        correct: Correction | None,
        penalty: Penalty | None,
        reweight: Reweight | None,
    ) -> Tensor:
        host = self._host
        trained, losses = dpsgd.fit(
            start,
            host.shards.rows,
            host.starts[self._silos],
            host.sizes[self._silos],
            silos=self._silos,
            round_=self._round,
            fit=self._fits,
            correct=correct,
            penalty=penalty,
            reweight=reweight,
            record=self._record,
        )
        self._fits += 1
        self.losses += losses
        if host.planted is not None:
            host.planted.see(self.changes, self._silos, start, trained)
        return trained

    def query(self, name: str, models: Tensor, *, rows: Rows) -> Tensor:
        """A sum over the silo's training rows; see `strategies.base.Silo.query`.

        Raises:
            ValueError: not declared, or asked in this round already: nobody paid for it.
        """
        queries, round_ = self._host.queries, self._round
        return self._each(name, models, lambda silo, held, own: queries.answer(name, silo, round_, held, own, rows))

    def represent(self, name: str, models: Tensor, *, rows: Shown) -> Tensor:
        """A sum over what models make of rows; see `strategies.base.Silo.represent`. Errors are those of `query`."""
        queries, round_ = self._host.queries, self._round
        return self._each(name, models, lambda silo, held, own: queries.represent(name, silo, round_, held, own, rows))

    def _each(self, name: str, models: Tensor, ask: Callable[[int, Examples, Tensor], Tensor]) -> Tensor:
        host = self._host
        if name not in host.queries.declared or name in self._asked:
            raise ValueError(
                f"query {name!r} was not declared, or was asked in this round already; declare it once more"
            )
        if host.dpsgd is not None and not self._training:
            raise ValueError(f"query {name!r}: nobody pays for it outside of a round; ask it in `local`")
        self._asked.add(name)
        each = models.expand(len(self._silos), *models.shape[-2:])
        answers = [ask(silo, host.shards.silo(silo), own) for silo, own in zip(self._silos, each)]
        if not answers:  # A stack of no silos at all.
            return torch.zeros(0, host.queries.declared[name].size)
        return self._shaped(torch.stack(answers))

    def evaluate(self, model: Tensor, guard: Guard | None = None) -> Mapping[str, Tensor]:
        """Loss and score on the silo's held-out rows; see `strategies.base.Silo.evaluate`."""
        host = self._host
        if host.dpsgd is not None and self._training:
            raise ValueError("privacy.example: an update must not depend on held-out rows, which nobody paid for")
        held_out = host.held_out[self._split]
        if held_out is None:
            raise ValueError(f"data.{self._split}: 0 leaves no held-out rows to evaluate on; set it above 0")
        rows, single = held_out.silo(self._silos[0]), host.single
        result = evaluate_served(host.task, single.module, model.to(single.device), guard, rows.features, rows.targets)
        return {name: torch.tensor(value) for name, value in result.items()}

    def _plan(self) -> tuple[Plan, streams.Keys]:
        """The batches of this fit: every fit of a round has a stream of its own."""
        host = self._host
        base = streams.derive(host.seed, "batches", self._round, self._fits)
        keys = streams.keys(base, self._silos)
        return plan(host.starts[self._silos], host.sizes[self._silos], host.train, keys), keys
