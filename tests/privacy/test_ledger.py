"""The ledger: on the disk before it is believed, never lower after a restart, refused when it was touched."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.chain import check as _check
from privacy.events import Event, Gaussian, NonPrivate, Poisson, Sampled, to_json
from privacy.ledger import GENESIS, Entry, Head, Ledger, LedgerError, read

EVENT = Sampled(Poisson(0.1), Gaussian(1.5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@contextmanager
def opened(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path, run="demo", dataset="d41d8cd9")
    try:
        yield ledger
    finally:
        ledger.close()


def reserve(ledger: Ledger, round_: int, event: Event = EVENT) -> Entry:
    return ledger.reserve(round_, event, unit="silo", neighbours="add_remove")


def filled(path: Path) -> bytes:
    """A ledger of reserve, commit, reserve, void, reserve; its bytes."""
    with opened(path) as ledger:
        ledger.commit(reserve(ledger, 1))
        ledger.void(reserve(ledger, 2, Gaussian(2.0)))
        reserve(ledger, 3, Gaussian(3.0))
    return path.read_bytes()


def spent(path: Path) -> list[Event]:
    with opened(path) as ledger:
        return ledger.spent("silo")


def refused(path: Path) -> str:
    with pytest.raises(LedgerError) as caught, opened(path):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_reserve_counts_until_it_is_voided_and_a_commit_changes_nothing(path: Path) -> None:
    with opened(path) as ledger:
        assert (ledger.spent("silo"), ledger.charges("silo"), ledger.head) == ([], 0, Head(0, GENESIS))
        first = reserve(ledger, 1)
        assert (ledger.spent("silo"), ledger.charges("silo"), ledger.open_reserves()) == ([EVENT], 1, [first])
        ledger.commit(first)
        assert (ledger.spent("silo"), ledger.charges("silo"), ledger.open_reserves()) == ([EVENT], 1, [])
        second = reserve(ledger, 2, Gaussian(2.0))
        assert ledger.spent("silo") == [EVENT, Gaussian(2.0)]
        ledger.void(second)
        assert (ledger.spent("silo"), ledger.charges("silo"), ledger.open_reserves()) == ([EVENT], 1, [])
        assert [(entry.seq, entry.kind, entry.round, entry.reserve) for entry in ledger.entries] == [
            (1, "reserve", 1, None),
            (2, "commit", 1, 1),
            (3, "reserve", 2, None),
            (4, "void", 2, 3),
        ]


def test_the_same_round_twice_is_charged_twice(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, 1)
        ledger.commit(reserve(ledger, 1))
        assert ledger.spent("silo") == [EVENT, EVENT]


def test_units_are_counted_apart(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, 1)
        ledger.reserve(1, Gaussian(9.0), unit="example", neighbours="replace")
        assert (ledger.spent("silo"), ledger.spent("example"), ledger.spent("other")) == ([EVENT], [Gaussian(9.0)], [])
        assert [ledger.charges(unit) for unit in ("silo", "example", "other")] == [1, 1, 0]


def test_only_an_open_reserve_of_this_ledger_takes_a_commit_or_a_void(path: Path) -> None:
    with opened(path) as ledger:
        first, second = reserve(ledger, 1), reserve(ledger, 2)
        commit = ledger.commit(first)
        ledger.void(second)
        stranger = Entry(7, "reserve", 7, "silo", "add_remove", EVENT, None)
        changed = Entry(first.seq, "reserve", 1, "silo", "add_remove", Gaussian(9.0), None)
        for entry in (first, second, commit, stranger, changed):
            for close in (ledger.commit, ledger.void):
                with pytest.raises(LedgerError, match="is no open reserve"):
                    close(entry)
        assert len(ledger.entries) == 4
        assert ledger.spent("silo") == [EVENT]


def test_every_line_says_what_it_belongs_to_and_hangs_on_the_one_before(path: Path) -> None:
    filled(path)
    records = list(read(path))
    assert [record["seq"] for record in records] == [1, 2, 3, 4, 5]
    assert {(record["run"], record["dataset"], record["unit"]) for record in records} == {("demo", "d41d8cd9", "silo")}
    assert len({record["prev_hash"] for record in records}) == 5
    assert records[0]["prev_hash"] == GENESIS
    with opened(path) as ledger:
        assert ledger.head.seq == 5
        ledger.commit(ledger.open_reserves()[0])
    assert list(read(path))[5]["prev_hash"] not in {record["prev_hash"] for record in records}


def test_reopening_gives_back_every_entry_and_goes_on(path: Path) -> None:
    with opened(path) as ledger:
        ledger.commit(reserve(ledger, 1, NonPrivate("exact")))
        second = reserve(ledger, 2)
        entries, head = list(ledger.entries), ledger.head
    with opened(path) as ledger:
        assert (ledger.entries, ledger.head, ledger.open_reserves()) == (entries, head, [second])
        ledger.void(second)
        reserve(ledger, 3, Gaussian(0.1))  # A number without an exact binary form.
    assert spent(path) == [NonPrivate("exact"), Gaussian(0.1)]


operations = st.lists(
    st.tuples(st.sampled_from(["reserve", "commit", "void", "reopen"]), st.integers(1, 50)), max_size=15
)


@settings(max_examples=40, deadline=None)
@given(operations)
def test_whatever_happens_spent_is_never_lower_after_reopening(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        ledger = Ledger(path, run="demo", dataset="d")
        model: dict[int, Event] = {}  # What must count: every reserve without a void, by its seq.
        for kind, number in steps:
            waiting = ledger.open_reserves()
            if kind == "reserve":
                entry = reserve(ledger, number, Gaussian(number / 7))
                model[entry.seq] = Gaussian(number / 7)
            elif kind == "reopen":
                ledger.close()
                ledger = Ledger(path, run="demo", dataset="d")
                assert ledger.open_reserves() == waiting
            elif waiting:
                entry = waiting[number % len(waiting)]
                (ledger.commit if kind == "commit" else ledger.void)(entry)
                if kind == "void":
                    del model[entry.seq]
            assert ledger.spent("silo") == list(model.values())
            assert ledger.charges("silo") == len(model)
        ledger.close()
        assert spent(path) == list(model.values())


@pytest.mark.parametrize("line", range(4))
def test_a_middle_line_deleted_edited_doubled_or_moved_is_refused(path: Path, line: int) -> None:
    lines = filled(path).splitlines(keepends=True)
    edited = lines[line].replace(b'"round": ', b'"round": 1')
    assert edited != lines[line]
    for touched in (
        lines[:line] + lines[line + 1 :],
        [*lines[:line], edited, *lines[line + 1 :]],
        [*lines[:line], lines[line], lines[line], *lines[line + 1 :]],
        [*lines[:line], lines[line + 1], lines[line], *lines[line + 2 :]],
        [*lines[:line], b"\n", *lines[line:]],
    ):
        path.write_bytes(b"".join(touched))
        message = refused(path)
        assert f"{path}:" in message
        assert "restore" in message


def test_an_edited_last_line_is_refused_by_its_own_check_sum(path: Path) -> None:
    lines = filled(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b"3.0", b"300.0"))  # Nothing hangs on the last line yet.
    assert "edited" in refused(path)


@pytest.mark.parametrize("line", [0, 2])
def test_a_middle_line_edited_with_its_check_sum_made_anew_breaks_the_chain(path: Path, line: int) -> None:
    lines = filled(path).splitlines()
    record = json.loads(lines[line])
    del record["check"]
    record["event"] = to_json(Gaussian(300.0))
    lines[line] = json.dumps(record | {"check": _check(record)}, sort_keys=True).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert f"{path}:{line + 2}: the hash chain is broken" in refused(path)  # What follows hangs on the old line.


FLIPPED = st.tuples(st.integers(0, 10**6), st.integers(0, 7))


@settings(max_examples=150, deadline=None)
@given(FLIPPED)
def test_a_flipped_bit_is_refused_or_changes_nothing(flip: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        data = bytearray(filled(path))
        data[flip[0] % (len(data) - 1)] ^= 1 << flip[1]  # All but the last newline, without which a line is torn.
        path.write_bytes(bytes(data))
        try:
            after = spent(path)
        except LedgerError:
            return
        assert after == [EVENT, Gaussian(3.0)]


@pytest.mark.parametrize(
    "data", [b"\n", b"\n\n", b"null\n", b"[]\n", b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n", b'{"seq": NaN}\n']
)
def test_what_is_no_ledger_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert f"{path}:1: not a ledger line" in refused(path)
    assert path.read_bytes() == data  # Left as it was found.


@pytest.mark.parametrize("silos", ["12", [1.0], [True], [-1], [[0]], 3, {"0": 1}])
def test_silos_that_are_no_numbers_are_refused(path: Path, silos: Any) -> None:
    with opened(path) as ledger:
        ledger.reserve_each(1, [(EVENT, [0, 1])], unit="example", neighbours="add_remove", deal="d")
    record = json.loads(path.read_bytes())
    assert (record["silos"], record["deal"]) == ([0, 1], "d")
    del record["check"]
    record["silos"] = silos
    path.write_bytes(json.dumps(record | {"check": _check(record)}, sort_keys=True).encode() + b"\n")
    assert f"{path}:1: not a ledger line" in refused(path)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("refund", {"reserve": 3}),
        ("void", {"reserve": 1}),  # Committed: what was released cannot be taken back.
        ("void", {"reserve": 99}),
        ("commit", {"reserve": 2}),
        ("void", {}),
        ("commit", {"event": EVENT}),
        ("reserve", {}),
        ("reserve", {"event": EVENT, "reserve": 3}),
    ],
)
def test_a_line_that_no_run_writes_is_refused_though_its_chain_is_whole(
    path: Path, kind: Any, fields: dict[str, Any]
) -> None:
    with opened(path) as ledger:
        ledger.commit(reserve(ledger, 1))
        reserve(ledger, 2)
        ledger._append(kind, 2, unit="silo", neighbours="add_remove", **fields)
    assert f"{path}:4: " in refused(path)


def test_another_process_cannot_open_a_ledger_that_is_held(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from privacy.ledger import Ledger, LedgerError\n"
        "try: Ledger(Path(sys.argv[1]), run='r', dataset='d').close()\n"
        "except LedgerError as error: sys.exit(str(error))\n"
    )
    root = str(Path(sys.modules[Ledger.__module__].__file__ or "").resolve().parent.parent)

    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)

    with opened(path) as ledger:
        held = other()
        assert (held.returncode, held.stderr) == (
            1,
            f"{path}: another process holds this ledger; wait for it or stop it\n",
        )
        reserve(ledger, 1)  # The holder goes on.
        assert "another process" in refused(path)  # A second handle in this process is as bad.
    free = other()
    assert (free.returncode, free.stderr) == (0, "")
    assert spent(path) == [EVENT]


def test_a_refused_ledger_is_not_held(path: Path) -> None:
    path.write_bytes(b"{}\n")
    refused(path)
    path.unlink()
    filled(path)
    path.write_bytes(path.read_bytes().replace(b"1.5", b"2.5"))
    assert "chain" in refused(path)
    assert "chain" in refused(path)  # Not "another process holds it".


@pytest.mark.parametrize("where", ["missing/ledger", "file/ledger", "folder"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert "cannot be written" in refused(tmp_path / where)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in refused(tmp_path / "ledger")


def test_a_reserve_is_synced_with_all_lines_up_to_its_own_before_it_is_returned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    with opened(path) as ledger:
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append(path.read_bytes()))
        first = reserve(ledger, 1)
        assert [len(data.splitlines()) for data in synced] == [1]
        assert synced[-1].endswith(b"\n")
        ledger.commit(first)
        ledger.void(reserve(ledger, 2))
        assert [len(data.splitlines()) for data in synced] == [1, 3]  # The commit came along with the next reserve.


def failing(handle: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_failing_fsync_makes_no_entry_and_no_other_until_the_ledger_is_opened_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as ledger:
        first = reserve(ledger, 1)
        entries, head = list(ledger.entries), ledger.head
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises(LedgerError, match=r"write failed \(Input/output error\); nothing was released"):
                reserve(ledger, 2)
        assert (ledger.entries, ledger.head, ledger.open_reserves()) == (entries, head, [first])
        with pytest.raises(LedgerError, match="an earlier write failed"):
            reserve(ledger, 3)
        assert ledger.spent("silo") == [EVENT]
    with opened(path) as ledger:
        assert ledger.entries == entries
        ledger.commit(reserve(ledger, 2))
    assert spent(path) == [EVENT, EVENT]


def test_a_line_that_stays_though_its_fsync_failed_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as ledger:
        data = b""

        def lost(handle: int) -> None:
            nonlocal data
            data = path.read_bytes()
            failing(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lost)
            with pytest.raises(LedgerError):
                reserve(ledger, 1)
    path.write_bytes(data)  # As if taking the line back had not reached the disk either.
    assert spent(path) == [EVENT]


def test_a_disk_that_is_full_takes_no_part_of_a_line(path: Path) -> None:
    with opened(path) as ledger:
        reserve(ledger, 1)
        size = path.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))  # Python ignores SIGXFSZ: the write comes short.
        try:
            with pytest.raises(LedgerError, match="write failed"):
                reserve(ledger, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size
    assert path.stat().st_size == size  # Nor does closing bring the rest.
    assert spent(path) == [EVENT]


def test_lines_are_plain_json(path: Path) -> None:
    for line in filled(path).splitlines():
        assert set(json.loads(line)) >= {"seq", "prev_hash", "kind", "run", "round", "unit", "neighbours", "time"}
