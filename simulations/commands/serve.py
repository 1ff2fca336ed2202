"""`confide serve`: the server of a federation, and a run in it where a config is given."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import FAILED, INTERRUPTED, OK
from simulations.commands.interrupt import Interrupt
from simulations.commands.shared import FEDERATION, config_argument, format_argument, sink_argument

if TYPE_CHECKING:
    from simulations.deploying.flower import Server

NAME = "serve"
HELP = "run the server that silos join; with a config, do one run and stop"
POLL_S = 0.2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    config_argument(parser, optional=True)
    parser.add_argument("--name", default=FEDERATION, help="of the federation, for confide run --federation")
    parser.add_argument(
        "--address", metavar="HOST:PORT", default="127.0.0.1:9092", help="where silos join; default: 127.0.0.1:9092"
    )
    parser.add_argument(
        "--control-port", metavar="PORT", type=int, default=9093, help="on loopback, for runs; default: 9093"
    )
    parser.add_argument("--certs", metavar="DIR", type=Path, help="of confide certs: TLS, and the nodes that may join")
    parser.add_argument("--insecure", action="store_true", help="without TLS and node keys; on loopback only")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run; default: runs/NAME-DATE")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on with the run in this folder")
    sink_argument(parser)
    format_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(engine="flower", workers=None, stacked=None, seeds=None, dataset=None)


def execute(args: argparse.Namespace) -> int:
    """Serves until a signal, or until the run is over."""
    from simulations.commands import run
    from simulations.deploying.submitting import Federation

    server, args.federation = _server(args), args.name
    with Interrupt() as interrupt, server.start() as program:  # Noted from the start: nothing is left running.
        Federation.find(args.name)
        secure = "TLS and node keys" if server.certificates is not None else "no TLS"
        print(f"confide: federation {args.name} at {server.fleet} ({secure}); FLWR_HOME={server.home}", file=sys.stderr)
        if args.config is not None or args.resume is not None:
            return INTERRUPTED if interrupt.asked() else run.execute(args)
        print(f"confide: start runs with: confide run CONFIG --engine flower --federation {args.name}", file=sys.stderr)
        while not interrupt.asked():
            if program.ended is not None:
                print(f"confide: the SuperLink ended with code {program.ended}; see {server.log}", file=sys.stderr)
                return FAILED
            time.sleep(POLL_S)
    return OK


def _server(args: argparse.Namespace) -> Server:
    from simulations.deploying.certificates import CertificateError, Folder, require_secret
    from simulations.deploying.flower import Address, Server
    from simulations.deploying.submitting import home_of
    from strategies.schema import ConfigError

    if (args.certs is None) == (not args.insecure):
        found = "both" if args.insecure else "neither"
        raise ConfigError([f"serve: give one of --certs DIR (made by confide certs) and --insecure, found {found}"])
    if not 0 < args.control_port < 65536:
        raise ConfigError([f"--control-port: must be between 1 and 65535, got {args.control_port}"])
    folder = None if args.certs is None else Folder(args.certs)
    if folder is not None:
        require_secret(folder.server_key)
        require_secret(folder.signing_key)
        for path in (folder.authority, folder.server):
            if not path.exists():
                raise CertificateError(f"{path}: is missing; make it with: confide certs --out {args.certs}")
    return Server(args.name, home_of(args.name), Address.of(args.address), args.control_port, folder)
