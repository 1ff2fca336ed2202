"""`confide silo`: the data holder's own process, which alone reads the rows and keeps the ledger."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from simulations.commands import INTERRUPTED, OK
from simulations.commands.interrupt import Interrupt
from simulations.commands.shared import load_code, plugin_argument
from simulations.commands.silo_metrics import endpoint, metrics_arguments
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from client.office import Office
    from client.policy import Policy
    from client.sockets import Place
    from simulations.deploying.opening import Opener

NAME = "silo"
HELP = "hold a silo's data, and train on it as its policy allows"
POLL_S = 0.2
GRACE_S = 5.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--data", metavar="FILE|NAME", required=True, help="a CSV or npz file, or a data set by name")
    parser.add_argument("--policy", metavar="FILE", required=True, help="policy.yaml: what is allowed here")
    parser.add_argument("--number", metavar="N", type=int, default=0, help="of this silo, from 0 (default: 0)")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="ledgers, answers and logs; default: a folder of N's"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", metavar="PATH", help="a Unix socket to listen on")
    where.add_argument("--listen", metavar="HOST:PORT", help="an address, with --ca, --cert and --key")
    parser.add_argument(
        "--socket-mode", metavar="OCTAL", default="600", help="who may ask, by file mode (default: 600)"
    )
    for name, help_ in (("ca", "authority of those who may ask"), ("cert", "this silo's"), ("key", "its private key")):
        parser.add_argument(f"--{name}", metavar="PEM", type=Path, help=f"--listen: {help_}")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, default=1, help="of the processor, to train with (default: 1)"
    )
    metrics_arguments(parser)
    plugin_argument(parser)


def execute(args: argparse.Namespace) -> int:
    """Listens until a signal; SIGHUP reads the policy again."""
    place, mode = _place(args), _mode(args.socket_mode)
    if not 1 <= args.threads <= 1024 or not 0 <= args.number < 2**31:
        raise ConfigError(["--threads, --number: give at least 1 thread, and a number from 0"])
    from client.policy import read_policy

    policy = read_policy(args.policy)
    _require_data(args.data)
    load_code(args.plugins)
    import torch

    from client.device import chosen

    chosen(args.device)  # A device that is not here is found before anybody asks.
    torch.set_num_threads(args.threads)
    folder = args.folder if args.folder is not None else _default(args.number)
    with endpoint(args, folder, policy) as told:
        return _answer(args, policy, folder, place, mode, told)


def _answer(
    args: argparse.Namespace, policy: Policy, folder: Path, place: Place, mode: int, told: Callable[[Policy], None]
) -> int:
    from client.daemon import Daemon
    from client.office import Office
    from simulations.deploying.opening import Opener
    from simulations.version import version

    opener = Opener(args.data, args.number, args.device, policy)
    office = Office(number=args.number, policy=policy, folder=folder, open_run=opener)
    with Interrupt() as interrupt, Daemon(office, place, version=version(), mode=mode) as daemon:
        where = place.path or place.address
        dry = "; dry run: nothing leaves" if policy.dry_run else ""
        print(f"confide: silo {args.number} answers at {where}; its folder: {folder}{dry}", file=sys.stderr, flush=True)
        again = _Again(args.policy, told)
        while not interrupt.asked():
            again.look(office, opener)
            time.sleep(POLL_S)
        daemon.stop(GRACE_S)
    if not office.close(wait_s=1.0):  # In the middle of training: its price stands in the ledger, its answer is lost.
        print("confide: stopped in the middle of a round, which stays charged", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
    return OK


class _Again:
    """Reads the policy again on SIGHUP; one that cannot be read changes nothing, and that is said.

    Args:
        path: of the policy.
        told: who has to know of another one, beside the office.
    """

    def __init__(self, path: str, told: Callable[[Policy], None]) -> None:
        self.path, self.told = path, told
        self._asked = False  # No Event: a handler that sets one waits for whoever clears it, who waits for the handler.
        self._next: Policy | None = None
        signal.signal(signal.SIGHUP, self._note)

    def look(self, office: Office, opener: Opener) -> None:
        """Takes the policy over where that was asked for, once no task is worked on."""
        from client.policy import read_policy

        if self._asked:
            self._asked, self._next = False, None
            try:
                self._next = read_policy(self.path)
            except ConfigError as error:
                office.keep_policy("; ".join(error.problems))
                print(f"confide: the policy stays as it was: {error.problems[0]}", file=sys.stderr, flush=True)
        if self._next is not None and office.govern(self._next, replace(opener, policy=self._next)):
            self.told(self._next)
            self._next = None
            print(f"confide: goes by {self.path} as it is now", file=sys.stderr, flush=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def _place(args: argparse.Namespace) -> Place:
    from client.sockets import Place, Tls

    files = [args.ca, args.cert, args.key]
    if args.socket is not None:
        if any(file is not None for file in files):
            raise ConfigError(["--socket: goes without --ca, --cert and --key; remove them, or use --listen"])
        return Place(path=args.socket)
    if any(file is None for file in files):
        raise ConfigError(["--listen: give --ca, --cert and --key, or use --socket"])
    return Place(address=args.listen, tls=Tls(*files))


def _mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{3}", text):
        raise ConfigError([f"--socket-mode: write three octal digits such as 660, found {text[:20]!r}"])
    return int(text, 8)


def _require_data(data: str) -> None:
    from client.files import require_file
    from simulations.data.own import is_file
    from simulations.data.sources import SOURCES

    if is_file(data):
        require_file(data)
    elif data not in SOURCES:
        raise ConfigError([f"--data: {data[:60]!r} is no .csv or .npz file, and no data set that confide knows"])


def _default(number: int) -> Path:
    from simulations.accounts import home

    return home() / "silos" / str(number)
