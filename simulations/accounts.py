"""Where the budgets of data sets are kept, and which run is which there."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from privacy.account import Account
from privacy.durable import atomic_write
from privacy.ledger import Charge, LedgerError
from privacy.local import LOCAL
from server.loop import UNIT
from simulations.planning import Plan
from strategies.experiment import Experiment

IDENTITY = "account"  # A file of the run's folder: the name that the run has in its data set's ledger.


def home() -> Path:
    """What confide keeps for a user: $CONFIDE_HOME, else confide under $XDG_DATA_HOME, else ~/.local/share/confide."""
    if own := os.environ.get("CONFIDE_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "confide"


def ledger_of(fingerprint: str) -> Path:
    """The ledger of a data set."""
    return home() / "ledgers" / f"{fingerprint}.jsonl"


def open_account(experiment: Experiment, plan: Plan, folder: Path, *, fingerprint: str) -> Account | None:
    """The data set's account, for a run with a budget of silos; None for one without.

    Raises:
        LedgerError: the account's file cannot be used, or is for another relation.
    """
    if experiment.budget is None or experiment.budget.epsilon is None or plan.delta is None:
        return None
    return Account(
        place(fingerprint),
        run=identity(folder),
        dataset=fingerprint,
        unit=UNIT,
        neighbours=plan.neighbours,
        delta=plan.delta,
        budget=experiment.budget.epsilon,
    )


def place(fingerprint: str) -> Path:
    """The ledger of a data set, in a folder that is there.

    Raises:
        LedgerError: the folder cannot be made.
    """
    path = ledger_of(fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LedgerError(f"{path.parent}: cannot be made ({error.strerror}); set CONFIDE_HOME") from error
    return path


def identity(folder: Path) -> str:
    """The name of a run in its data set's ledger: made once, with a part that no other run has.

    A lost file makes a run another one, whose charges are then counted once more.
    """
    path = folder / IDENTITY
    if not path.exists():
        name = re.sub(r"[^\w.-]", "_", folder.resolve().name)
        atomic_write(path, f"{name}-{secrets.token_hex(4)}\n".encode())
    return path.read_text(encoding="utf-8").strip()


def charges(plan: Plan) -> list[Charge]:
    """All that a run of this plan can have reserved, for a line of its ledger that a crash tore."""
    found = [Charge(UNIT, plan.neighbours, event) for event in plan.events]
    if plan.local is None:
        return found
    local = Charge(LOCAL, plan.local.neighbours, plan.local.event)
    return [local] if plan.delta is None else [*found, local]
