"""Runs the silo half of a strategy over chunks of silos, stacked where the model allows."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from client.batches import Plan, plan
from client.dpsgd import DPSGD
from client.examples import Shards
from client.personal import PersonalStore
from client.planted import Planted
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from client.stacked_adapters import StackedAdapters
from privacy import streams
from privacy.local import LocalNoise
from privacy.mechanism import Mechanism
from privacy.release import Contributions, Partial
from privacy.steps import NoisySteps
from strategies.base import Correction, Evaluation, Instruction, Strategy
from strategies.experiment import Train
from strategies.tasks import Shape, Task, evaluate


class SiloHost:
    """Holds silos' rows, their personal state and a warm model.

    Args:
        strategy: whose silo half to run.
        task: model and loss.
        module: a model of the task; its parameters are overwritten.
        shape: what the model fits.
        train: the experiment's training section.
        shards: training rows.
        held_out: rows each silo keeps for evaluation, or None.
        seed: of the experiment.
        stacked: train whole chunks at once where the task says how.
        personal: personal vectors, or None for a strategy without.
        examples: noise, clip and rate of every silo's DP-SGD; None: examples have no privacy of their own.
        secret: their noise and batches come from the operating system, not from the seed.
        planted: canary examples of some silos, or None; needs `personal` to keep what becomes of them.
        local: how each silo protects its own update before it leaves, or None.
    """

    def __init__(
        self,
        *,
        strategy: Strategy,
        task: Task,
        module: nn.Module,
        shape: Shape,
        train: Train,
        shards: Shards,
        held_out: Shards | None,
        seed: int,
        stacked: bool,
        personal: PersonalStore | None,
        examples: Sequence[NoisySteps] | None = None,
        secret: bool = False,
        planted: Planted | None = None,
        local: LocalNoise | None = None,
    ) -> None:
        self.local = local
        self.strategy, self.task, self.train, self.seed, self.personal = strategy, task, train, seed, personal
        self.shards, self.held_out, self.metric = shards, held_out, shape.metric
        self.starts, self.sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()
        self.single = SingleTrainer(module, task, train)
        chain = task.stack(shape) if stacked else None
        self.stack = StackedTrainer(chain, train) if chain is not None else None
        adapted = task.stack_adapted(shape) if stacked and examples is None else None
        if adapted is not None:
            self.stack = StackedAdapters(adapted, train, module)
        self.dpsgd, self.planted = None, planted
        if examples is not None:
            self.dpsgd = DPSGD(
                examples,
                module=module,
                task=task,
                train=train,
                chain=chain,
                fits=strategy.fits,
                seed=seed,
                secret=secret,
                planted=planted,
            )
        self.channel_sizes = strategy.channels(self.single.layout.size)

    def contribute(
        self,
        instruction: Instruction,
        silos: Sequence[int],
        mechanisms: Mapping[str, Mechanism],
        *,
        chunk: int,
        record: bool = False,
    ) -> Partial:
        """Trains a chunk of silos and returns their clipped sums; with `record`, their private losses too."""
        out = Contributions(mechanisms, self.channel_sizes)
        losses: list[float] = []
        spoilt: list[int] = []
        for group in [list(silos)] if self.stack is not None else [[silo] for silo in silos]:
            session = Session(self, group, instruction.round, record=record, training=True)
            update = self.strategy.local(session, instruction)
            channels = update.channels
            if self.local is not None:  # The last step on the silo's side: what follows is the server's.
                channels, broken = self.local.protect(channels, update.weight, group, round_=instruction.round)
                spoilt += broken
            out.add(channels, update.weight, group)
            if self.planted is not None and self.personal is not None:
                self.planted.keep(session.changes, self.personal)
            losses += session.losses
        if self.personal is not None:
            self.personal.forget([failure.silo for failure in out.failures] + spoilt)
        return out.partial(chunk, losses)

    def evaluate(self, instruction: Instruction, silos: Sequence[int]) -> Evaluation:
        """Evaluates what silos are served, each on its own held-out rows."""
        held_out = self.held_out
        if held_out is None:
            return Evaluation((), (), (), ())
        kept = [silo for silo in silos if int(held_out.sizes[silo]) > 0]
        results = []
        for silo in kept:
            session = Session(self, [silo], instruction.round, record=False, stacked=False)
            results.append(self.strategy.evaluate(session, instruction))
        return Evaluation(
            tuple(kept),
            tuple(int(held_out.sizes[silo]) for silo in kept),
            tuple(float(result["loss"]) for result in results),
            tuple(float(result[self.metric]) for result in results),
        )


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
    ) -> None:
        self._host, self._silos, self._record, self._round = host, list(silos), record, round_
        self._stacked = (host.stack is not None) if stacked is None else stacked
        self._fits, self._training = 0, training
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
        return sizes if self._stacked else sizes[0]

    def fit(self, start: Tensor, *, correct: Correction | None = None) -> Tensor:
        """Trains from `start`; see `strategies.base.Silo.fit`."""
        host = self._host
        if host.dpsgd is not None:
            return self._private_fit(host.dpsgd, start, correct)
        batches, keys = self._plan()
        self._fits += 1
        trainer: SingleTrainer | StackedTrainer
        if self._stacked and host.stack is not None:
            trainer = host.stack
            trained = trainer.fit(start, host.shards.rows, batches, correct=correct, record=self._record)
        else:
            trainer, key = host.single, int(keys[0] >> np.uint64(1))
            trained = trainer.fit(start, host.shards.rows, batches, correct=correct, key=key, record=self._record)
        self.losses += trainer.losses
        trainer.losses = []
        return trained

    def _private_fit(self, dpsgd: DPSGD, start: Tensor, correct: Correction | None) -> Tensor:
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
            record=self._record,
        )
        self._fits += 1
        self.losses += losses
        if host.planted is not None:
            host.planted.see(self.changes, self._silos, start, trained)
        return trained

    def evaluate(self, model: Tensor) -> Mapping[str, Tensor]:
        """Loss and score on the silo's held-out rows; see `strategies.base.Silo.evaluate`."""
        host = self._host
        if host.dpsgd is not None and self._training:
            raise ValueError("privacy.example: an update must not depend on held-out rows, which nobody paid for")
        if host.held_out is None:
            raise ValueError("data.test: 0 leaves no held-out rows to evaluate on; set it above 0")
        rows = host.held_out.silo(self._silos[0])
        result = evaluate(host.task, host.single.module, host.single.layout, model, rows.features, rows.targets)
        return {name: torch.tensor(value) for name, value in result.items()}

    def _plan(self) -> tuple[Plan, streams.Keys]:
        """The batches of this fit: every fit of a round has a stream of its own."""
        host = self._host
        base = streams.derive(host.seed, "batches", self._round, self._fits)
        keys = streams.keys(base, self._silos)
        return plan(host.starts[self._silos], host.sizes[self._silos], host.train, keys), keys
