"""`confide silo --metrics`: the silo's own numbers, for its owner's Prometheus."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands.metrics import certificates
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from client.policy import Policy

OPTIONS = {
    "--metrics-cert": "certificate of --metrics",
    "--metrics-key": "its private key",
    "--metrics-ca": "whose clients may scrape",
}


def metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares --metrics and what it needs beyond loopback."""
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve this silo's own metrics, such as 127.0.0.1:9465; default: none"
    )
    for name, about in OPTIONS.items():
        parser.add_argument(name, metavar="PEM", type=Path, help=f"{about}; all three or none")


def place(args: argparse.Namespace) -> tuple[str, int] | None:
    """The address that --metrics names, or None.

    Raises:
        ConfigError: it names none, or certificates are given for nothing.
    """
    if args.metrics is None:
        given = [name for name in OPTIONS if getattr(args, name[2:].replace("-", "_")) is not None]
        if given:
            raise ConfigError([f"{given[0]}: is for --metrics; give that too, or remove it"])
        return None
    host, colon, port = args.metrics.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError([f"--metrics: write HOST:PORT such as 127.0.0.1:9465, found {args.metrics[:60]!r}"])
    return host.strip("[]"), int(port)


@contextmanager
def endpoint(args: argparse.Namespace, folder: Path, policy: Policy) -> Iterator[Callable[[Policy], None]]:
    """Serves the silo's metrics, if they are asked for; where nothing can listen there, the silo goes on without.

    Yields what tells it of another policy.

    Raises:
        ConfigError: an address that others can reach without certificates on both sides.
    """
    where = place(args)
    if where is None:
        yield lambda policy: None
        return
    from simulations.metrics.serving import Unheard, serve
    from simulations.metrics.silo import SiloExporter

    pem = certificates({name: getattr(args, name[2:].replace("-", "_")) for name in OPTIONS})
    files, exporter = ", ".join(OPTIONS), SiloExporter(folder, policy)
    try:
        port, stop = serve(exporter, address=where[0], port=where[1], certificates=pem, option="--metrics", files=files)
    except Unheard as error:
        print(f"confide: --metrics: {error.problems[0]}; the silo goes on without it", file=sys.stderr, flush=True)
        yield lambda policy: None
        return
    scheme = "http" if pem is None else "https"
    print(f"confide: metrics: {scheme}://{args.metrics.rpartition(':')[0]}:{port}/metrics", file=sys.stderr, flush=True)
    try:
        yield exporter.govern
    finally:
        stop()
