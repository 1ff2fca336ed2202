from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.checkpoint import Checkpoint
from server.store import RunStore, StoreError

LINES = [json.dumps({"round": number}) for number in range(1, 6)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(tmp_path / "run", resume=False)
    opened.begin("rounds: 5\n")
    yield opened
    opened.close()


def checkpoint(round_: int) -> Checkpoint:
    return Checkpoint(round_, {}, {"line": LINES[round_ - 1]})


def test_the_first_process_keeps_a_second_out(store: RunStore) -> None:
    script = (
        "import sys; from pathlib import Path; from server.store import RunStore, StoreError\n"
        "try: RunStore(Path(sys.argv[1]), resume=True)\n"
        "except StoreError as error: print(error); sys.exit(3)\n"
    )
    command = [sys.executable, "-c", script, str(store.folder)]
    second = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert (second.returncode, second.stderr) == (3, "")
    assert second.stdout.strip() == f"{store.folder}: another process runs here; wait for it or stop it"


def test_closing_lets_the_next_one_in(store: RunStore) -> None:
    with pytest.raises(StoreError, match="another process"):
        RunStore(store.folder, resume=True)
    store.close()
    RunStore(store.folder, resume=True).close()


def test_a_folder_with_a_run_takes_no_other(store: RunStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="holds a run already; choose another --out, or --resume"):
        RunStore(store.folder, resume=False)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        RunStore(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_whose_run_never_began_can_be_used(tmp_path: Path) -> None:
    RunStore(tmp_path / "run", resume=False).close()  # Killed before `begin`.
    RunStore(tmp_path / "run", resume=False).close()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"^\S+/run: cannot be written \(Not a directory\); choose another --out$"):
        RunStore(tmp_path / "file" / "run", resume=False)


def test_lines_and_checkpoint_come_back(store: RunStore) -> None:
    assert (store.load(), store.rows()) == (None, [])
    for number in (1, 2):
        store.save(checkpoint(number))
        store.append(LINES[number - 1])
    kept = store.load()
    assert kept is not None
    assert kept.round == 2
    assert store.rows() == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize("done", range(6))
@pytest.mark.parametrize("torn", ["", '{"rou', '{"round": 9}'])
@pytest.mark.parametrize("written", range(6))
def test_cutting_leaves_exactly_the_committed_rounds(store: RunStore, written: int, torn: str, done: int) -> None:
    """Whatever was appended, and however far the last line got: one line a committed round, or a refusal."""
    store.rounds.write_text("".join(line + "\n" for line in LINES[:written]) + torn)
    before = store.rounds.read_bytes()
    at = checkpoint(done) if done else None
    if written < done - 1:  # Only the last line can be behind: its round was committed and then the process died.
        with pytest.raises(StoreError, match=f"has {written} lines for {done} rounds; restore it from a copy"):
            store.cut(at)
        assert store.rounds.read_bytes() == before
        return
    store.cut(at)
    assert store.rounds.read_text() == "".join(line + "\n" for line in LINES[:done])
    store.cut(at)  # A second crash right after changes nothing.
    assert store.rows() == [{"round": number + 1} for number in range(done)]


def test_committed_lines_are_kept_byte_for_byte(store: RunStore) -> None:
    odd = b'{"round":   1, "note": "\xc3\xa9"}'
    store.rounds.write_bytes(odd + b"\n" + LINES[1].encode() + b"\n")
    store.cut(checkpoint(2))
    assert store.rounds.read_bytes() == odd + b"\n" + LINES[1].encode() + b"\n"


def test_an_appended_line_is_on_the_disk(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store.append(LINES[0])
    assert sizes == [len(LINES[0]) + 1]  # The whole line had left Python's buffer when it was flushed.


def test_a_result_without_json_form_is_refused(store: RunStore) -> None:
    store.finish({"accuracy": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        store.finish({"accuracy": float("nan")})
    assert json.loads((store.folder / "result.json").read_text()) == {"accuracy": 0.5}
