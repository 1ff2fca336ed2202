"""`confide doctor --deploy`: whether this machine is ready to serve a federation, or to join one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import OK, REFUSED, output

if TYPE_CHECKING:
    from simulations.commands.doctor import Finding
    from simulations.deploying.checking import Check

MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--deploy",
        action="store_true",
        help="check what a federation needs: ports, certificates, keys, clock, versions",
    )
    parser.add_argument("--certs", metavar="DIR", type=Path, help="--deploy: of confide certs, or a silo's part of it")
    parser.add_argument("--server", metavar="HOST:PORT", help="--deploy: whether it can be joined from here")
    parser.add_argument("--policy", metavar="FILE", type=Path, help="--deploy: a silo's")
    parser.add_argument("--socket", metavar="PATH", help="--deploy: whether a silo answers there")


def given(args: argparse.Namespace) -> list[str]:
    """The options that mean nothing without --deploy."""
    return [f"--{name}" for name in ("certs", "server", "policy", "socket") if getattr(args, name) is not None]


def execute(args: argparse.Namespace, machine: Iterator[Finding]) -> int:
    """Prints a line a check; the exit code says whether there is a problem.

    Args:
        args: the command's.
        machine: what `confide doctor` finds out by itself and a federation needs, too.
    """
    from simulations.deploying.checking import Check

    found = [Check(each.what, "problem" if each.required and not each.ok else "ok", each.found) for each in machine]
    found += checks(args)
    if args.format == "json":
        print(output.document([asdict(each) for each in found]))
    else:
        print(output.facts([(each.what, f"{MARKS[each.level]}  {each.found}") for each in found]))
    return REFUSED if any(each.level == "problem" for each in found) else OK


def checks(args: argparse.Namespace) -> Iterator[Check]:
    """What is looked at, by what was given."""
    from simulations.deploying import checking, checking_files
    from simulations.deploying.certificates import Folder
    from simulations.deploying.flower import Address
    from simulations.version import version

    server = None if args.server is None else Address.of(args.server)
    folder = None if args.certs is None else Folder(args.certs)
    yield from checking.programs()
    yield checking.clock()
    yield from checking.ports()
    if folder is not None:
        yield from checking_files.certificates(folder, server)
    if server is not None:
        authority = folder.authority if folder is not None and folder.authority.exists() else None
        yield from checking.server(server, authority)
    if args.policy is not None:
        yield from checking_files.policy(args.policy, folder)
    if args.socket is not None:
        yield from checking.daemon(args.socket, version())
