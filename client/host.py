"""Runs the silo half of a strategy over chunks of silos, stacked where the model allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from client.batches import Plan, plan
from client.descent import beside
from client.device import CPU
from client.dpsgd import DPSGD
from client.examples import Examples, Shards
from client.personal import PersonalStore
from client.planted import Planted
from client.queries import Queries
from client.reweighting import known_by
from client.rounding import Rounding
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from client.stacked_adapters import StackedAdapters
from privacy import streams
from privacy.local import LocalNoise
from privacy.mechanism import Mechanism
from privacy.release import Contributions, Partial
from privacy.steps import NoisySteps
from strategies.base import (
    Correction,
    Evaluation,
    Guard,
    Instruction,
    Penalty,
    Reweight,
    Rows,
    Shown,
    Split,
    Strategy,
    Update,
)
from strategies.experiment import Train
from strategies.guarded import evaluate_served
from strategies.layout import Layout
from strategies.tasks import Shape, Task
from strategies.traffic import crowded, message, require_kept


class SiloHost:
    """Holds silos' rows, their personal state and a warm model.

    Args:
        strategy: whose silo half to run.
        task: model and loss.
        module: a model of the task; its parameters are overwritten.
        shape: what the model fits.
        train: the experiment's training section.
        shards: training rows.
        held_out: rows each silo keeps to test on, or None.
        validation: rows each silo keeps to choose with, or None.
        seed: of the experiment.
        stacked: train whole chunks at once where the task says how.
        personal: personal vectors, or None for a strategy without.
        examples: noise, clip and rate of every silo's DP-SGD; None: examples have no privacy of their own.
        secret: their noise and batches come from the operating system, not from the seed.
        planted: canary examples of some silos, or None; needs `personal` to keep what becomes of them.
        local: how each silo protects its own update before it leaves, or None.
        rounding: what crossing the link does to numbers; with feedback it needs `personal`.
        device: where silos that are trained one by one are trained; stacks stay on the CPU.
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
        validation: Shards | None = None,
        examples: Sequence[NoisySteps] | None = None,
        secret: bool = False,
        planted: Planted | None = None,
        local: LocalNoise | None = None,
        rounding: Rounding = Rounding(),  # noqa: B008  # Frozen.
        device: torch.device = CPU,
    ) -> None:
        if rounding.feedback and personal is None:
            raise ValueError("rounding: feedback needs a store of personal vectors to keep residuals in")
        self.local, self.rounding = local, rounding
        self.strategy, self.task, self.train, self.seed, self.personal = strategy, task, train, seed, personal
        self.metric = shape.metric
        self.held_out: Mapping[Split, Shards | None] = {"test": held_out, "validation": validation}
        self.hold(shards)
        self.single = SingleTrainer(module, task, train, device=device)
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
        self.queries = Queries(strategy.queries, self.single, private=examples is not None, seed=seed, secret=secret)
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
        started = time.perf_counter()
        partial = self.collect(instruction, self.trained(instruction, silos, record=record), mechanisms, chunk=chunk)
        each = (time.perf_counter() - started) / max(len(silos), 1)  # Trained in a stack, none has a time of its own.
        return replace(partial, seconds=(each,) * len(silos))

    def trained(self, instruction: Instruction, silos: Sequence[int], *, record: bool = False) -> Iterator[Trained]:
        """Runs the silo half of the strategy; what it wants to send has passed no check yet."""
        instruction = self.rounding.received(instruction)
        for group in [list(silos)] if self.stack is not None else [[silo] for silo in silos]:
            session = Session(self, group, instruction.round, record=record, training=True)
            update = self.strategy.local(session, instruction)
            require_kept(update.channels, self._kept(instruction))
            yield Trained(group, session, update, instruction.round)

    def collect(
        self,
        instruction: Instruction,
        trained: Iterable[Trained],
        mechanisms: Mapping[str, Mechanism],
        *,
        chunk: int,
    ) -> Partial:
        """Checks, protects, clips and sums updates: the way that all of them leave their silos."""
        strategy, kept = self.strategy, self._kept(instruction)
        out = Contributions(mechanisms, self.channel_sizes, reveals=strategy.reveals, heaviest=strategy.heaviest)
        losses: list[float] = []
        spoilt: list[int] = []
        for each in trained:
            group, session, update = each.silos, each.session, each.update
            channels, broken = self.leaving(each, instruction)
            spoilt += broken
            refused = crowded(update.channels, kept, group)
            if each.round != instruction.round:
                refused = dict.fromkeys(group, f"update of round {each.round} came in round {instruction.round}")
            size = message(self.channel_sizes, self.kept(instruction), self.rounding.values)
            out.add(channels, update.weight, group, size, refused=refused)
            if self.planted is not None and self.personal is not None:
                self.planted.keep(session.changes, self.personal)
            losses += session.losses
        if self.personal is not None:
            self.personal.forget([failure.silo for failure in out.failures] + spoilt)
        return out.partial(chunk, losses)

    def leaving(self, trained: Trained, instruction: Instruction) -> tuple[dict[str, Tensor], list[int]]:
        """The vectors as they leave their silos: rounded, then noised where silos do so; and whose were not finite.

        What follows is the server's. Who must forget what they staged is for them alone to know.
        """
        update = trained.update
        # Before any clip, so that no rounding makes a clipped update longer.
        channels = self.rounding.sent(update.channels, trained.session.state, self.channel_sizes)
        if self.local is None:
            return channels, []
        return self.local.protect(channels, update.weight, trained.silos, round_=instruction.round)

    def kept(self, instruction: Instruction) -> Mapping[str, int]:
        """How many numbers of a channel travel in answer to an instruction; left out, all do."""
        return {} if self.local is not None else self._kept(instruction)  # The silo's own noise leaves none at zero.

    def _kept(self, instruction: Instruction) -> Mapping[str, int]:
        return self.strategy.kept(self.single.layout, instruction.round, instruction.tier)

    def hold(self, shards: Shards) -> None:
        """Trains on other rows from now on, of the same silos."""
        self.shards = known_by(self.strategy, shards)
        self.starts, self.sizes = shards.offsets[:-1].numpy(), shards.sizes.numpy()

    def evaluate(
        self, instruction: Instruction, silos: Sequence[int], *, split: Split = "test", fresh: bool = False
    ) -> Evaluation:
        """Evaluates what silos are served, each on its own held-out rows; see `server.link.Link`."""
        held_out = self.held_out[split]
        if held_out is None:
            return Evaluation((), (), (), ())
        kept = [silo for silo in silos if int(held_out.sizes[silo]) > 0]
        results, instruction = [], self.rounding.received(instruction)
        for silo in kept:
            session = Session(self, [silo], instruction.round, record=False, stacked=False, split=split)
            if fresh and self.personal is not None:
                session.state = self.personal.unwritten([silo])
            results.append(self.strategy.evaluate(session, instruction))
        return Evaluation(
            tuple(kept),
            tuple(int(held_out.sizes[silo]) for silo in kept),
            tuple(float(result["loss"]) for result in results),
            tuple(float(result[self.metric]) for result in results),
        )


@dataclass(frozen=True)
class Trained:
    """What came of the silo half of a strategy.

    Attributes:
        silos: whose it is; a stack, or one silo.
        session: that it ran in.
        update: what they want to send.
        round: that it answers.
    """

    silos: Sequence[int]
    session: Session
    update: Update
    round: int


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
