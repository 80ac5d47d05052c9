"""One connection to RabbitMQ, and the task that brings it back.

It is a plain connection under a supervision of our own: aio-pika's robust one replays declares that a role may not
make, makes a publish wait for a reconnect, and does not tell that a channel was replaced. The supervision is
level-triggered: whatever told that something is broken, all is looked at again, so no event is missed for good.
"""

from __future__ import annotations

import asyncio
import logging
import random
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aio_pika
from aiormq import Channel
from aiormq.abc import AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    AMQPChannelError,
    AMQPError,
    AuthenticationError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from watership.bus.rabbit.tap import Tap
from watership.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
STEADY_S = 5.0  # a link that lives shorter than that is flapping, and is not mended at once
CLOSE_TIMEOUT_S = 5.0

_TLS_OPTIONS = {"cafile", "capath", "cadata", "certfile", "keyfile"}

T = TypeVar("T")


async def bounded(work: Awaitable[T], timeout_s: float, what: str) -> T:
    """Awaits a call to the broker, within ``timeout_s``. Raises `BrokerUnavailable` if the link is to blame.

    The library ends the calls of a stuck link with a CancelledError that is nobody's cancellation. Let through, it
    would end the caller's task in silence, so it is told from a real one and becomes a lost link.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerUnavailable(f"{what}: the link to RabbitMQ was lost") from None
    except TimeoutError:
        raise BrokerUnavailable(f"{what}: RabbitMQ did not answer within {timeout_s:g} s") from None
    except AMQPChannelError:
        raise  # the broker answered, and said no: that is for the caller to explain
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable(f"{what}: {error or type(error).__name__}") from error


def words(error: AMQPChannelError) -> str:
    """What the broker said."""
    return str(error.args[-1]) if error.args and error.args[-1] else type(error).__name__


def is_channel_open(channel: Channel) -> bool:
    """Whether one may still write to ``channel``.

    The library takes a channel off the connection's list as soon as the broker's close arrives, but calls it closed a
    few turns of the loop later. What is written in between would cost the whole connection.
    """
    connection = channel.connection
    return connection.is_opened and not channel.is_closed and connection.channels.get(channel.number) is channel


class Address:
    """Where the broker is. Checked once, and never shown with its password."""

    def __init__(self, url: str, heartbeat_s: int) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError:  # its text may quote the password
            raise ConfigurationError("the broker's URL cannot be read: amqp://user:password@host:port/vhost") from None
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ConfigurationError("the broker's URL must look like amqp://user:password@host:port/vhost, or amqps")
        query = dict(urllib.parse.parse_qsl(parts.query))
        if parts.scheme == "amqp" and _TLS_OPTIONS & query.keys():
            raise ConfigurationError("the broker's URL sets TLS options, but amqp:// is plain text: write amqps://")
        if query.get("no_verify_ssl", "0") != "0":
            raise ConfigurationError("the broker's URL sets no_verify_ssl: give its authority by cafile instead")
        self.url = URL(url) if "heartbeat" in query else URL(url).update_query(heartbeat=heartbeat_s)
        self.where = f"{parts.hostname}:{port or (5671 if parts.scheme == 'amqps' else 5672)}"
        self._user = urllib.parse.unquote(parts.username or "guest")
        self._vhost = urllib.parse.unquote(parts.path[1:]) or "/"
        self._secrets = {parts.password or "", urllib.parse.unquote(parts.password or "")} - {""}

    def explain(self, error: BaseException, timeout_s: float) -> str:
        """A sentence for a connect that failed."""
        if isinstance(error, ProbableAuthenticationError):
            return f"RabbitMQ at {self.where} refuses user {self._user!r}: wrong user or password"
        if isinstance(error, AuthenticationError):
            return f"RabbitMQ at {self.where} does not offer the way to log in that the URL asks for"
        if isinstance(error, InvalidFrameError) and "Connection.OpenOk" in str(error):
            # The library drops the broker's own words here, so the two cannot be told apart.
            vhost = f"virtual host {self._vhost!r} is not there, or user {self._user!r} may not use it"
            return f"RabbitMQ at {self.where} was reached, but {vhost}"
        if isinstance(error, TimeoutError):
            return f"RabbitMQ at {self.where} did not answer within {timeout_s:g} s"
        reason = str(error.args[-1]) if error.args else "the connection broke off"
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return f"RabbitMQ at {self.where} cannot be reached: {reason}"


class _Wire(TransportFactory):
    """Opens the socket and keeps hold of it: the library has no way to drop a stuck link at once. It has the `Tap`."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self.tap: Tap | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self._writer = await factory.create(url, **kwargs)
        self.tap = Tap(reader.feed_data, asyncio.get_running_loop().time, self._writer.write)
        reader.feed_data = self.tap.data_received  # type: ignore[method-assign, assignment]
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class _Connection(aio_pika.Connection):
    def __init__(self, url: URL, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        self.wire = self.kwargs["transport_factory"] = _Wire()

    async def end(self) -> None:
        """Closes in good order if the broker answers in time, else drops the socket."""
        try:
            await bounded(self.close(), CLOSE_TIMEOUT_S, "closing")
        except (BrokerUnavailable, AMQPChannelError) as error:
            log.debug("the link to RabbitMQ was dropped: %s", error)
        finally:
            self.wire.abort()


class Link:
    """A connection that comes back. ``mend(connection, is_new)`` puts up what lives on it, as often as needed."""

    def __init__(
        self, address: Address, name: str, timeout_s: float, mend: Callable[[AbstractConnection, bool], Awaitable[None]]
    ) -> None:
        self._address, self._name, self._timeout_s, self._mend = address, name, timeout_s, mend
        self._connection: _Connection | None = None
        self._broken = asyncio.Event()
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    async def open(self) -> None:
        """Connects once. Raises `BrokerUnavailable` with the reason; it may be tried again."""
        self._is_closed = False
        self._up.clear()
        await self._mend_all()
        self._keeper = asyncio.create_task(self._keep(), name=f"{self._name} link")

    async def close(self) -> None:
        """Ends the supervision and the connection."""
        self._is_closed = True
        self._up.set()  # nobody is to wait for a link that will not come back
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._drop()

    def abort(self) -> None:
        """Breaks the connection, as a failing network would."""
        if self._connection is not None:
            self._connection.wire.abort()

    def is_broken(self) -> None:
        """Has everything looked at again: the connection, then what lives on it."""
        if not self._is_closed:
            self._up.clear()
            self._broken.set()

    async def ready(self) -> None:
        """Waits until all is mended."""
        await self._up.wait()

    @property
    def tap(self) -> Tap:
        """Where the frames of the connection are taken; it must be up."""
        assert self._connection is not None
        assert self._connection.wire.tap is not None
        return self._connection.wire.tap

    @property
    def connection(self) -> AbstractConnection | None:
        """The connection, if it is up."""
        if self._connection is None or self._connection.transport is None:
            return None
        connection = self._connection.transport.connection
        return connection if connection.is_opened else None

    def require(self) -> AbstractConnection:
        """The connection. Raises `BrokerUnavailable` if it is down."""
        if (connection := self.connection) is None:
            state = "closed" if self._is_closed else "down; it is being restored"
            raise BrokerUnavailable(f"the link to RabbitMQ at {self._address.where} is {state}")
        return connection

    async def _keep(self) -> None:
        """Mends what breaks, for ever: at once the first time, then after a delay that grows and varies."""
        now = asyncio.get_running_loop().time
        attempts, mended_at, is_mended = 0, float("-inf"), True
        while True:
            await self._broken.wait()
            if is_mended and now() - mended_at > STEADY_S:
                attempts = 0
            if attempts:
                ceiling = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**attempts)
                await asyncio.sleep(max(BACKOFF_MIN_S, random.uniform(0.5, 1.0) * ceiling))
            attempts = min(attempts + 1, 10)
            self._broken.clear()
            try:
                await self._mend_all()
            except Exception as error:  # whatever it is, this task must not die of it
                is_mended = False
                self._broken.set()
                expected = isinstance(error, (BrokerUnavailable, ConfigurationError))
                log.warning("the %s link to RabbitMQ is not up: %s", self._name, error, exc_info=not expected)
            else:
                is_mended, mended_at = True, now()

    async def _mend_all(self) -> None:
        connection = self.connection
        is_new = connection is None
        if connection is None:
            await self._drop()
            connection = await self._connect()
        await self._mend(connection, is_new)
        if not self._broken.is_set():
            self._up.set()
        if is_new:
            log.info("the %s link to RabbitMQ at %s is up", self._name, self._address.where)

    async def _connect(self) -> AbstractConnection:
        connection = _Connection(self._address.url, client_properties={"connection_name": self._name})
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()
        except BaseException as error:
            connection.wire.abort()
            await connection.end()  # an unclosed one would close itself when it is collected
            task = asyncio.current_task()
            if not isinstance(error, (Exception, asyncio.CancelledError)) or (task is not None and task.cancelling()):
                raise
            raise BrokerUnavailable(self._address.explain(error, self._timeout_s)) from None
        self._connection = connection
        opened = self.require()
        opened.closing.add_done_callback(lambda _: self._lost(connection))
        return opened

    def _lost(self, connection: _Connection) -> None:
        if connection is self._connection:
            log.warning("the %s link to RabbitMQ at %s was lost", self._name, self._address.where)
            self.is_broken()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.end()
