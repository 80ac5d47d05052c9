"""Declaring exchanges and queues, remembering them for the next connection, and looking at what the broker has."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from aiormq import Channel
from aiormq.abc import AbstractConnection, ArgumentsType
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity

from watership.bus.rabbit.link import CLOSE_TIMEOUT_S, bounded, words
from watership.bus.topology import Exchange, Queue
from watership.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Declarations:
    """What this bus declared. Each call has a channel of its own, because a refusal closes it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, Queue] = {}
        self._reply_queues: dict[str, None] = {}

    def has(self, queue: str) -> bool:
        """Whether this bus declared it."""
        return queue in self._queues or queue in self._reply_queues

    async def declare(
        self, connection: AbstractConnection, exchanges: Sequence[Exchange], queues: Sequence[Queue]
    ) -> None:
        """Declares and remembers. Raises `ConfigurationError` at the first that the broker refuses."""
        async with self._channel(connection) as channel:
            for exchange in exchanges:
                declare = channel.exchange_declare(exchange.name, exchange_type=exchange.kind.value, durable=True)
                await self._ask(declare, f"declaring exchange {exchange.name}")
                self._exchanges[exchange.name] = exchange
            for queue in queues:
                await self._declare_queue(channel, queue)
                self._queues[queue.name] = queue

    async def _declare_queue(self, channel: Channel, queue: Queue) -> None:
        arguments: ArgumentsType = {"x-queue-type": "quorum"}
        if queue.dead_letter_exchange is not None:
            arguments["x-dead-letter-exchange"] = queue.dead_letter_exchange
        declare = channel.queue_declare(queue.name, durable=True, arguments=arguments)
        await self._ask(declare, f"declaring queue {queue.name}")
        bind = channel.queue_bind(queue.name, queue.exchange, queue.routing_key)
        await self._ask(bind, f"binding queue {queue.name} to exchange {queue.exchange}")

    async def declare_reply_queue(self, connection: AbstractConnection, name: str) -> None:
        """A classic queue that is the connection's own: the broker drops it with the connection."""
        async with self._channel(connection) as channel:
            await self._ask(channel.queue_declare(name, exclusive=True), f"declaring reply queue {name}")
        self._reply_queues[name] = None

    async def declare_again(self, connection: AbstractConnection) -> None:
        """A broker that came back may have come back empty. What it refuses now is logged, and stops nothing."""
        for exchange in list(self._exchanges.values()):
            await self._attempt(self.declare(connection, [exchange], []))
        for queue in list(self._queues.values()):
            await self._attempt(self.declare(connection, [], [queue]))
        for name in list(self._reply_queues):
            await self._attempt(self.declare_reply_queue(connection, name))

    async def missing(
        self, connection: AbstractConnection, exchanges: Sequence[Exchange], queues: Sequence[Queue]
    ) -> list[str]:
        """A sentence for each that is not there. It only looks (passive declares)."""
        sentences = [await self._absence(connection, "exchange", exchange.name) for exchange in exchanges]
        sentences += [await self._absence(connection, "queue", queue.name) for queue in queues]
        return [sentence for sentence in sentences if sentence]

    async def is_starved(self, connection: AbstractConnection, queue: str) -> bool:
        """Whether messages wait in ``queue`` and nobody consumes it."""
        async with self._channel(connection) as channel:
            answer = await self._ask(channel.queue_declare(queue, passive=True), f"looking at queue {queue}")
            return bool(answer.message_count) and not answer.consumer_count

    async def _absence(self, connection: AbstractConnection, kind: str, name: str) -> str | None:
        async with self._channel(connection) as channel:
            declare = channel.exchange_declare if kind == "exchange" else channel.queue_declare
            try:
                await bounded(declare(name, passive=True), self._timeout_s, f"looking for {kind} {name}")
            except ChannelNotFoundEntity:
                return f"{kind} {name} is not there"
            except AMQPChannelError as error:
                return f"{kind} {name} cannot be looked at: {words(error)}"
        return None

    async def _attempt(self, declare: Awaitable[None]) -> None:
        try:
            await declare
        except ConfigurationError as error:
            log.warning("after a reconnect: %s", error)

    async def _ask(self, call: Awaitable[T], what: str) -> T:
        try:
            return await bounded(call, self._timeout_s, what)
        except AMQPChannelError as error:
            raise ConfigurationError(f"{what}: {words(error)}") from None

    @contextlib.asynccontextmanager
    async def _channel(self, connection: AbstractConnection) -> AsyncIterator[Channel]:
        channel = await bounded(connection.channel(publisher_confirms=False), self._timeout_s, "opening a channel")
        assert isinstance(channel, Channel)
        try:
            yield channel
        finally:
            with contextlib.suppress(BrokerUnavailable, AMQPChannelError):
                await bounded(channel.close(), CLOSE_TIMEOUT_S, "closing a channel")
