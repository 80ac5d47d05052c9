"""A bus for one process of a `World`: a connection to its `MemoryBroker` on which things go wrong.

The broker itself is right; what is lost, late, doubled or never confirmed is so on the way. A broken link gives back what
was delivered, and makes everything in flight UNCONFIRMED, delivered or not. It must never know what a message means.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Protocol

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Delivery, Fate, Message, Subscription
from watership.bus.topology import Exchange, Queue
from watership.errors import BrokerUnavailable
from watership.testing.each_part import EachPart
from watership.testing.mischief import Mischief

if TYPE_CHECKING:
    from watership.testing.world import Process

EXPIRES_AT_S = "x-expires-at-s"

OnDelivery = Callable[[Delivery], Awaitable[None] | None]


class BusWitness(Protocol):
    """Sees what passes."""

    def publishing(self, process: Process, messages: Sequence[Message]) -> None:
        """The process decided to send these, now."""

    def routed(self, process: Process, message: Message, fate: Fate) -> None:
        """The broker got this one."""

    def published(self, process: Process, messages: Sequence[Message], fates: Sequence[Fate]) -> None:
        """The process is told what became of them."""

    def handed_over(self, process: Process, delivery: Delivery) -> None:
        """The process got it."""

    def acked(self, process: Process, delivery: Delivery) -> None:
        """The broker forgets it."""

    def rejected(self, process: Process, delivery: Delivery, *, requeue: bool) -> None:
        """The broker has it back, or dead-letters it."""


class _Subscription:
    def __init__(self, inner: Subscription | None = None) -> None:
        self.inner = inner
        self.cancelled = False

    async def cancel(self) -> None:
        self.cancelled = True
        if self.inner is not None:
            await self.inner.cancel()


class FaultyBus:
    """One process's connection. See `watership.bus.protocol.Bus`."""

    def __init__(
        self, broker: MemoryBroker, process: Process, mischief: Callable[[], Mischief], witness: BusWitness
    ) -> None:
        self._inner = MemoryBus(broker)
        self._broker = broker
        self._process = process
        self._mischief = mischief
        self._witness = EachPart(witness)
        self._up = asyncio.Event()
        self._links = 0  # how many were lost: what is under way belongs to one of them
        self._opened = False
        self._closed = False

    # --- the link, as the world has it

    def lose_link(self) -> None:
        """It breaks: what was delivered goes back, what is in flight has no answer."""
        if self._opened and not self._closed and self._up.is_set():
            self._up.clear()
            self._links += 1
            self._inner.lose_link()

    def regain_link(self) -> None:
        """It is back, with a new publishing channel."""
        if self._opened and not self._closed and not self._up.is_set():
            self._up.set()
            self._inner.regain_link()

    # --- the protocol

    @property
    def generation(self) -> int:
        """See `Bus.generation`."""
        return self._inner.generation

    async def open(self) -> None:
        """See `Bus.open`."""
        await self._process.point("open")
        await self._inner.open()
        self._opened = True
        self._up.set()

    async def ready(self) -> None:
        """See `Bus.ready`."""
        if not self._closed:
            await self._up.wait()

    async def close(self) -> None:
        """See `Bus.close`."""
        await self._process.point("close")
        self._closed = True
        self._links += 1
        await self._inner.close()

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """See `Bus.declare`."""
        await self._link("declare")
        await self._inner.declare(exchanges, queues)

    async def missing(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> list[str]:
        """See `Bus.missing`."""
        await self._link("missing")
        return await self._inner.missing(exchanges, queues)

    async def declare_reply_queue(self, name: str) -> None:
        """See `Bus.declare_reply_queue`."""
        await self._link("declare reply queue")
        await self._inner.declare_reply_queue(name)

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        """See `Bus.publish`."""
        self._witness.publishing(self._process, messages)
        links = self._links
        fates: list[Fate] = []
        for message in messages:  # one after the other: a crash may come between two of them
            await self._process.point("publish")
            fates.append(self._send(message) if self._is_linked(links) else Fate.UNCONFIRMED)
        await self._process.point("published")
        if not self._is_linked(links):
            fates = [Fate.UNCONFIRMED] * len(messages)
        self._witness.published(self._process, messages, fates)
        return fates

    async def consume(self, queue: str, *, prefetch: int, on_delivery: OnDelivery) -> Subscription:
        """See `Bus.consume`."""
        await self._link("consume")
        subscription = _Subscription()
        context = contextvars.copy_context()

        def arrive(delivery: Delivery) -> None:
            self._arrive(subscription, on_delivery, delivery, context)

        subscription.inner = await self._inner.consume(queue, prefetch=prefetch, on_delivery=arrive)
        return subscription

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Bus.ack`."""
        for delivery in deliveries:
            await self._process.point("ack")
            if self._is_open(delivery):
                self._witness.acked(self._process, delivery)
                await self._inner.ack([delivery])
        await self._process.point("acked")

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """See `Bus.reject`."""
        await self._process.point("reject")
        if self._is_open(delivery):
            self._witness.rejected(self._process, delivery, requeue=requeue)
            if requeue:
                await self._inner.reject(delivery, requeue=True)
            else:
                self._dead_letter(delivery, "rejected")
        await self._process.point("rejected")

    # --- how

    async def _link(self, what: str) -> None:
        await self._process.point(what)
        if not self._is_linked(self._links):
            raise BrokerUnavailable("the link to the broker is down")

    def _is_linked(self, links: int) -> bool:
        return self._up.is_set() and not self._closed and self._links == links

    def _is_open(self, delivery: Delivery) -> bool:
        consumer, sequence = delivery.handle
        return sequence in consumer.unacked

    def _send(self, message: Message) -> Fate:
        sending = self._mischief().sending(self._process.name, message)
        loop = asyncio.get_running_loop()
        if sending.refused:
            return Fate.REFUSED
        if message.expiration_ms is not None:
            expires_at_s = loop.time() + message.expiration_ms / 1000
            message = dataclasses.replace(message, headers={**message.headers, EXPIRES_AT_S: expires_at_s})
        if sending.late_s:
            loop.call_later(sending.late_s, self._route, message, context=contextvars.Context())
            return Fate.UNCONFIRMED
        fates = [self._route(message) for _ in range(sending.copies)]
        return fates[0] if fates and sending.confirmed else Fate.UNCONFIRMED

    def _route(self, message: Message) -> Fate:
        fate = self._broker.route(message)
        self._witness.routed(self._process, message, fate)
        return fate

    def _arrive(
        self, subscription: _Subscription, on_delivery: OnDelivery, delivery: Delivery, context: contextvars.Context
    ) -> None:
        """The broker sends it: it is under way on this link, or expired in its queue."""
        loop = asyncio.get_running_loop()
        expires_at_s = delivery.headers.get(EXPIRES_AT_S)
        if expires_at_s is not None and loop.time() > expires_at_s:
            loop.call_soon(self._expire, delivery, context=contextvars.Context())
            return
        transit_s = self._mischief().transit_s(self._process.name, delivery)
        loop.call_later(
            transit_s, self._hand_over, subscription, on_delivery, delivery, self._links, context=context.copy()
        )

    def _expire(self, delivery: Delivery) -> None:
        """It waited for too long: nobody gets it."""
        if self._is_open(delivery):
            self._witness.rejected(self._process, delivery, requeue=False)
            self._dead_letter(delivery, "expired")

    def _dead_letter(self, delivery: Delivery, reason: str) -> None:
        """As RabbitMQ does it: a dead letter expires no more."""
        consumer, sequence = delivery.handle
        message = consumer.unacked.pop(sequence).message
        headers = {name: value for name, value in message.headers.items() if name != EXPIRES_AT_S}
        self._broker.dead_letter(consumer.queue, dataclasses.replace(message, headers=headers), reason)
        consumer.queue.pump()

    def _hand_over(self, subscription: _Subscription, on_delivery: OnDelivery, delivery: Delivery, links: int) -> None:
        if subscription.cancelled or links != self._links:
            return  # it comes again, to whoever consumes then
        self._witness.handed_over(self._process, delivery)
        result = on_delivery(delivery)
        if isinstance(result, Coroutine):
            asyncio.get_running_loop().create_task(result)
