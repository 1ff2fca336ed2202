"""The Flower app of a silo's node: a relay to the silo's daemon, which alone can reach the data.

Flower starts a process for every message. This one loads no torch, holds no state and reads no rows: it hands the bytes
on, and the answer back. In Flower's own simulation there is no daemon, and a simulated silo answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.errors import DataError
from client.relay import exchange
from client.sockets import Place, Tls
from strategies.envelope import encode, refusal

NAME, STYPE, PLACE = "envelope", "confide.envelope", "place"  # As `server.flower` writes them.

app = ClientApp()


@app.query("confide")
def relay(message: Message, context: Context) -> Message:
    """Answers one letter of a confide server."""
    config = {name: str(value) for name, value in context.node_config.items()}
    return Message(_letter(_answered(message.content, config)), reply_to=message)


def place_of(config: dict[str, str]) -> Place:
    """Where the daemon listens: `socket` (a path, else $CONFIDE_SOCKET), or `address` with `ca`, `cert` and `key`.

    Raises:
        DataError: neither is given.
    """
    if address := config.get("address", ""):
        if missing := [name for name in ("ca", "cert", "key") if name not in config]:
            raise DataError(f"node-config: address needs {missing[0]}, too")
        tls = Tls(*(Path(config[name]) for name in ("ca", "cert", "key")))
        return Place(address=address, tls=tls)
    path = config.get("socket") or os.environ.get("CONFIDE_SOCKET", "")
    if not path:
        raise DataError("node-config: no socket; start the node with --node-config 'socket=\"PATH\"'")
    return Place(path=path)


def simulated(config: dict[str, str]) -> bool:
    """Whether this is a node of Flower's own simulation: those live in Ray's actors, and real ones never do.

    A real node with a partition-id and no socket, as Flower's examples have them, must not answer with made-up silos.
    """
    ray = sys.modules.get("ray")
    apart = "socket" in config or "address" in config
    return ray is not None and bool(ray.is_initialized()) and "partition-id" in config and not apart


def _answered(content: RecordDict, config: dict[str, str]) -> bytes:
    record = content.array_records.get(NAME)
    array = record.get(NAME) if record is not None else None
    if array is None or array.stype != STYPE or not isinstance(array.data, bytes):
        return encode(refusal("malformed", "the message holds no envelope; run one version of confide"))
    try:
        if simulated(config):
            return _simulated(array.data, content, config)
        return exchange(array.data, place_of(config))
    except DataError as error:
        return encode(refusal("silo_unreachable", error))


def _simulated(data: bytes, content: RecordDict, config: dict[str, str]) -> bytes:
    """The other entry point of the app: what is simulated belongs to the room above this one."""
    from simulations.deploying.virtual import answer

    place = content.config_records.get(PLACE)
    if place is None:
        raise DataError("the server tells simulated silos no folder; run one version of confide")
    number, silos = int(config["partition-id"]), int(config["num-partitions"])
    return answer(data, number=number, silos=silos, folder=Path(str(place["folder"])))


def _letter(data: bytes) -> RecordDict:
    return RecordDict({NAME: ArrayRecord({NAME: Array("uint8", (len(data),), STYPE, data)})})
