"""The round loop: reserve, ask, aggregate, checkpoint, commit, line.

The order is the design. The ledger's reserve is on the disk before a silo is asked, so a crash overcounts. The
checkpoint's rename commits a round: it carries the ledger's head and the round's line, so what follows it (the ledger's
commit, the personal state, rounds.jsonl) can be done again after a crash and is done once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from privacy import streams
from privacy.account import BudgetSpent
from privacy.accountant import Neighbours, epsilon
from privacy.adaptive import advanced, clip_norms, restored
from privacy.events import Composed, Event, NonPrivate, Repeated
from privacy.ledger import Entry, Ledger
from privacy.mechanism import Mechanism, joint_event
from privacy.noise import NoiseSource
from privacy.release import Collector
from server.checkpoint import Checkpoint
from server.link import Link, by_tier
from server.local import LocalCharge
from server.odometer import Odometer
from server.rows import Phases, counts, finite
from server.sampler import CyclicCohort, Sampler
from server.store import RunStore
from server.turns import Carried, Charges, charged, events
from server.unchanged import unchanged
from strategies.base import Guard, State, Strategy
from strategies.layout import Layout
from strategies.wire import Values

UNIT = "silo"
Evaluate = Callable[..., Mapping[str, float]]
PATIENCE = 3  # Rounds in a row without an update that could be used, after which a run stops.


class Diverged(Exception):
    """The model is no longer finite, or no update could be used; the last checkpoint holds the last good one."""


class Watcher(Protocol):
    """Looks at every released model; what it keeps is committed with the round."""

    def see(self, before: Tensor, after: Tensor) -> None:
        """Is shown the models `(N,)` before and after a round."""
        ...

    def kept(self) -> Mapping[str, Tensor]:
        """All that it must remember."""
        ...

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Goes back to what it had kept; nothing kept is a fresh start."""
        ...


def always(round_: int, cohort: Sequence[int]) -> AbstractContextManager[None]:
    """Admits every round, for nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Training:
    """What a run does, apart from who does it.

    Attributes:
        strategy: server half of the algorithm.
        model: initial vector `(N,)`.
        layout: which stretch of it is which parameter.
        sampler: who is asked.
        mechanisms: channel to its mechanism, of the next round; all private or none.
        rounds: how many.
        seed: of every simulated stream.
        noise: where noise comes from; where it is secret, cohorts are too, and each retrained round draws both anew.
        expected: constant divisor of private means (expected cohort, canaries included).
        neighbours: the relation that epsilon is for.
        delta: of the reported epsilon; None without privacy.
        budget: epsilon that no round may pass, at the same delta.
        before: what was released, and charged, before round 1.
        record: bring back private numbers (training loss, clip fraction).
        every: evaluate every so many rounds, and after the last.
        evaluate: public evaluation of a model, and of its `Guard` where the strategy has one; or None.
        later: the round from which on another evaluation takes its place, and that; None: there is none.
        identity: what a checkpoint must agree on to be resumed (experiment's digest, data's fingerprint).
        watcher: looks at every released model, or None.
        ledgers: those beside the run's own; each checkpoint knows their heads, so that lost lines are found.
        admit: is given a round and its cohort; a round is reserved inside of what it returns, or stopped by it.
        values: the type that numbers travel as; it decides how many bytes they are.
        tells: is shown a round, its cohort and the state after it, and adds to the round's line; None adds nothing.
        wire: bytes `up` and `down` at the transport since it was asked before, for monitoring; None: there is none.
        carried: what turns and correlated noise remember from round to round.
        local: what being asked costs a silo whose update the server sees, where silos noise their own.
    """

    strategy: Strategy
    model: Tensor
    layout: Layout
    sampler: Sampler
    mechanisms: Mapping[str, Mechanism]
    rounds: int
    seed: int
    noise: NoiseSource
    expected: float
    neighbours: Neighbours
    delta: float | None
    budget: float | None
    before: tuple[Event, ...]
    record: bool
    every: int
    evaluate: Evaluate | None
    identity: Mapping[str, str]
    watcher: Watcher | None = None
    ledgers: Sequence[Ledger] = ()
    admit: Callable[[int, Sequence[int]], AbstractContextManager[None]] = always
    local: LocalCharge | None = None
    later: tuple[int, Evaluate] | None = None
    values: Values = "float32"
    tells: Callable[[int, Sequence[int], State], Mapping[str, Any]] | None = None
    wire: Callable[[], Mapping[str, int]] | None = None
    carried: Carried = field(default=cast(Carried, None), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.carried is None:  # Else the training goes on with other mechanisms: it remembers the same.
            object.__setattr__(self, "carried", Carried(self.sampler, self.mechanisms, self.rounds))

    @property
    def event(self) -> Event:
        """What one round costs a silo, known before the round; where silos take turns, a round that pays."""
        return round_event(self.strategy, self.mechanisms, self.sampler)

    def evaluation(self, round_: int) -> Evaluate | None:
        """The public evaluation of what a round leaves."""
        return self.later[1] if self.later is not None and round_ >= self.later[0] else self.evaluate

    def first(self) -> State:
        """The server's state before round 1."""
        return self.strategy.init(self.model, streams.generator(self.seed, "init"), self.layout)

    def cohort(self, round_: int) -> list[int]:
        """Who is asked in a round. For whoever knows that, amplification is void: secret noise has secret cohorts."""
        if isinstance(self.sampler, CyclicCohort):  # Nothing amplifies turns, and all rounds must agree on them.
            return self.sampler.draw(self.seed, round_)
        return self.sampler.draw_secretly() if self.noise.secret else self.sampler.draw(self.seed, round_)


