"""Whether a run may go on: its experiment, its data, its price and its ledger must be those that it was started with.

The noise of a simulated run follows from its seed. Other rows, other settings or another scale under the same noise
would publish their difference without any; so this is asked before the first number is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from privacy.events import Event
from privacy.ledger import Head, Ledger
from server.checkpoint import Checkpoint
from server.store import RunStore, StoreError


def unchanged(
    store: RunStore,
    ledger: Ledger,
    *,
    unit: str,
    events: Iterable[Event],
    identity: Mapping[str, str],
    others: Sequence[Ledger] = (),
) -> Checkpoint | None:
    """The checkpoint to go on from (None before the first), once nothing is found changed; changes nothing itself.

    Args:
        store: of the run.
        ledger: of the run.
        unit: whose privacy is charged.
        events: all that this run releases: what a round costs, and what comes before round 1.
        identity: what a checkpoint must agree on (experiment's digest, data's fingerprint).
        others: further ledgers of the run.

    Raises:
        StoreError: the folder is of another experiment, other data or another price, or a ledger lost lines.
    """
    checkpoint = store.load()
    # A commit follows its checkpoint, so a checkpoint was there: going on from the start would pay for all of it again.
    if checkpoint is None and any(entry.kind == "commit" and entry.round > 0 for entry in ledger.entries):
        raise StoreError(f"{store.checkpoint}: missing, though rounds were committed; restore it, or start a new run")
    if not set(events).issuperset(ledger.spent(unit)):  # Also before the first checkpoint.
        raise StoreError(f"{store.folder}: cannot go on, since the price of a round changed after it was started")
    if checkpoint is not None:
        _same_identity(store, checkpoint, identity)
    if not ledger.runs <= {(ledger.run, ledger.dataset)}:  # It knows of what was reserved before the first checkpoint.
        raise StoreError(f"{store.folder}: cannot go on, since its experiment or data changed after it was started")
    if checkpoint is not None:
        _same_ledger(store, checkpoint)
        for other in others:
            if not other.holds(Head(**checkpoint.meta["ledgers"][other.path.name])):
                raise StoreError(f"{other.path}: not the ledger that the checkpoint knows; restore it from a copy")
    return checkpoint


def _same_identity(store: RunStore, checkpoint: Checkpoint, identity: Mapping[str, str]) -> None:
    known = checkpoint.meta["identity"]
    changed = [name for name, value in identity.items() if known.get(name) != value]
    if changed:
        raise StoreError(f"{store.folder}: cannot go on, since {' and '.join(changed)} changed after it was started")


def _same_ledger(store: RunStore, checkpoint: Checkpoint) -> None:
    head, lines = checkpoint.meta["ledger"], store.ledger.read_bytes().split(b"\n")[:-1]
    if len(lines) < head["seq"]:
        raise StoreError(f"{store.ledger}: shorter than the checkpoint says; lines were cut, restore it from a copy")
    if hashlib.sha256(lines[head["seq"] - 1]).hexdigest() != head["hash"]:
        raise StoreError(f"{store.ledger}: not the ledger that the checkpoint was written with; restore it from a copy")
