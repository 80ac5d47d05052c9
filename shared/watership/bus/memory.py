"""A broker in memory that keeps the bus's contract: for tests, and in one process.

It is deterministic: no clock, no thread, no chance, and a delivery is handed over within the call that makes it
possible. So it cannot know time: a message's expiration is ignored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from watership.bus.protocol import Delivery, Fate, Message
from watership.bus.topology import Exchange, ExchangeKind, Queue
from watership.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)

OnDelivery = Callable[[Delivery], Awaitable[None] | None]


@dataclasses.dataclass(frozen=True, slots=True)
class QueueDepth:
    """How a queue stands: messages that wait, messages handed over and not acknowledged, consumers."""

    ready: int
    unacked: int
    consumers: int


@dataclasses.dataclass(slots=True, eq=False)
class _Entry:
    """A message in a queue. ``sequence`` is its place there, which it keeps when it is given back."""

    sequence: int
    message: Message
    redelivered: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _Consumer:
    """One consumer's channel. It is replaced, never revived, so that an old delivery cannot be acknowledged."""

    queue: _MemoryQueue
    bus: MemoryBus
    prefetch: int
    on_delivery: OnDelivery
    unacked: dict[int, _Entry] = dataclasses.field(default_factory=dict)
    takes: bool = True

    def has_room(self) -> bool:
        return self.takes and (self.prefetch == 0 or len(self.unacked) < self.prefetch)

    def hand_over(self, entry: _Entry) -> None:
        self.unacked[entry.sequence], message = entry, entry.message
        delivery = Delivery(
            queue=self.queue.name,
            body=message.body,
            type=message.type,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
            redelivered=entry.redelivered,
            headers=dict(message.headers),
            handle=(self, entry.sequence),
            expiration_ms=message.expiration_ms,
        )
        self.bus.hand_over(self.on_delivery, delivery)


class _MemoryQueue:
    """Messages in order, and the consumers that take turns at them."""

    def __init__(self, name: str, declared: Queue | None, owner: MemoryBus | None) -> None:
        self.name, self.declared, self.owner = name, declared, owner
        self.ready: deque[_Entry] = deque()
        self.consumers: deque[_Consumer] = deque()
        self.ready_max: int | None = None
        self._sequences = itertools.count(1)

    def put(self, message: Message) -> bool:
        """False if the queue is full."""
        if self.ready_max is not None and len(self.ready) >= self.ready_max:
            return False
        self.ready.append(_Entry(next(self._sequences), message))
        self.pump()
        return True

    def give_back(self, entries: Iterable[_Entry]) -> None:
        """To the places that they had, which is before all that nobody has had."""
        returned = list(entries)
        for entry in returned:
            entry.redelivered = True
        self.ready = deque(sorted([*returned, *self.ready], key=lambda entry: entry.sequence))

    def pump(self) -> None:
        """Hands over what the consumers have room for, each in turn."""
        while self.ready:
            for _ in range(len(self.consumers)):
                self.consumers.rotate(-1)
                if self.consumers[-1].has_room():
                    break
            else:
                return
            self.consumers[-1].hand_over(self.ready.popleft())