def round_event(strategy: Strategy, mechanisms: Mapping[str, Mechanism], sampler: Sampler) -> Event:
    """What one round costs a silo; the plan before a run and the loop in it ask here, so they cannot differ."""
    if strategy.reveals:
        return NonPrivate(f"strategy {strategy.name} sees single updates")
    inner = joint_event(mechanisms)
    return inner if isinstance(inner, NonPrivate) else sampler.event(inner)


@dataclass(frozen=True)
class RoundResult:
    """A committed round.

    Attributes:
        round: its number.
        row: its line in rounds.jsonl.
        state: the strategy's state after it.
    """

    round: int
    row: Mapping[str, Any]
    state: State


def resume(training: Training, link: Link, store: RunStore, ledger: Ledger) -> tuple[int, State, Training]:
    """Brings everything to the last committed round; returns that round (0 for none), the state and what follows it.

    Raises:
        StoreError: see `server.unchanged`.
    """
    known = (*events(training.event), *training.before)
    checkpoint = unchanged(store, ledger, unit=UNIT, events=known, identity=training.identity, others=training.ledgers)
    if training.local is not None:
        training.local.unchanged(ledger)
    store.cut(checkpoint)
    if training.watcher is not None:
        training.watcher.restore(checkpoint.watched if checkpoint is not None else {})
    training.carried.restore(*((checkpoint.round, checkpoint.carried) if checkpoint is not None else (0, {})))
    if checkpoint is None:
        link.recover(0)
        return 0, training.first(), training
    link.recover(checkpoint.round)
    for entry in ledger.open_reserves():
        if entry.seq <= int(checkpoint.meta["ledger"]["seq"]) and entry.round == checkpoint.round:
            ledger.commit(entry)
    mechanisms = restored(training.mechanisms, checkpoint.meta.get("clip_norms", {}))
    return checkpoint.round, checkpoint.state, replace(training, mechanisms=mechanisms)


def run(training: Training, link: Link, store: RunStore, ledger: Ledger) -> Iterator[RoundResult]:
    """Trains from the store's last committed round to the end; one result a committed round.

    To stop early, stop iterating: every yielded round is whole.

    Raises:
        BudgetSpent: before a round that would pass the budget.
        Diverged: when the model is no longer finite.
        TooSoon: before a round that would ask a silo sooner than its price allows.
    """
    done, state, training = resume(training, link, store, ledger)
    before = _before(training, ledger)
    rounds = charged(training.sampler, training.rounds)
    odometer = Odometer(training.event, training.neighbours, training.delta, rounds, training.budget, before)
    turns = Charges.of(training.event, training.sampler, ledger.counted(), UNIT)
    phases, idle = Phases(), 0
    for round_ in range(done + 1, training.rounds + 1):
        cohort, event = training.cohort(round_), turns.next(round_)
        training.carried.admit(round_, cohort)
        charges = ledger.charges(UNIT) + 1 - len(before) - turns.free
        _afford(training, odometer, charges, round_)
        phases.begin()
        with training.admit(round_, cohort):  # All units are charged, or none is and nobody is asked.
            entries = _reserve(training, ledger, event, round_, cohort)
        store.monitor.reserved(round_, odometer.after(charges))
        phases.done("reserve")
        training, state, row = _train(training, link, state, round_, cohort, phases)
        idle = _idle(idle, row, last=round_ == training.rounds)
        row |= finite({"epsilon": odometer.after(charges)})
        phases.done("account")
        row |= _evaluate(training, state, round_, phases)
        state = _commit(training, link, store, ledger, state, entries, row, phases)
        yield RoundResult(round_, row, state)


def _idle(before: int, row: Mapping[str, Any], *, last: bool) -> int:
    """Rounds in a row, up to this one, in which every update was refused.

    A single round of these may be the work of the few silos that were asked; it changes nothing, and the run goes on.
    """
    if not row["failures"] or row["arrived"]:
        return 0
    now = before + 1
    if now == PATIENCE or (last and now == row["round"]):
        refused, reason = row["failures"], next(iter(row["failure_reasons"]))
        raise Diverged(
            f"round {row['round']}: all {refused} updates were refused: {reason}; mend the strategy or its rates"
        )
    return now


