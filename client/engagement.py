"""One run at one silo: from a hello to its last task.

The order is the guarantee: policy, then the ledger (on the disk), then the first step, then the answer on the disk,
then the answer. A crash in between overcounts, and whoever asks again is answered once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.answers import Answer, answer
from client.errors import DataError, Refused
from client.host import SiloHost
from client.memory import Memory
from client.policy import Policy, Terms, broken
from client.purse import Purse
from privacy.account import BudgetSpent
from privacy.chain import Entry, LedgerError
from privacy.mechanism import Mechanism
from strategies.base import Evaluation, Instruction
from strategies.envelope import Columns, Reply, Task, encode, scalar
from strategies.wire import Values

PERSONAL = "personal"


@dataclass(frozen=True)
class Opened:
    """What the silo made of an experiment and its own rows.

    Attributes:
        terms: what the run asks of it.
        dataset: fingerprint of the rows, whatever the experiment does with them.
        mechanisms: channel to its mechanism.
        values: type that numbers travel as.
        host: builds what trains, given the folder of the run's personal vectors.
    """

    terms: Terms
    dataset: str
    mechanisms: Mapping[str, Mechanism]
    values: Values
    host: Callable[[Path], SiloHost]


class Engagement:
    """A run that a silo takes part in.

    Args:
        hello: that introduced it.
        opened: what came of it.
        number: of the silo.
        policy: of the data holder.
        folder: of the run's files.
        ledgers: folder of the silo's ledgers.

    Raises:
        Refused: the policy does not allow the run, or its files cannot be used.
    """

    def __init__(
        self, hello: Task, opened: Opened, *, number: int, policy: Policy, folder: Path, ledgers: Path
    ) -> None:
        self.digest, self.number, self.policy, self.opened = hello.digest, number, policy, opened
        if lines := broken(policy, opened.terms):
            raise Refused("policy", "; ".join(lines))
        with failing():
            self.memory = Memory.open(folder / "answer", hello.digest)
            self.purse = Purse(
                ledgers, run=hello.run, dataset=opened.dataset, prices=opened.terms.prices, policy=policy
            )
        with training():
            self.host = opened.host(folder / PERSONAL)
        self._paid: list[Entry] = []
        self._trained_s: list[float] = []
        self._clipped: dict[str, float] = {}

    def took(self) -> dict[str, object]:
        """What the silo's own log says of training since the last call, beside what was asked; private.

        Seconds of training (`trained`), and of each wait for the ledger's disk (`waited`); and of each channel of the
        last update how many times its clip norm it was long, where the server will clip it (`clipped`).
        """
        seconds = {"trained": self._trained_s, "waited": self.purse.waited()}
        found: dict[str, object] = {name: [round(each, 6) for each in all_] for name, all_ in seconds.items() if all_}
        found |= {"clipped": self._clipped} if self._clipped else {}
        self._trained_s, self._clipped = [], {}
        return found

    def train(self, task: Task) -> bytes:
        """The reply to a task to train, encoded; the one that was given before where the same is asked again.

        Raises:
            Refused: over, against the policy, beyond the budget, or it failed.
        """
        match self.memory.judge(task.round, task.attempt):
            case "same":
                return self.memory.answer
            case "over":
                raise Refused("stale", f"round {task.round}, attempt {task.attempt}: is over at this silo")
        if task.round > self.opened.terms.rounds:  # Its price covers as many rounds as the experiment has.
            raise Refused("stale", f"round {task.round}: the run has {self.opened.terms.rounds} rounds")
        if task.record and "train_loss" not in self.policy.metrics:
            raise Refused("policy", "train_loss may not leave this silo; run with metrics.privacy: strict")
        self.settle(task, forget=True)
        with failing():
            self.purse.require(task.round, task.attempt)
            if self.policy.dry_run:
                raise Refused("dry_run", "the policy would allow this round, but says dry_run: true")
            # On the disk before the first step: a crash overcounts.
            self._paid += self.purse.charge(task.round, task.attempt)
        started = time.monotonic()
        found = self._trained(task)
        seconds = time.monotonic() - started
        self._trained_s.append(seconds)
        self._clipped = {name: round(times, 3) for name, times in found.longer.items()}
        data = encode(self._reply(task, found, seconds=seconds), values=self.opened.values)
        if self.host.personal is not None:
            self.host.personal.flush()
        with failing():
            self.memory.keep(task.round, task.attempt, data)
        return data

    def evaluate(self, task: Task) -> Reply:
        """How the silo is served on its held-out rows.

        Raises:
            Refused: such numbers may not leave, or it failed.
        """
        if missing := [name for name in ("loss", "score") if name not in self.policy.metrics]:
            raise Refused("policy", f"{' and '.join(missing)} may not leave this silo")
        if self.policy.dry_run:
            raise Refused("dry_run", "the policy would allow this, but says dry_run: true")
        self.settle(task)
        with training():
            found = self.host.evaluate(_instruction(task), [self.number], split=task.split, fresh=task.fresh)
        return self._bare(task, evaluation=_columns(found))

    def settle(self, task: Task, *, forget: bool = False) -> None:
        """Makes current what the silo staged, if the server used its update; else takes it back.

        Args:
            task: says which round of this silo stands.
            forget: take it back also where the task says nothing.

        Raises:
            Refused: what the silo keeps is not of the server's run; one of the two is an older copy.
        """
        personal, stands, staged = self.host.personal, task.committed, self.memory.round
        if personal is None or (stands < 0 and not forget):
            self._close_rounds(stands)
            return
        if stands > max(staged, personal.committed) or 0 <= stands < personal.committed:
            kept = max(staged, personal.committed)
            raise Refused("stale", f"the silo's personal vectors are of round {kept}, the server's of round {stands}")
        if stands == staged and stands > personal.committed:
            personal.commit(staged)
        else:
            personal.discard()
        self._close_rounds(stands)

    def close(self) -> None:
        """Lets the files go."""
        self.purse.close()

    def _trained(self, task: Task) -> Answer:
        with training():
            found = answer(self.host, _instruction(task), self.number, self.opened.mechanisms, record=task.record)
        if found.refused is not None:
            raise Refused("training_failed", found.refused)
        return found

    def _reply(self, task: Task, found: Answer, *, seconds: float) -> Reply:
        losses = tuple(scalar(loss) for loss in found.losses) if task.record else ()
        return self._bare(
            task,
            weight=scalar(found.weight),
            losses=losses,
            seconds=seconds,
            channels=found.channels,
            kept=found.kept,
        )

    def _bare(self, task: Task, **facts: object) -> Reply:
        same = {"run": task.run, "digest": task.digest, "round": task.round, "attempt": task.attempt}
        return Reply(silo=self.number, ledger=self.purse.head, **same, **facts)  # type: ignore[arg-type]

    def _close_rounds(self, stands: int) -> None:
        done = [entry for entry in self._paid if entry.round <= stands]
        if done:
            with failing():
                self.purse.commit(done)
            self._paid = [entry for entry in self._paid if entry.round > stands]


@contextmanager
def failing() -> Iterator[None]:
    """Turns what can go wrong with the silo's files and budgets into refusals."""
    try:
        yield
    except BudgetSpent as error:  # What other runs have spent is for the silo's own log.
        line = "it would pass the largest epsilon that the policy allows on these rows"
        raise Refused("budget", line, private=str(error)) from error
    except LedgerError as error:
        raise Refused("ledger", "the silo's ledger cannot be used", private=str(error)) from error
    except (DataError, OSError) as error:
        raise Refused("data", "the silo's files cannot be used", private=str(error)) from error


@contextmanager
def training() -> Iterator[None]:
    """Turns whatever a silo half raises into a refusal that names its class alone: its text may hold private rows."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        line = f"training failed with {type(error).__name__}; the silo's audit log says more"
        raise Refused("training_failed", line, private=f"{type(error).__name__}: {error}") from error


def _instruction(task: Task) -> Instruction:
    return Instruction(task.round, task.vectors, task.tier, task.kept)


def _columns(found: Evaluation) -> Columns | None:
    if not found.silos:
        return None
    return Columns(rows=found.rows[0], loss=scalar(found.loss[0]), score=scalar(found.score[0]))
