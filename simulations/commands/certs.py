"""`confide certs`: a test authority, the server's certificate, and a key for each node."""

from __future__ import annotations

import argparse
from pathlib import Path

from simulations.commands import OK

NAME = "certs"
HELP = "make a certificate authority, a server certificate and node keys"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("certs"), help="their folder; default: certs")
    parser.add_argument(
        "--host", metavar="NAME", action="append", default=[], help="what silos call the server; may be repeated"
    )
    parser.add_argument("--node", metavar="NAME", action="append", default=[], help="a silo's node; may be repeated")
    parser.add_argument("--days", metavar="N", type=int, default=365, help="how long certificates hold; default: 365")
    parser.add_argument("--add", action="store_true", help="add nodes to a folder that is there")


def execute(args: argparse.Namespace) -> int:
    """Makes them, and says who gets what."""
    from simulations.deploying.certificates import Folder, add_node, make, public_hex
    from strategies.schema import ConfigError

    if not 0 < args.days <= 3650:
        raise ConfigError([f"--days: must be between 1 and 3650, got {args.days}"])
    folder = Folder(args.out)
    if args.add:
        if not folder.authority.exists():
            raise ConfigError([f"--add: {args.out} holds no authority; leave --add out to make one"])
        for node in args.node:
            add_node(folder, node)
    else:
        make(folder, hosts=args.host, nodes=args.node, days=args.days)
    print(f"authority    {folder.authority}  (to every silo; {folder.authority_key.name} stays here, secret)")
    print(f"server       {folder.server}, {folder.server_key}, {folder.signing_key}")
    print(f"server_keys  {public_hex(folder.signing_key)}  (into each policy)")
    for node in args.node:
        print(f"node {node:<8}{folder.node_key(node)}  (to that silo alone, then remove it here; {node}.pub stays)")
    return OK
