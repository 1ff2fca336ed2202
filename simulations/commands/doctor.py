"""`confide doctor`: whether this machine has what confide needs; with --deploy, what a federation needs."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from statistics import median

from simulations.commands import FAILED, OK, output, readiness
from simulations.commands.shared import format_argument, plugin_argument, read
from strategies.schema import ConfigError

NAME = "doctor"
HELP = "check this machine: versions, threads, GPU, disk, data"
LEAST_PYTHON = (3, 11)
BIG_BYTES = 4096
TRIES = 5
DEPLOYED = ("flwr", "grpcio", "grpcio-health-checking", "protobuf", "cryptography")
"""What both ends of a federation must have in the same range."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        ok: whether it is as it should be.
        found: in words, with the remedy where it is not.
        required: whether confide cannot work without it.
    """

    what: str
    ok: bool
    found: str
    required: bool = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--grads",
        metavar="CONFIG",
        dest="config",
        help="compare the per-example gradients of a config's model with brute force, instead of checking the machine",
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="--grads: a key"
    )
    readiness.arguments(parser)
    plugin_argument(parser)
    format_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Prints what was found; the exit code says whether all that is required is there."""
    if (options := readiness.given(args)) and not args.deploy:
        raise ConfigError([f"{options[0]}: goes with --deploy; add it"])
    if args.config is not None:
        if args.deploy:
            raise ConfigError(["doctor: give one of --grads and --deploy"])
        return gradients(args)
    if args.deploy:
        return readiness.execute(args, deployed())
    findings = [*interpreter(), *packages(), *torch(), disk(), *carriers()]
    if args.format == "json":
        print(output.document([asdict(finding) for finding in findings]))
    else:
        print(output.facts([(finding.what, f"{_mark(finding)}  {finding.found}") for finding in findings]))
    return OK if all(finding.ok for finding in findings if finding.required) else FAILED


def deployed() -> Iterator[Finding]:
    """Of this machine, what a federation needs."""
    yield from interpreter()
    found = {each.what: each for each in packages()}
    for name in ("confide", *DEPLOYED) if "confide" in found else DEPLOYED:
        told = "the installed confide does not say which it needs; in its folder: pip install -e . -c constraints.txt"
        yield found.get(name, Finding(name, ok=False, found=told))
    yield from (each for each in torch() if each.what != "threads")
    yield disk()


def gradients(args: argparse.Namespace) -> int:
    """Prints a line per parameter; the exit code says whether every example's gradient is its own."""
    experiment = read(args)
    from simulations.gradients import compare
    from simulations.preparing import prepare

    compared = compare(experiment, prepare(experiment))
    if args.format == "json":
        print(output.document([asdict(each) | {"ok": each.ok} for each in compared]))
    else:
        lines = [
            [
                "ok" if each.ok else "WRONG",
                each.parameter,
                str(each.shape),
                f"{each.gradients:.1e}",
                f"{each.clipped:.1e}",
            ]
            for each in compared
        ]
        print(output.table(["", "parameter", "shape", "gradients off by", "clipped sum off by"], lines, left=3))
    return OK if all(each.ok for each in compared) else FAILED


def _mark(finding: Finding) -> str:
    return "ok   " if finding.ok else "WRONG" if finding.required else "-    "


def interpreter() -> Iterator[Finding]:
    """Python's version."""
    found, least = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, LEAST_PYTHON))
    yield Finding("python", sys.version_info[:2] >= LEAST_PYTHON, f"{found} (needs >={least})")


def packages() -> Iterator[Finding]:
    """Installed versions against what confide declares."""
    try:
        declared = requires("confide") or []
    except PackageNotFoundError:
        yield Finding("confide", ok=False, found="not installed; in its folder: pip install -e . -c constraints.txt")
        return
    for line in declared:
        requirement, _, marker = line.partition(";")
        match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", requirement.strip())
        if match is None or "extra" in marker:
            continue
        yield _package(match[1], match[2])


def _package(name: str, wanted: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, ok=False, found=f"missing (needs {wanted}); pip install '{name}{wanted}'")
    ok = satisfies(found, wanted)
    return Finding(name, ok, f"{found} (needs {wanted})" + ("" if ok else f"; pip install '{name}{wanted}'"))


def satisfies(found: str, wanted: str) -> bool:
    """Whether a version keeps comma-separated bounds; only the leading numbers count.

    >>> satisfies("2.13.0+cpu", ">=2.10,<3"), satisfies("3.0", ">=2.10,<3")
    (True, False)
    """
    signs = {
        ">=": tuple.__ge__,
        "<=": tuple.__le__,
        "==": tuple.__eq__,
        "!=": tuple.__ne__,
        ">": tuple.__gt__,
        "<": tuple.__lt__,
    }
    for bound in filter(None, map(str.strip, wanted.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", bound)
        if match is None or not signs[match[1]](_release(found), _release(match[2])):
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:  # 3 and 3.0 are one version.
        numbers.pop()
    return tuple(numbers)


def torch() -> Iterator[Finding]:
    """Threads and GPU, where torch is there at all."""
    try:
        import torch
    except ImportError as error:
        yield Finding("torch import", ok=False, found=f"fails ({error}); install it again")
        return
    cores = os.cpu_count() or 1
    yield Finding(
        "threads", ok=True, found=f"{cores} cores, torch would use {torch.get_num_threads()}; runs use 1 per process"
    )
    gpu = "none; everything runs on the CPU"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()}; engine.device: auto trains there what is not stacked, cpu does not"
    yield Finding("gpu", torch.cuda.is_available(), gpu, required=False)


def disk() -> Finding:
    """A write that is on the disk when it returns, as the ledger needs one per round."""
    folder = Path.cwd()
    try:
        times = [_durable_write(folder) for _ in range(TRIES)]
    except OSError as error:
        return Finding("disk", ok=False, found=f"{folder}: {error.strerror}; runs need a folder they can write to")
    return Finding("disk", ok=True, found=f"a durable write takes {1000 * median(times):.1f} ms in {folder}")


def _durable_write(folder: Path) -> float:
    start = time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * BIG_BYTES)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def carriers() -> Iterator[Finding]:
    """Data sets in the cache."""
    from simulations.data.carriers import status

    for name, present, folder in status():
        found = str(folder) if present else f"not here; confide data fetch {name}"
        yield Finding(f"data {name}", present, found, required=False)
