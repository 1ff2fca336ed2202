"""The silo's answers to tasks, from bytes to bytes: what stands behind a socket, and needs none.

One task at a time. Everything that can go wrong becomes a refusal with a code and a line, on both sides alike, and all
of it is in the audit log before the answer leaves.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.audit_log import AuditLog
from client.engagement import Engagement, Opened
from client.errors import Refused
from client.policy import Policy
from strategies.envelope import EnvelopeError, Limits, Reply, Task, decode_task, encode, refusal
from strategies.signing import opened

MOST_RUNS = 4  # Held in memory; of others the silo forgets the model, not what it answered or paid.
Open = Callable[[Task], Opened]
POLICY_READ, POLICY_KEPT = "policy read", "policy kept"  # In the log, beside `answered` and `refused`.


class Office:
    """Answers tasks for one silo.

    Args:
        number: of the silo.
        policy: of the data holder.
        folder: of all that the silo keeps: ledgers, answers, personal vectors, audit log.
        open_run: makes of a hello and the silo's own rows what can train; raises `Refused`.
        limits: of tasks.
    """

    def __init__(
        self,
        *,
        number: int,
        policy: Policy,
        folder: Path,
        open_run: Open,
        limits: Limits = Limits(),  # noqa: B008  # Frozen.
    ) -> None:
        self.number, self.policy, self.folder, self.limits = number, policy, folder, limits
        self.answered = self.refused = 0
        self._open_run, self._lock = open_run, threading.Lock()
        self._runs: OrderedDict[str, Engagement] = OrderedDict()
        self._log = AuditLog(folder / "audit.jsonl")

    def handle(self, data: bytes, *, cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """The reply to a task of any origin; never raises for what is in it.

        Args:
            data: the task, encoded, and signed where the policy names servers.
            cancelled: whether nobody waits any more; asked before the work begins, which is then not begun.
        """
        task, began = None, time.monotonic()
        try:
            task = decode_task(opened(data, self.policy.server_keys), limits=self.limits)
            if not self._lock.acquire(timeout=task.deadline_s):
                raise Refused("busy", "the silo was at another task until the deadline")
            try:
                if cancelled():
                    raise Refused("deadline", "nobody waited for this task any more; it was not begun")
                answer = self._answer(task)
                seconds = round(time.monotonic() - began, 3)
                self._note(task, "answered", seconds=seconds, received=len(data), sent=len(answer))
            finally:
                self._lock.release()
            return answer
        except Refused as error:
            return self._refusal(error, task, received=len(data))
        except EnvelopeError as error:
            return self._refusal(Refused(error.code, str(error)), task, received=len(data))
        except Exception as error:  # A fault of ours: the daemon goes on, and the log has it.
            line = f"the silo failed with {type(error).__name__}; its audit log says more"
            failed = Refused("training_failed", line, private=traceback.format_exc())
            return self._refusal(failed, task, received=len(data))

    def refuse(self, error: EnvelopeError) -> bytes:
        """The reply to what did not arrive as a task at all."""
        return self._refusal(Refused(error.code, str(error)), None, received=0)

    def govern(self, policy: Policy, open_run: Open) -> bool:
        """Goes by another policy from the next task on; False where a task is worked on now, and nothing changed.

        All runs are forgotten, so each has to be introduced again, and is held against the new policy then; what was
        paid and answered stays on the disk.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self.policy, self._open_run = policy, open_run
            while self._runs:
                self._runs.popitem()[1].close()
            self._log.write(POLICY_READ)
        finally:
            self._lock.release()
        return True

    def keep_policy(self, problem: str) -> None:
        """Says in the log that a policy was not taken, and why; the one before goes on."""
        self._log.write(POLICY_KEPT, reason=problem)

    def close(self, *, wait_s: float = -1) -> bool:
        """Lets all files go, once no task is worked on; says whether that was within `wait_s` (below 0: no limit)."""
        if not self._lock.acquire(timeout=wait_s):
            return False
        try:
            for run in self._runs.values():
                run.close()
            self._runs.clear()
            self._log.close()
        finally:
            self._lock.release()
        return True

    def _answer(self, task: Task) -> bytes:
        if task.kind == "hello":
            return encode(self._hello(task))
        run = self._runs.get(task.run)
        if task.kind == "close" and run is None:
            return encode(self._said(task))
        if run is None:
            raise Refused("unknown_run", "the silo does not know this run; say hello")
        if run.digest != task.digest:
            raise Refused("wrong_experiment", "the silo knows this run with another experiment")
        self._runs.move_to_end(task.run)
        match task.kind:
            case "moments":
                return run.moments(task)
            case "train":
                return run.train(task)
            case "evaluate":
                return encode(run.evaluate(task))
            case "close":
                run.settle(task)
                run.close()
                del self._runs[task.run]
                return encode(self._said(task, run))

    def _hello(self, task: Task) -> Reply:
        known = self._runs.get(task.run)
        if known is not None and known.digest != task.digest:
            raise Refused("wrong_experiment", "the silo knows this run with another experiment")
        if known is not None and known.opened.moments is not None and task.vectors:  # Round 0 stands: opened anew.
            known.settle(replace(task, committed=0))
            known.close()
            known = None
        if known is None:
            known = Engagement(
                task,
                self._open_run(task),
                number=self.number,
                policy=self.policy,
                folder=self.folder / "runs" / task.run,  # Hexadecimal digits, or the task would not have been read.
                ledgers=self.folder / "ledgers",
            )
            self._runs[task.run] = known
            while len(self._runs) > MOST_RUNS:
                self._runs.popitem(last=False)[1].close()
        return self._said(task, known)

    def _said(self, task: Task, run: Engagement | None = None) -> Reply:
        return Reply(
            run=task.run,
            digest=task.digest,
            round=task.round,
            attempt=task.attempt,
            silo=self.number,
            ledger=None if run is None else run.purse.head,
        )

    def _refusal(self, error: Refused, task: Task | None, *, received: int) -> bytes:
        self.refused += 1
        data = encode(refusal(error.code, error, task=task, silo=self.number))
        sizes = {"received": received, "sent": len(data)}
        try:
            self._note(task, "refused", code=error.code, reason=str(error), private=error.private, **sizes)
        except Refused as unwritten:
            return encode(refusal(unwritten.code, unwritten, task=task, silo=self.number))
        return data

    def _note(self, task: Task | None, what: str, **facts: Any) -> None:
        if what == "answered":
            self.answered += 1
        asked = (
            {} if task is None else {"kind": task.kind, "run": task.run, "round": task.round, "attempt": task.attempt}
        )
        run = None if task is None or task.kind != "train" else self._runs.get(task.run)
        facts |= {} if run is None else run.took()
        self._log.write(what, **asked, **{name: value for name, value in facts.items() if value != ""})
