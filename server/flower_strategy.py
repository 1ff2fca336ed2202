"""Any strategy of ours that fits as a strategy of Flower: `FlowerStrategy(FLASC(density_up=0.1), ...)`.

The order of effects is that of `server.loop`: a round's cohort is drawn and its price is on the disk before a message
leaves; every reply is checked, clipped and summed as in a simulation; noise goes on the sum; only then does the
strategy see it. The client's half: `client.flower_client`.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from privacy import streams
from privacy.account import BudgetSpent
from privacy.accountant import Neighbours
from privacy.contributions import Contributions, Failure
from privacy.release import Collector, Tally
from server.flower_replies import checked
from server.flower_rounds import Asked, Roster, RoundLedger
from server.flower_settings import rounds
from server.loop import Diverged
from strategies.base import State, Strategy
from strategies.flower_records import Refused, arrays_of, layout_of, read_answer, task, vector_of
from strategies.flower_silo import misfit
from strategies.layout import Layout
from strategies.schema import ConfigError
from strategies.traffic import message

LOG = logging.getLogger("flwr")  # Where a user of Flower looks.


class FlowerStrategy(FlowerBase):
    """A strategy of ours, to be given to Flower's own loop: `FlowerStrategy(...).start(grid, initial_arrays, ...)`.

    Args:
        strategy: with its settings; registered by name, since silos are told that.
        silos: nodes of the federation; the first round waits for all of them.
        ledger: file that every round is charged to before it begins; made when missing.
        rate: chance that a silo is in a round.
        cap: silos in a round at most; or
        size: a fixed number of silos in a round, in place of both.
        seed: of cohorts and of the strategy's own draws; with noise of the operating system cohorts are secret.
        clip_norm: largest L2 norm of an update; with noise_multiplier and delta, or none of them.
        noise_multiplier: noise std / clip norm, on the sum.
        delta: of every epsilon.
        neighbours: what differs by one silo: `add_remove`, `zero_out` or `replace`.
        allow_large_delta: accept delta >= 1 / silos.
        budget: epsilon that no round may pass; before one that would, nobody is asked any more.
        noise: `system`, or `simulated` by the seed, which repeats; None: `system` where there is any.
        metrics: `strict`: under privacy clients are not asked to evaluate, as nothing protects what they would say.
        wait_s: seconds that the first round waits for silos.

    Raises:
        ConfigError: what cannot work in a plain Flower project or has no price; a line each.
        LedgerError: the ledger cannot be used.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        silos: int,
        ledger: str | Path,
        rate: float = 1.0,
        cap: int | None = None,
        size: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        noise_multiplier: float | None = None,
        delta: float | None = None,
        neighbours: Neighbours = "add_remove",
        allow_large_delta: bool = False,
        budget: float | None = None,
        noise: Literal["system", "simulated"] | None = None,
        metrics: Literal["strict", "research"] = "strict",
        wait_s: float = 600.0,
    ) -> None:
        self.rounds = rounds(
            strategy,
            silos=silos,
            rate=rate,
            cap=cap,
            size=size,
            seed=seed,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            delta=delta,
            neighbours=neighbours,
            allow_large_delta=allow_large_delta,
            budget=budget,
            noise=noise,
        )
        if metrics not in ("strict", "research"):
            raise ConfigError([f"metrics: must be strict or research, found {metrics!r}"])
        self.strategy, self.seed, self.run = strategy, seed, secrets.token_hex(8)
        self.evaluates = metrics == "research" or not self.rounds.private
        self.roster = Roster(silos, wait_s=wait_s, keep=strategy.reveals)
        self.ledger = RoundLedger(
            Path(ledger),
            run=self.run,
            event=self.rounds.event,
            neighbours=neighbours,
            delta=delta,
            budget=budget,
            fresh=self.rounds.private and not self.rounds.noise.secret,
        )
        self.reasons: Counter[str] = Counter()
        """Why replies were refused, and how often."""
        self.round, self._last = 0, torch.zeros(0)
        self._layout: Layout | None = None
        self._state: State = {}
        self._asked: Asked | None = None
        self._evaluated: Asked | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draws the cohort, pays for the round, and only then makes its messages; none where the budget is spent.

        Raises:
            ValueError: a round that was asked before, or a model that is not the last one.
        """
        layout, self._asked = self._begin(server_round, arrays), None
        online = self.roster.online(grid)
        private, sampler = self.rounds.private, self.rounds.sampler
        secret = private and self.rounds.noise.secret  # Whoever knows the cohort undoes amplification.
        cohort = sampler.draw_secretly() if secret else sampler.draw(self.seed, server_round)
        try:
            self.ledger.reserve(server_round)  # Paid before anything leaves, so a crash overcounts.
        except BudgetSpent as spent:
            LOG.warning("%s; nobody is asked any more", spent)
            return []
        instruction = self.strategy.instruct(self._state, server_round)
        config["server-round"] = server_round
        content = RecordDict({**task(self.strategy, instruction, layout, run=self.run), "config": config})
        there = [silo for silo in cohort if silo in online]
        if len(there) < len(cohort):
            LOG.warning("round %d: %d silos are not online", server_round, len(cohort) - len(there))
        messages = [Message(content, online[silo], MessageType.TRAIN, group_id=str(server_round)) for silo in there]
        self._asked = Asked(server_round, messages, there)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Checks, clips, sums, noises; the model that is served then, and how many replies were used.

        Raises:
            Diverged: the model is no longer finite.
        """
        asked, self._asked, layout = self._asked, None, self._layout
        if asked is None or layout is None or asked.round != server_round:
            return None, MetricRecord({"arrived": 0, "refused": 0, **self._epsilon()})
        collector = self._collect(asked, list(replies), layout)
        release = collector.release(self.rounds.noise, stream=("noise", server_round))
        rng = streams.generator(self.seed, "aggregate", server_round)
        self._state = self.strategy.aggregate(self._state, release, rng)
        if not bool(torch.isfinite(self.strategy.audited(self._state)).all()):
            raise Diverged(f"round {server_round}: the model is no longer finite; lower the rates of learning")
        self.ledger.commit()
        self._last = self.strategy.predictor(self._state).clone()
        counts = self._count(server_round, collector.tally)
        return arrays_of(layout, self._last), MetricRecord({**counts, **self._epsilon()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Has all silos evaluate the model as Flower's own strategies do; nobody under privacy and strict metrics."""
        self._evaluated = None
        if not self.evaluates:
            return []
        online = self.roster.online(grid)
        config["server-round"] = server_round
        content = RecordDict({"arrays": arrays, "config": config})
        messages = [Message(content, node, MessageType.EVALUATE) for node in online.values()]
        self._evaluated = Asked(server_round, messages, list(online))
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The mean of the clients' metrics, weighted by `num-examples`."""
        asked, self._evaluated = self._evaluated, None
        if asked is None or asked.round != server_round:
            return None
        good, reasons = checked(asked, list(replies), weight="num-examples")
        self.reasons += reasons
        if not good:
            return None
        return aggregate_metricrecords([reply.content for reply in good], "num-examples")

    def summary(self) -> None:
        """Logs what the rounds are."""
        LOG.info("strategy %s, %s", self.strategy, self.rounds.sampler)
        if self.rounds.private:
            LOG.info("%s; a round is %s", self.rounds.noise.stamp, self.rounds.event)
        if self.rounds.private and self.evaluates:
            LOG.warning("metrics: research: what clients say of their rows is not protected and not charged")

    def close(self) -> None:
        """Lets the ledger go."""
        self.ledger.close()

    def _begin(self, round_: int, arrays: ArrayRecord) -> Layout:
        if not round_ > self.round:
            raise ValueError(f"round {round_}: was asked before; make a new FlowerStrategy to start again")
        if self._layout is None:
            layout, model = layout_of(arrays), vector_of(arrays)
            if (problem := misfit(self.strategy, layout)) is not None:
                raise ValueError(problem)
            self._state = self.strategy.init(model, streams.generator(self.seed, "init"), layout)
            self._layout, self._last = layout, model
        elif not _same(arrays, self._layout, self._last):
            raise ValueError(f"round {round_}: its model is not what the round before gave; pass that on unchanged")
        self.round = round_
        return self._layout

    def _collect(self, asked: Asked, replies: list[Message], layout: Layout) -> Collector:
        """The clipped sum of the replies that are as they were asked."""
        strategy, mechanisms = self.strategy, self.rounds.mechanisms
        sizes, kept = strategy.channels(layout.size), strategy.kept(layout, asked.round, 0)
        out = Contributions(mechanisms, sizes, reveals=strategy.reveals, heaviest=strategy.heaviest)
        for silo, reply, problem in asked.sorted(replies):
            try:
                if problem is not None:
                    raise Refused(problem)
                update = read_answer(reply.content, run=self.run, round_=asked.round, sizes=sizes, kept=kept)
            except Refused as refused:
                out.failures.append(Failure(silo, str(refused)))
            else:
                out.add(update.channels, update.weight, [silo], message(sizes, kept))
        sampler = self.rounds.sampler
        collector = Collector(
            mechanisms,
            sizes,
            expected=sampler.expected,
            population=sampler.population,
            reveals=strategy.reveals,
            rate=sampler.expected / sampler.population,
        )
        collector.add(out.partial(0))
        return collector

    def _count(self, round_: int, tally: Tally) -> dict[str, int]:
        found = Counter(failure.reason for failure in tally.failures)
        self.reasons += found
        for reason, times in found.items():
            LOG.warning("round %d: %d replies were refused: %s", round_, times, reason)
        return {"arrived": tally.arrived, "refused": len(tally.failures)}

    def _epsilon(self) -> dict[str, float]:
        epsilon = self.ledger.epsilon()
        return {} if epsilon is None else {"epsilon": epsilon}


def _same(arrays: ArrayRecord, layout: Layout, vector: Tensor) -> bool:
    return layout_of(arrays) == layout and torch.equal(vector_of(arrays), vector)
