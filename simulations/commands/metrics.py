"""`confide metrics serve`: runs as Prometheus sees them."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.commands import OK
from strategies.schema import ConfigError

if TYPE_CHECKING:
    from simulations.metrics.serving import Certificates

NAME = "metrics"
ENDS = (signal.SIGINT, signal.SIGTERM)
HELP = "an endpoint that Prometheus scrapes: all runs in a folder, live and finished"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares serve and its options."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    serve = verbs.add_parser("serve", help=HELP, description=HELP[0].upper() + HELP[1:], allow_abbrev=False)
    serve.add_argument("--store", type=Path, default=Path("runs"), help="a folder of run folders; default: runs")
    serve.add_argument("--addr", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    serve.add_argument("--port", type=int, default=9464, help="default: 9464; 0 takes a free one")
    serve.add_argument("--max-runs", type=int, default=100, help="the newest so many runs; default: 100")
    for name, about in (
        ("--tls-cert", "the endpoint's certificate"),
        ("--tls-key", "its private key"),
        ("--client-ca", "whose clients may scrape"),
    ):
        serve.add_argument(name, type=Path, metavar="PEM", help=f"{about}; all three or none")


def execute(args: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    from simulations.metrics.exporter import Exporter, found
    from simulations.metrics.serving import serve

    _require(args)
    exporter = Exporter(args.store, max_runs=args.max_runs)
    given = {"--tls-cert": args.tls_cert, "--tls-key": args.tls_key, "--client-ca": args.client_ca}
    with _held():
        port, stop = serve(exporter, address=args.addr, port=args.port, certificates=certificates(given))
        scheme = "http" if args.tls_cert is None else "https"
        exporter.read()  # Not left to the first scrape, which would wait too long for it.
        print(
            f"{len(found(args.store))} runs in {args.store}; scrape {scheme}://{args.addr}:{port}/metrics", flush=True
        )
        signal.sigwait(ENDS)
        stop()
    return OK


@contextmanager
def _held() -> Iterator[None]:
    """Keeps signals, here and in threads that are started here, until they are waited for.

    With a handler one that comes just before the wait is lost: Python runs handlers between two steps of the main
    thread, which by then waits for what the handler would have done.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _require(args: argparse.Namespace) -> None:
    if not args.store.is_dir():
        raise ConfigError([f"--store: {args.store} is no folder; give one that holds runs, such as runs"])
    if not 0 <= args.port <= 65535:
        raise ConfigError([f"--port: must be 0 to 65535, found {args.port}"])
    if args.max_runs < 1:
        raise ConfigError([f"--max-runs: must be 1 or more, found {args.max_runs}"])


def certificates(given: Mapping[str, Path | None]) -> Certificates | None:
    """The files of three options: certificate, its private key, the clients' authority; None where none is given.

    Raises:
        ConfigError: only some are given, or a file is not there.
        DataError: others can read the key.
    """
    from client.sockets import require_private
    from simulations.metrics.serving import Certificates

    missing = [name for name, path in given.items() if path is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigError([f"{missing[0]}: missing; TLS needs {', '.join(given)}"])
    found = {name: path for name, path in given.items() if path is not None}
    absent = [f"{name}: {path}: no such file" for name, path in found.items() if not path.is_file()]
    if absent:
        raise ConfigError(absent)
    certificate, key, clients = found.values()
    require_private(key)
    return Certificates(certificate, key, clients)
