"""`confide join`: connects a silo's daemon to a federation, and says why where that fails."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from simulations.commands import FAILED, OK
from simulations.commands.interrupt import Interrupt

NAME = "join"
HELP = "connect this machine's silo to a federation's server"
JOIN_S = 120.0
POLL_S = 0.2


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--server", metavar="HOST:PORT", required=True, help="the address that confide serve shows")
    parser.add_argument("--socket", metavar="PATH", required=True, help="of the silo's daemon (confide silo --socket)")
    parser.add_argument("--ca", metavar="PEM", type=Path, help="the server's authority: ca.pem")
    parser.add_argument("--key", metavar="FILE", type=Path, help="this node's key, of confide certs")
    parser.add_argument("--insecure", action="store_true", help="without TLS and key; only to a server on loopback")
    parser.add_argument("--home", metavar="DIR", type=Path, help="of the node's files; default: beside the socket")


def execute(args: argparse.Namespace) -> int:
    """Joins, and stays until a signal."""
    from simulations.deploying.flower import Address, Node
    from simulations.deploying.probing import Refused, local, probe
    from simulations.deploying.processes import free_ports

    server = Address.of(args.server)
    _require(args, server.loopback)
    local(args.socket)
    probe(server, args.ca)
    home = args.home if args.home is not None else Path(f"{args.socket}.node")
    node = Node(home, server, free_ports(1)[0], str(Path(args.socket).absolute()), args.ca, args.key)
    with Interrupt() as interrupt, node.start() as program:
        deadline = time.monotonic() + JOIN_S
        while not node.joined() and program.ended is None and not interrupt.asked():
            if not time.monotonic() < deadline:
                raise Refused(f"{server}: did not take this node within {JOIN_S:g} s; see {node.log}")
            time.sleep(POLL_S)
        if program.ended is not None:
            raise Refused(_why(args, program.printed(), str(node.log)))
        if not interrupt.asked():
            print(f"confide: joined {server}; its log: {node.log}", file=sys.stderr, flush=True)
        while not interrupt.asked():
            if program.ended is not None:
                print(f"confide: the node ended with code {program.ended}; see {node.log}", file=sys.stderr)
                return FAILED
            time.sleep(POLL_S)
    return OK


def _require(args: argparse.Namespace, loopback: bool) -> None:
    from simulations.deploying.certificates import CertificateError, require_node_key
    from strategies.schema import ConfigError

    if args.insecure:
        if args.ca is not None or args.key is not None:
            raise ConfigError(["join: --insecure goes without --ca and --key; remove them, or --insecure"])
        if not loopback:
            raise ConfigError([f"--insecure: {args.server} is not on this machine; give --ca and --key"])
        return
    if args.ca is None or args.key is None:
        raise ConfigError(["join: give --ca and --key, which whoever runs the server made with: confide certs"])
    if not args.ca.exists():
        raise CertificateError(f"{args.ca}: is not there; ask whoever runs the server for ca.pem")
    require_node_key(args.key)


def _why(args: argparse.Namespace, printed: str, log: str) -> str:
    if "Failed to activate" in printed and args.key is not None:
        public = f"{args.key.stem}.pub"
        return f"{args.server}: does not know this node's key; have {public} put into its certs/nodes, and it restarted"
    return f"{args.server}: the node ended before it joined; see {log}"
