"""Runs the silo half of a strategy over chunks of silos, stacked where the model allows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from client.device import CPU
from client.dpsgd import DPSGD
from client.examples import Shards
from client.personal import PersonalStore
from client.planted import Planted
from client.queries import Queries
from client.reweighting import known_by
from client.rounding import Rounding
from client.session import Session
from client.single import SingleTrainer
from client.stacked import StackedTrainer
from client.stacked_adapters import StackedAdapters
from privacy.contributions import Contributions, Partial
from privacy.local import LocalNoise
from privacy.mechanism import Mechanism
from privacy.steps import NoisySteps
from strategies.base import (
    Evaluation,
    Instruction,
    Split,
    Strategy,
    Update,
)
from strategies.experiment import Train
from strategies.tasks import Shape, Task
from strategies.traffic import crowded, message, require_kept


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