def final_epsilon(training: Training, ledger: Ledger) -> Any:
    """The bracket of everything the ledger holds, recomputed from its events; None without a delta."""
    if training.delta is None:
        return None
    counts = Counter(ledger.spent(UNIT))
    history = Composed(tuple(Repeated(event, times) for event, times in counts.items()))
    return epsilon(history, training.delta, neighbours=training.neighbours)


def _before(training: Training, ledger: Ledger) -> tuple[Event, ...]:
    """What the ledger holds that is no round: releases before round 1, and what a torn line may have been."""
    rounds = events(training.event)
    return tuple(event for event in ledger.spent(UNIT) if event not in rounds)


def _afford(training: Training, odometer: Odometer, charges: int, round_: int) -> None:
    if odometer.affords(charges):
        return
    after = odometer.after(charges)
    raise BudgetSpent(
        f"round {round_} would bring epsilon to {'infinity' if after is None else round(after, 4)}, "
        f"above the budget of {training.budget}; stopped after round {round_ - 1}"
    )


def _reserve(training: Training, ledger: Ledger, event: Event, round_: int, cohort: list[int]) -> list[Entry]:
    """Charges a round to each view of it; they are never added up.

    Without noise of the server's an exact sum has no price. But where each silo noised its own update, outsiders see no
    more than the server does, and that view is charged.
    """
    entries, local = [], training.local
    if local is not None:
        local.afford(ledger, round_, cohort, training.sampler.population)
    if local is None or any(mechanism.private for mechanism in training.mechanisms.values()):
        entries.append(ledger.reserve(round_, event, unit=UNIT, neighbours=training.neighbours))
    if local is not None:
        entries.append(local.reserve(ledger, round_, cohort))
    return entries


def _train(
    training: Training, link: Link, state: State, round_: int, cohort: list[int], phases: Phases
) -> tuple[Training, State, dict[str, Any]]:
    strategy = training.strategy
    requests = by_tier(strategy, state, round_, cohort)
    sizes = strategy.channels(training.model.numel())
    collector = Collector(
        training.mechanisms,
        sizes,
        expected=training.expected,
        population=link.population,
        reveals=strategy.reveals,
        rate=training.sampler.expected / training.sampler.population,
    )
    for partial in link.ask(requests, training.mechanisms, record=training.record):
        collector.add(partial)
    phases.done("train")
    phases.trained = collector.tally.seconds if training.record else []
    release = collector.release(training.noise, stream=("noise", round_))
    before = strategy.audited(state)
    state = strategy.aggregate(state, release, streams.generator(training.seed, "aggregate", round_))
    if not bool(torch.isfinite(strategy.audited(state)).all()):
        raise Diverged(f"round {round_}: the model is no longer finite; lower train.learning_rate or the server's")
    phases.done("aggregate")
    if training.watcher is not None:
        training.watcher.see(before, strategy.audited(state))
        phases.done("audit")
    row = {"round": round_, "cohort": len(cohort)} | counts(
        collector.tally, training.mechanisms, requests, record=training.record, values=training.values
    )
    if training.tells is not None:
        row |= training.tells(round_, cohort, state)
    return replace(training, mechanisms=advanced(training.mechanisms, release)), state, row


def _evaluate(training: Training, state: State, round_: int, phases: Phases) -> dict[str, Any]:
    row: dict[str, Any] = {}
    evaluate = training.evaluation(round_)
    if evaluate is not None and (round_ % training.every == 0 or round_ == training.rounds):
        row |= finite(evaluate(*served(training.strategy, state)))
        if variants := training.strategy.variants(state, round_):
            row["variants"] = {name: finite(evaluate(model)) for name, model in variants.items()}
    phases.done("evaluate")
    return row


def served(strategy: Strategy, state: State) -> tuple[Tensor] | tuple[Tensor, Guard]:
    """What is evaluated: the predictor, and the model that goes with it where there is one."""
    guard = strategy.guard(state)
    return (strategy.predictor(state),) if guard is None else (strategy.predictor(state), guard)


def _commit(
    training: Training,
    link: Link,
    store: RunStore,
    ledger: Ledger,
    state: State,
    entries: list[Entry],
    row: dict[str, Any],
    phases: Phases,
) -> State:
    row["seconds"] = dict(phases.seconds)
    line = json.dumps(row, sort_keys=True, allow_nan=False)
    heads = {other.path.name: asdict(other.head) for other in training.ledgers}
    head = asdict(ledger.head)
    link.stage()
    norms = clip_norms(training.mechanisms)  # Of the next round: a restart must not begin with the first one.
    meta = {"ledger": head, "ledgers": heads, "identity": dict(training.identity), "line": line, "clip_norms": norms}
    watched = training.watcher.kept() if training.watcher is not None else {}
    store.save(Checkpoint(row["round"], state, meta, watched, training.carried.kept(row["round"])))
    link.commit(row["round"])
    for entry in entries:
        ledger.commit(entry)
    store.append(line)
    phases.done("store")
    wire = training.wire() if training.wire is not None else {}
    store.monitor.committed(row["round"], (ledger, *training.ledgers), trained=phases.trained, wire=wire)
    return state
