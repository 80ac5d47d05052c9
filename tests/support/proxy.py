"""A TCP proxy that misbehaves when told to: how the tests cut, stop and restore a link to a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import urllib.parse
from collections.abc import Callable
from typing import Self

_LINGER_NONE = struct.pack("ii", 1, 0)  # closing sends RST and throws away what was not sent


class Proxy:
    """Listens on a port of its own and passes everything to ``host:port``.

    ::

        async with Proxy("127.0.0.1", 5672) as proxy:
            bus = RabbitBus(proxy.url_for(broker_url))
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_refusing = False
        self._latency_s, self._bytes_per_s = 0.0, 0.0
        self.connections = 0  # how many were made so far
        self.on_sent: Callable[[bytes], None] | None = None  # is shown what clients sent to the server, as it passes
        self.is_holding = asyncio.Event()  # set when a black hole has swallowed something
        self.port = 0

    @classmethod
    def for_url(cls, url: str, default_port: int = 5672) -> Proxy:
        """A proxy for the server of ``url``."""
        parts = urllib.parse.urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or default_port)

    def url_for(self, url: str) -> str:
        """``url`` with the proxy's address in place of the server's."""
        parts = urllib.parse.urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urllib.parse.urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Resets every connection. New ones are served."""
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            writer.transport.abort()
        self._writers.clear()

    def refuse(self) -> None:
        """Resets every connection, and new ones too, until `heal`."""
        self._is_refusing = True
        self.cut()

    def blackhole(self) -> None:
        """Passes nothing on, in both directions, and tells nobody. What was sent meanwhile arrives after `heal`."""
        self._flowing.clear()

    def slow(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """What passes is late by ``latency_s`` in each direction, and at most ``bytes_per_s`` a second of it (0: all)."""
        self._latency_s, self._bytes_per_s = latency_s, bytes_per_s

    def heal(self) -> None:
        """Back to normal."""
        self._is_refusing = False
        self._latency_s = self._bytes_per_s = 0.0
        self.is_holding.clear()
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        try:
            if self._is_refusing:
                self.cut()
                return
            with contextlib.suppress(OSError):
                await self._pass_both_ways(reader, writer)
        except asyncio.CancelledError:
            pass  # by __aexit__; asyncio's own callback would report it as an error
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass_both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        self._writers.add(server_writer)
        there = asyncio.create_task(self._pass(reader, server_writer, is_sent=True))
        back = asyncio.create_task(self._pass(server_reader, writer))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            self._writers.discard(server_writer)
            server_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_sent: bool = False) -> None:
        while True:
            await self._flowing.wait()
            data = await reader.read(65536)
            if not data:
                await writer.drain()
                return
            if not self._flowing.is_set():
                self.is_holding.set()
                await self._flowing.wait()
            if delay_s := self._latency_s + (len(data) / self._bytes_per_s if self._bytes_per_s else 0.0):
                await asyncio.sleep(delay_s)
            if is_sent and self.on_sent is not None:
                self.on_sent(data)
            writer.write(data)
            await writer.drain()
