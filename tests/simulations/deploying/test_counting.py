"""Bytes are counted, and none is changed."""

from __future__ import annotations

import socket
import threading

import pytest

from simulations.deploying.counting import Meter
from simulations.deploying.flower import Address


@pytest.mark.parametrize("size", [0, 1, 65537, 1_000_000])
def test_every_byte_of_both_directions(size: int) -> None:
    """An echo that answers twice what it is sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    sent = bytes(number % 251 for number in range(size))

    def echo() -> None:
        connection, _ = listener.accept()
        with connection:
            found = b""
            while block := connection.recv(65536):
                found += block
            connection.sendall(found + found)

    thread = threading.Thread(target=echo)
    thread.start()
    with Meter(Address("127.0.0.1", listener.getsockname()[1])) as meter:
        with socket.create_connection((meter.address.host, meter.address.port)) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while block := connection.recv(65536):
                found += block
        thread.join()
    listener.close()
    assert found == sent + sent
    assert (meter.up, meter.down) == (size, 2 * size)


def test_a_server_that_is_not_there_is_an_end_and_no_error() -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    with (
        Meter(Address("127.0.0.1", port)) as meter,
        socket.create_connection((meter.address.host, meter.address.port)) as connection,
    ):
        assert connection.recv(1) == b""
    assert (meter.up, meter.down) == (0, 0)


def test_open_connections_do_not_hold_it() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with (
        Meter(Address("127.0.0.1", listener.getsockname()[1])) as meter,
        socket.create_connection((meter.address.host, meter.address.port)) as connection,
    ):
        connection.sendall(b"x")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1) == b"x"
    listener.close()
    assert meter.up == 1