class MemoryBroker:
    """What the buses of one system share: exchanges, bindings, queues."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._bindings: dict[str, dict[tuple[str, str], None]] = {}  # exchange -> (routing key, queue), in order
        self._queues: dict[str, _MemoryQueue] = {}

    def depth(self, queue: str) -> QueueDepth:
        """How ``queue`` stands; all zero if there is no such queue."""
        found = self._queues.get(queue)
        if found is None:
            return QueueDepth(0, 0, 0)
        unacked = sum(len(consumer.unacked) for consumer in found.consumers)
        return QueueDepth(len(found.ready), unacked, sum(consumer.takes for consumer in found.consumers))

    def peek(self, queue: str) -> list[Message]:
        """The messages that wait in ``queue``, in order. It takes nothing."""
        found = self._queues.get(queue)
        return [entry.message for entry in found.ready] if found else []

    def limit(self, queue: str, ready_max: int | None) -> None:
        """A broker policy: more waiting messages than that are REFUSED. None lifts it."""
        self._queues[queue].ready_max = ready_max

    def declare_exchange(self, exchange: Exchange) -> None:
        known = self._exchanges.setdefault(exchange.name, exchange)
        if known != exchange:
            raise ConfigurationError(f"exchange {exchange.name} is there, but differs: it is {known.kind}")

    def declare_queue(self, queue: Queue) -> None:
        known = self._queues.get(queue.name)
        if known is None:
            known = self._queues[queue.name] = _MemoryQueue(queue.name, queue, None)
        elif known.declared is None or known.declared.dead_letter_exchange != queue.dead_letter_exchange:
            raise ConfigurationError(f"queue {queue.name} is there, but differs: its arguments are others")
        if queue.exchange not in self._exchanges:
            raise ConfigurationError(f"queue {queue.name} cannot be bound: exchange {queue.exchange} is not there")
        self._bindings.setdefault(queue.exchange, {})[queue.routing_key, queue.name] = None

    def declare_reply_queue(self, name: str, owner: MemoryBus) -> None:
        known = self._queues.setdefault(name, _MemoryQueue(name, None, owner))
        if known.owner is not owner:
            raise ConfigurationError(f"queue {name} belongs to another connection")

    def has(self, item: Exchange | Queue) -> bool:
        return item.name in (self._exchanges if isinstance(item, Exchange) else self._queues)

    def queue_for(self, name: str, bus: MemoryBus) -> _MemoryQueue:
        found = self._queues.get(name)
        if found is None:
            raise ConfigurationError(f"queue {name} is not there: declare it first")
        if found.owner not in (None, bus):
            raise ConfigurationError(f"queue {name} belongs to another connection")
        return found

    def drop_queues_of(self, owner: MemoryBus) -> None:
        self._queues = {name: queue for name, queue in self._queues.items() if queue.owner is not owner}

    def route(self, message: Message) -> Fate:
        """Puts the message where it belongs. UNCONFIRMED means that the exchange is not there."""
        if message.exchange and message.exchange not in self._exchanges:
            return Fate.UNCONFIRMED
        targets = self._targets(message.exchange, message.routing_key)
        if not targets:
            return Fate.RETURNED if message.mandatory else Fate.CONFIRMED
        taken = [queue.put(message) for queue in targets]
        return Fate.CONFIRMED if all(taken) else Fate.REFUSED

    def dead_letter(self, queue: _MemoryQueue, message: Message, reason: str = "rejected") -> None:
        """Sends a message on, as RabbitMQ does; without a dead-letter exchange it is gone."""
        if queue.declared is None or queue.declared.dead_letter_exchange is None:
            return
        death = {
            "reason": reason,
            "queue": queue.name,
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
            "count": 1,
        }
        headers = {**message.headers, "x-death": [death, *message.headers.get("x-death", [])]}
        dead_exchange = queue.declared.dead_letter_exchange
        self.route(dataclasses.replace(message, exchange=dead_exchange, headers=headers, mandatory=False))

    def _targets(self, exchange: str, routing_key: str) -> list[_MemoryQueue]:
        if not exchange:
            found = self._queues.get(routing_key)
            return [found] if found else []
        kind = self._exchanges[exchange].kind
        bound = self._bindings.get(exchange, {})
        names = dict.fromkeys(name for pattern, name in bound if _matches(kind, pattern, routing_key))
        return [self._queues[name] for name in names]


def _matches(kind: ExchangeKind, pattern: str, routing_key: str) -> bool:
    if kind is ExchangeKind.FANOUT:
        return True
    if kind is ExchangeKind.DIRECT:
        return pattern == routing_key
    return _topic_matches(pattern.split("."), routing_key.split("."))


def _topic_matches(pattern: list[str], words: list[str]) -> bool:
    """``*`` is one word, ``#`` any number of them."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_topic_matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _topic_matches(pattern[1:], words[1:])


class _MemorySubscription:
    def __init__(self, consumer: _Consumer) -> None:
        self.consumer = consumer

    async def cancel(self) -> None:
        self.consumer.bus.cancel(self)


