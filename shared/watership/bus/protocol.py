"""The bus as the services see it: publish with a fate for each message, consume, acknowledge.

It must never know what a saga is. RabbitMQ and the memory bus keep the same contract (`tests/contract`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from watership.bus.topology import Exchange, Queue
from watership.values import value


class Fate(StrEnum):
    """What became of a published message."""

    CONFIRMED = "confirmed"  # the broker has it, on disk where its queue is durable
    RETURNED = "returned"  # no queue took it: certainly not delivered
    REFUSED = "refused"  # the broker said no (a full queue), or it cannot be put on the wire: not delivered there
    UNCONFIRMED = "unconfirmed"  # the link broke or timed out: it may have been delivered


@value
class Message:
    """What is published. ``exchange`` "" is the broker's default one, which routes by queue name.

    ``message_id`` must not be empty: it is how a returned message is known again. An exchange that is not there
    costs the whole channel: everything in flight is UNCONFIRMED.
    """

    exchange: str
    routing_key: str
    body: bytes
    type: str
    message_id: str
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration_ms: int | None = None
    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mandatory: bool = True  # False: a message that no queue takes is dropped, and counts as CONFIRMED


@value
class Delivery:
    """What arrived. ``redelivered``: an earlier consumer had it and did not acknowledge."""

    queue: str
    body: bytes
    type: str | None
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None
    redelivered: bool
    headers: Mapping[str, Any]
    handle: Any  # the bus's own: which channel and tag
    expiration_ms: int | None = None


class Subscription(Protocol):
    """One consumer of one queue. It outlives reconnects: the bus consumes again by itself."""

    async def cancel(self) -> None:
        """No new delivery after this; those in flight can still be acknowledged."""


class Bus(Protocol):
    """A broker connection: publishing and consuming on links of their own."""

    async def open(self) -> None:
        """Connects. Raises `BrokerUnavailable` with the reason (refused, unreachable, wrong password).

        Everything else on a bus that was never opened raises RuntimeError: that is a bug of the caller.
        """

    async def ready(self) -> None:
        """Waits until both links are up: how a caller paces itself after an UNCONFIRMED. Put a time-out around it.

        Returns at once on a closed bus, so that a loop around it can see that it is to end.
        """

    async def close(self) -> None:
        """Closes both links. What was delivered and not acknowledged is delivered again to others."""

    @property
    def generation(self) -> int:
        """Counts the publishing channels so far: a batch that began under an older one must not be published."""

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Declares them all with their bindings; harmless if they are there alike.

        Remembered, and declared again after a reconnect. Raises `ConfigurationError` for one that is there but
        differs, or that this user may not declare; `BrokerUnavailable` without a link.
        """

    async def missing(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> list[str]:
        """What the broker does not have, a sentence each; empty when all is there. Changes nothing.

        It sees names only: AMQP tells neither arguments nor bindings. `declare` complains about arguments.
        """

    async def declare_reply_queue(self, name: str) -> None:
        """An exclusive queue of this connection, gone with it; declared again after a reconnect."""

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        """Sends all at once, waits for every confirm within the publish time-out; a fate for each, in order.

        Never raises for a message's fate, never waits for a reconnect: without a link all are UNCONFIRMED.
        """

    async def consume(
        self, queue: str, *, prefetch: int, on_delivery: Callable[[Delivery], Awaitable[None] | None]
    ) -> Subscription:
        """Hands over each delivery, in order; ``on_delivery`` must return at once (it only hands over).

        What it returns, if anything, is awaited in a task of the bus, which `close` cancels. Raises
        `ConfigurationError` if the queue is not there or is not ours to consume, `BrokerUnavailable` without a link.
        """

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledges. One that is settled already, or whose channel is gone (it comes again), is passed over."""

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Gives back (``requeue``) or dead-letters. One whose channel is gone is passed over."""
