"""`RabbitBus`: two links, one publishing channel that is replaced when it dies, a channel for each consumer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from aiormq import Channel
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity

from watership.bus.protocol import Delivery, Fate, Message
from watership.bus.rabbit.declarations import Declarations
from watership.bus.rabbit.intake import Intake
from watership.bus.rabbit.link import Address, Link, bounded, words
from watership.bus.rabbit.publisher import Publisher
from watership.bus.topology import Exchange, Queue
from watership.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)

REPLACE_EVERY_S = 10.0  # a publishing channel that the broker refuses

OnDelivery = Callable[[Delivery], Awaitable[None] | None]


class _Subscription:
    def __init__(self, bus: RabbitBus, queue: str, prefetch: int, on_delivery: OnDelivery) -> None:
        self._bus, self.queue, self.prefetch, self._on_delivery = bus, queue, prefetch, on_delivery
        self.intake: Intake | None = None
        self.is_ended = False

    async def cancel(self) -> None:
        await self._bus.end_subscription(self)

    def receive(self, delivery: Delivery) -> None:
        try:
            result = self._on_delivery(delivery)
        except Exception:
            log.exception("a consumer of %s failed; its message stays unacknowledged", self.queue)
            return
        if result is not None:
            self._bus.own(self._finish(result))

    async def _finish(self, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception:
            log.exception("a consumer of %s failed; its message stays unacknowledged", self.queue)


class RabbitBus:
    """The bus on RabbitMQ. Publishing and consuming have a connection each: an alarm stops a publishing one whole.

    ``url`` is ``amqp://`` or ``amqps://``, with ``cafile``, ``certfile`` and ``keyfile`` in its query. ``restarts``
    counts the consumers that had stopped in silence and were started again.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 10,
        publish_timeout_s: float = 10,
        heartbeat_s: int = 10,
        watch_interval_s: float = 15,
        name: str = "watership",
    ) -> None:
        address = Address(url, heartbeat_s)
        self._timeout_s, self._publish_timeout_s = connect_timeout_s, publish_timeout_s
        self._watch_interval_s = watch_interval_s
        self._publishing = Link(address, f"{name} publish", connect_timeout_s, self._mend_publisher)
        self._consuming = Link(address, f"{name} consume", connect_timeout_s, self._mend_consumers)
        self._publisher: Publisher | None = None
        self._replaced_s = float("-inf")
        self._generation = 0
        self._declarations = Declarations(connect_timeout_s)
        self._subscriptions: list[_Subscription] = []
        self._drained: set[Intake] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = self._is_closed = False
        self.restarts = 0

    @property
    def generation(self) -> int:
        return self._generation

    async def open(self) -> None:
        try:
            await self._publishing.open()
            await self._consuming.open()
        except BaseException:
            await self._publishing.close()
            await self._consuming.close()
            raise
        self._is_open = True
        self.own(self._watch())

    async def ready(self) -> None:
        self._require_open()
        await self._publishing.ready()
        await self._consuming.ready()

    async def close(self) -> None:
        if not self._is_open or self._is_closed:
            return
        self._is_closed = True
        intakes = [subscription.intake for subscription in self._subscriptions if subscription.intake is not None]
        self._subscriptions = []
        await asyncio.gather(*(intake.close() for intake in {*intakes, *self._drained}))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        self._require_open()
        await self._declarations.declare(self._consuming.require(), exchanges, queues)

    async def declare_reply_queue(self, name: str) -> None:
        self._require_open()
        await self._declarations.declare_reply_queue(self._consuming.require(), name)

    async def missing(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> list[str]:
        self._require_open()
        return await self._declarations.missing(self._consuming.require(), exchanges, queues)

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        self._require_open()
        publisher = self._publisher  # the one of this moment: its successor must not send what was meant for it
        if self._is_closed or publisher is None or not publisher.is_open:
            await asyncio.sleep(0)  # a caller that tries again and again must not keep the link from coming back
            return [Fate.UNCONFIRMED] * len(messages)
        fates = await publisher.publish(messages)
        if Fate.REFUSED in fates:
            await self._replace(publisher)
        return fates

    async def _replace(self, refused: Publisher) -> None:
        """Once refused, a channel may stay so: RabbitMQ up to 3.13 does not tell it when the limit of a full queue is
        lifted. A new channel asks afresh; what is in flight on the old one is waited for.
        """
        now_s = asyncio.get_running_loop().time()
        if refused is not self._publisher or now_s - self._replaced_s < REPLACE_EVERY_S:
            return
        self._replaced_s = now_s
        try:
            await self._open_publisher(self._publishing.require())
        except (BrokerUnavailable, AMQPChannelError) as error:
            log.debug("a channel that was refused could not be replaced: %s", error)
        else:
            self.own(refused.retire())

    async def consume(self, queue: str, *, prefetch: int, on_delivery: OnDelivery) -> _Subscription:
        self._require_open()
        subscription = _Subscription(self, queue, prefetch, on_delivery)
        await self._start(subscription, self._consuming.require())
        self._subscriptions.append(subscription)
        if subscription.intake is None or not subscription.intake.is_live:
            self._consuming.is_broken()  # it broke while it was not yet on the list
        return subscription

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._require_open()
        tags: dict[Intake, list[int]] = {}
        for delivery in deliveries:
            intake, tag = delivery.handle
            tags.setdefault(intake, []).append(tag)
        for intake, its_tags in tags.items():
            await self._settle(intake.ack(its_tags))

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        self._require_open()
        intake, tag = delivery.handle
        await self._settle(intake.reject(tag, requeue=requeue))

    async def watch_once(self) -> None:
        """Looks for consumers that stopped in silence: messages wait, and the broker knows no consumer."""
        for subscription in list(self._subscriptions):
            intake = subscription.intake
            if intake is None or not intake.is_live:
                continue  # known, and being mended
            try:
                is_starved = await self._declarations.is_starved(self._consuming.require(), subscription.queue)
            except (BrokerUnavailable, ConfigurationError) as error:
                log.debug("the watchdog could not look at %s: %s", subscription.queue, error)
                continue
            if is_starved and subscription.intake is intake:
                self.restarts += 1
                log.warning("the consumer of %s had stopped in silence: it is started again", subscription.queue)
                await intake.close()
                self._consuming.is_broken()

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` in a task of the bus: the library cancels its own with their channel."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end_subscription(self, subscription: _Subscription) -> None:
        """Ends its consumer; its channel stays until what it delivered is settled."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        subscription.is_ended = True
        intake = subscription.intake
        if intake is not None:
            self._drained.add(intake)
            await intake.drain(self._timeout_s)
            self.own(self._close_drained(intake))

    async def _close_drained(self, intake: Intake) -> None:
        await intake.close_when_settled()
        self._drained.discard(intake)

    async def _mend_publisher(self, connection: AbstractConnection, _is_new: bool) -> None:
        if self._publisher is None or not self._publisher.is_open:
            await self._open_publisher(connection)

    async def _open_publisher(self, connection: AbstractConnection) -> None:
        tap = self._publishing.tap  # of this connection, whatever becomes of it while we wait
        opening = connection.channel(publisher_confirms=True, frame_buffer_size=0)
        channel = await bounded(opening, self._timeout_s, "a channel to publish on")
        assert isinstance(channel, Channel)
        publisher = self._publisher = Publisher(connection, channel, tap, self._publish_timeout_s)
        self._generation += 1

        def on_closed(_: object) -> None:
            if self._publisher is publisher:
                self._publishing.is_broken()

        channel.closing.add_done_callback(on_closed)

    async def _mend_consumers(self, connection: AbstractConnection, is_new: bool) -> None:
        if is_new:
            await self._declarations.declare_again(connection)
        failure: ConfigurationError | None = None
        for subscription in list(self._subscriptions):
            if subscription.intake is not None and subscription.intake.is_live:
                continue
            try:
                await self._start(subscription, connection)
            except ConfigurationError as error:  # one that cannot be started must not hold up the others
                failure = error
        if failure is not None:
            raise failure

    async def _start(self, subscription: _Subscription, connection: AbstractConnection) -> None:
        old, subscription.intake = subscription.intake, None
        if old is not None:
            await old.close()  # what it delivered comes again, and only once
        try:
            try:
                intake = await self._open_intake(subscription, connection)
            except ChannelNotFoundEntity:
                if not self._declarations.has(subscription.queue):
                    raise
                await self._declarations.declare_again(connection)
                intake = await self._open_intake(subscription, connection)
        except AMQPChannelError as error:
            raise ConfigurationError(f"consuming queue {subscription.queue}: {words(error)}") from None
        if subscription.is_ended:  # while it was being started again
            await intake.close()
        else:
            subscription.intake = intake

    async def _open_intake(self, subscription: _Subscription, connection: AbstractConnection) -> Intake:
        return await Intake.open(
            connection,
            self._consuming.tap,
            subscription.queue,
            prefetch=subscription.prefetch,
            receive=subscription.receive,
            on_broken=self._consuming.is_broken,
            timeout_s=self._timeout_s,
        )

    async def _settle(self, work: Coroutine[Any, Any, None]) -> None:
        """Acknowledges or rejects. What cannot be told to the broker any more is passed over: it comes again."""
        try:
            await bounded(work, self._timeout_s, "acknowledging")
        except (BrokerUnavailable, AMQPChannelError) as error:
            log.debug("deliveries of a lost channel were passed over: %s", error)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watch_interval_s)
            try:
                await self.watch_once()
            except Exception:
                log.exception("the watchdog failed; it goes on")

    def _require_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the bus is not open: await open() first")
