"""A torn last line is charged as the dearest that it may have been; never as nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountant import epsilon
from privacy.events import (
    Capped,
    Composed,
    Event,
    FixedSize,
    Gaussian,
    NonPrivate,
    Poisson,
    Repeated,
    Sampled,
    from_json,
)
from privacy.ledger import TORN, Charge, Ledger, LedgerError, load
from privacy.torn import worst

EVENT = Sampled(Poisson(0.1), Gaussian(1.5))
DELTA = 1e-5
TOLD = [Charge("silo", "add_remove", EVENT)]


def opened(path: Path, told: list[Charge] | None = None) -> Ledger:
    return Ledger(path, run="demo", dataset="d", told=told or [])


def write(path: Path, events: list[Event]) -> bytes:
    """A ledger of reserves, each committed; its bytes."""
    ledger = opened(path)
    for round_, event in enumerate(events, 1):
        ledger.commit(ledger.reserve(round_, event, unit="silo", neighbours="add_remove"))
    ledger.close()
    return path.read_bytes()


def spent(path: Path, told: list[Charge] | None = None) -> list[Event]:
    ledger = opened(path, told)
    try:
        return ledger.spent("silo")
    finally:
        ledger.close()


def price(events: list[Event]) -> float:
    counts = Counter(events)
    return epsilon(Composed(tuple(Repeated(*item) for item in counts.items())), DELTA).upper


def begun(whole: bytes, length: int) -> list[Event]:
    """What the lines reserve that were begun in the first `length` bytes."""
    end = whole.index(b"\n", length - 1) + 1 if length else 0
    records = map(json.loads, whole[:end].splitlines())
    return [from_json(record["event"]) for record in records if record["kind"] == "reserve"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, in tests that open a ledger thousands of times."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.usefixtures("quick")
def test_epsilon_is_never_lower_wherever_the_file_is_cut(tmp_path: Path) -> None:
    """At every byte: what is charged after reopening costs at least what all begun lines reserved."""
    path = tmp_path / "ledger"
    whole = write(path, [EVENT] * 3)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        before, after = begun(whole, length), spent(path, TOLD)
        assert price(after) >= price(before), length
        assert spent(path) == after  # And once only: reopened, the line is whole.


gaussians = st.floats(0.5, 4.0).map(Gaussian)
samples = st.tuples(st.floats(0.01, 0.5), gaussians).map(lambda pair: Sampled(Poisson(pair[0]), pair[1]))


@settings(max_examples=40)
@given(st.lists(gaussians, min_size=1, max_size=3), st.floats(0, 1))
def test_of_mixed_rounds_too_where_the_run_says_what_it_plans(events: list[Gaussian], where: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        whole = write(path, list(events))
        length = round(where * len(whole))
        path.write_bytes(whole[:length])
        told = [Charge("silo", "add_remove", event) for event in events]
        assert price(spent(path, told)) >= price(begun(whole, length))


@settings(max_examples=40)
@given(st.lists(gaussians | samples, min_size=1, max_size=4))
def test_the_worst_covers_every_known_charge(events: list[Event]) -> None:
    """Renyi and Gaussian prices of the same releases: adding the worst costs at least as much as adding any one."""
    chosen = [charge.event for charge in worst(Charge("silo", "add_remove", event) for event in events)]
    assert set(chosen) <= set(events)
    for event in set(events) - set(chosen):
        assert any(price([other]) >= price([event]) * (1 - 1e-6) for other in chosen)


def test_events_that_cannot_be_compared_are_charged_together() -> None:
    often, loud = Sampled(Poisson(0.5), Gaussian(4.0)), Sampled(Poisson(0.01), Gaussian(0.5))
    fixed = Sampled(FixedSize(1, 10), Gaussian(1.0))
    capped = Sampled(Capped(0.5, 3, 10), Gaussian(1.0))
    charges = [Charge("silo", "replace", event) for event in (often, loud, fixed, capped)]
    assert worst([*charges, Charge("silo", "replace", Sampled(Capped(0.5, 3, 10), Gaussian(1.5)))]) == charges
    louder = Charge("silo", "replace", Sampled(Capped(0.5, 2, 10), Gaussian(0.9)))  # Another cap: not comparable.
    assert worst([charges[3], louder]) == [charges[3], louder]
    assert worst(charges) == charges
    other_unit = Charge("example", "replace", Gaussian(9.0))
    assert worst([charges[0], other_unit]) == [charges[0], other_unit]
    assert worst([*charges, Charge("silo", "replace", NonPrivate("a"))]) == [Charge("silo", "replace", NonPrivate("a"))]


@pytest.mark.parametrize("torn", [b"{", b'{"check": "00", "kind": "void", "reserve": 1', b"x" * 2000, b"\0" * 7])
def test_a_torn_line_is_charged_once_and_kept_for_a_reader(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "ledger"
    whole = write(path, [EVENT, EVENT])
    path.write_bytes(whole + torn)
    assert spent(path) == [EVENT] * 3
    assert path.read_bytes().startswith(whole)
    assert path.with_name("ledger.torn").read_bytes() == torn + b"\n"
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert (last["run"], last["torn"], last["kind"]) == (TORN, True, "reserve")
    assert spent(path) == [EVENT] * 3


@pytest.mark.usefixtures("quick")
def test_a_crash_while_a_torn_line_is_charged_cannot_lose_it(tmp_path: Path) -> None:
    """The charge is written over the torn line: cut at any byte, with what was there before behind it, it counts."""
    path = tmp_path / "ledger"
    whole = write(path, [EVENT])
    torn = b'{"check": "' + b"y" * 700
    path.write_bytes(whole + torn)
    spent(path)
    charge = path.read_bytes()[len(whole) :]
    assert len(charge) < len(torn)
    for length in range(len(charge) + 1):
        path.write_bytes(whole + charge[:length] + torn[length:])
        assert spent(path).count(EVENT) >= 2


@pytest.mark.usefixtures("quick")
def test_with_nothing_known_the_ledger_is_refused_until_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    whole = write(path, [EVENT])
    for length in range(1, whole.index(b"\n") + 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LedgerError, match="is torn, and nothing says what it may have reserved") as caught:
            spent(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == whole[:length]
    assert spent(path, TOLD) == [EVENT]


def test_a_torn_line_is_on_the_disk_as_a_charge_before_the_ledger_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    whole = write(path, [EVENT])
    path.write_bytes(whole + b"{")
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.read_bytes()))
    assert spent(path) == [EVENT, EVENT]
    assert synced[-1] == path.read_bytes()


def test_looking_at_a_ledger_mends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    whole = write(path, [EVENT])
    path.write_bytes(whole + b"{")
    assert load(path).torn == b"{"
    assert path.read_bytes() == whole + b"{"