class MemoryBus:
    """One connection to a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._generation = 0
        self._is_open = self._is_closed = False
        self._subscriptions: list[_MemorySubscription] = []
        self._consumers: list[_Consumer] = []  # those of cancelled subscriptions too: they hold unacked messages
        self._reply_queues: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def generation(self) -> int:
        return self._generation

    async def open(self) -> None:
        self._is_open = True
        self._generation += 1

    async def ready(self) -> None:
        self._require_open()
        await asyncio.sleep(0)

    async def close(self) -> None:
        if self._is_closed or not self._is_open:
            return
        self._is_closed = True
        self._subscriptions = []
        self.lose_link()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """The link breaks and is back: what a reconnect does to deliveries, reply queues and the generation."""
        self.lose_link()
        self.regain_link()

    def regain_link(self) -> None:
        """It is back: a new publishing channel, and consumers as they were."""
        self._generation += 1
        for name in self._reply_queues:
            self._broker.declare_reply_queue(name, self)
        for subscription in self._subscriptions:
            old = subscription.consumer
            subscription.consumer = self._attach(old.queue.name, old.prefetch, old.on_delivery)

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        self._require_link()
        for exchange in exchanges:
            self._broker.declare_exchange(exchange)
        for queue in queues:
            self._broker.declare_queue(queue)

    async def missing(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> list[str]:
        self._require_link()
        absent = [f"exchange {item.name} is not there" for item in exchanges if not self._broker.has(item)]
        return absent + [f"queue {item.name} is not there" for item in queues if not self._broker.has(item)]

    async def declare_reply_queue(self, name: str) -> None:
        self._require_link()
        self._broker.declare_reply_queue(name, self)
        if name not in self._reply_queues:
            self._reply_queues.append(name)

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        self._require_open()
        await asyncio.sleep(0)  # as a real one would: a loop that only publishes must not starve the others
        if self._is_closed:
            return [Fate.UNCONFIRMED] * len(messages)
        fates: list[Fate] = []
        for message in messages:
            fate = self._broker.route(message) if message.message_id else Fate.REFUSED
            if fate is Fate.UNCONFIRMED:  # the exchange is not there, which costs RabbitMQ's whole channel
                self._generation += 1
                return [Fate.UNCONFIRMED] * len(messages)
            fates.append(fate)
        return fates

    async def consume(self, queue: str, *, prefetch: int, on_delivery: OnDelivery) -> _MemorySubscription:
        self._require_link()
        subscription = _MemorySubscription(self._attach(queue, prefetch, on_delivery))
        self._subscriptions.append(subscription)
        return subscription

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        self._require_open()
        consumers = dict.fromkeys(consumer for consumer, _ in map(self._settle, deliveries) if consumer)
        for consumer in consumers:
            consumer.queue.pump()

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        self._require_open()
        consumer, entry = self._settle(delivery)
        if consumer is None or entry is None:
            return
        if requeue:
            consumer.queue.give_back([entry])
        else:
            self._broker.dead_letter(consumer.queue, entry.message)
        consumer.queue.pump()

    def hand_over(self, on_delivery: OnDelivery, delivery: Delivery) -> None:
        """Calls the consumer; what it returns is awaited in a task of the bus."""
        try:
            result = on_delivery(delivery)
        except Exception:
            log.exception("a consumer of %s failed; its message stays unacknowledged", delivery.queue)
            return
        if result is not None:
            task = asyncio.get_running_loop().create_task(_finish(result, delivery.queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self, subscription: _MemorySubscription) -> None:
        """It takes no more, and is not consumed again after a cut."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            subscription.consumer.takes = False
            self._detach_if_idle(subscription.consumer)

    def _detach_if_idle(self, consumer: _Consumer) -> None:
        """A cancelled consumer stays only as long as something of it can still be acknowledged."""
        if not consumer.takes and not consumer.unacked and consumer in self._consumers:
            self._consumers.remove(consumer)
            consumer.queue.consumers.remove(consumer)

    def _attach(self, queue: str, prefetch: int, on_delivery: OnDelivery) -> _Consumer:
        found = self._broker.queue_for(queue, self)
        consumer = _Consumer(found, self, prefetch, on_delivery)
        self._consumers.append(consumer)
        found.consumers.append(consumer)
        found.pump()
        return consumer

    def _settle(self, delivery: Delivery) -> tuple[_Consumer | None, _Entry | None]:
        consumer, sequence = delivery.handle
        entry = consumer.unacked.pop(sequence, None)
        self._detach_if_idle(consumer)
        return (consumer, entry) if entry else (None, None)

    def lose_link(self) -> None:
        """All consumers go, and only then all is given back: a message must not come back to a dead consumer."""
        self._require_open()
        lost, self._consumers = self._consumers, []
        for consumer in lost:
            consumer.takes = False
            consumer.queue.consumers.remove(consumer)
        self._broker.drop_queues_of(self)
        for consumer in lost:
            consumer.queue.give_back(consumer.unacked.values())
            consumer.unacked = {}
        for queue in dict.fromkeys(consumer.queue for consumer in lost):
            queue.pump()

    def _require_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the bus is not open: await open() first")

    def _require_link(self) -> None:
        self._require_open()
        if self._is_closed:
            raise BrokerUnavailable("the bus is closed")


async def _finish(result: Awaitable[None], queue: str) -> None:
    try:
        await result
    except Exception:
        log.exception("a consumer of %s failed; its message stays unacknowledged", queue)
