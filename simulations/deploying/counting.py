"""Counts bytes at the socket: a way through to another port that looks at nothing it carries."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from simulations.deploying.flower import Address

BLOCK = 65536


class Meter:
    """Forwards connections to a server, and counts all bytes of both directions, TLS and HTTP/2 included.

    Args:
        server: where connections go.
    """

    def __init__(self, server: Address) -> None:
        self.server = server
        self.up = self.down = 0
        """Bytes to the server, and from it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="meter")
        self._ready = threading.Event()
        self._port = 0

    @property
    def address(self) -> Address:
        """Where to connect instead."""
        return Address("127.0.0.1", self._port)

    def __enter__(self) -> Meter:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        listener.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            there, to_there = await asyncio.open_connection(self.server.host, self.server.port)
            try:
                await asyncio.gather(self._pump(reader, to_there, up=True), self._pump(there, writer, up=False))
            finally:
                to_there.close()
        except (OSError, asyncio.CancelledError):
            pass  # Either side hung up, or the count is over.
        finally:
            writer.close()
            self._open.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        while data := await reader.read(BLOCK):
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
