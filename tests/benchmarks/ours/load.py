"""Starts sagas in the distributed system, and counts their ends by their events.

Without ``--rate`` it keeps ``--at-once`` on their way: another start for each end. With it, starts are due at fixed
moments, whatever the system does, and each is timed from the moment that it was due: waiting counts.
With ``--count``, so many and no more, from rest to rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable

import aiormq
import orjson
from aiormq.abc import DeliveredMessage

from watership import bootstrap
from watership.bus.gathering import publish_gathered
from watership.bus.protocol import Fate, Message
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Topology
from watership.chance import new_saga_id
from watership.messages import StartSaga

from tests.benchmarks.closed_loop import Ends, arguments, ready, say
from tests.benchmarks.ours.saga import STEPS, WARMING, BenchContext, sagas

PUBLISH_AT_ONCE = 100
DRAIN_WITHIN_S = 60.0
TICK_S = 0.005
TELL_EVERY_S = 0.25


class Meter:
    """Hears of each end, on a queue of its own that nobody has to acknowledge."""

    def __init__(self) -> None:
        self.ended = 0
        self.began_s: dict[str, float] = {}  # what is timed, by the saga's id
        self.seen: set[str] | None = None  # where an end may be told twice: each counts once
        self.on_end: Callable[[float | None], None] = lambda _began_s: None
        self._some = asyncio.Event()

    async def listen(self, broker_url: str, topology: Topology) -> None:
        """Binds an exclusive queue to the events."""
        connection = await aiormq.connect(broker_url)
        channel = await connection.channel()
        declared = await channel.queue_declare(exclusive=True)
        queue = declared.queue or ""
        await channel.queue_bind(queue, topology.events_exchange, "saga.#")
        await channel.basic_consume(queue, self._on_message, no_ack=True)

    async def _on_message(self, message: DeliveredMessage) -> None:
        if not self.began_s and self.seen is None:
            self.ended += 1
            self.on_end(None)
        else:
            self._end(orjson.loads(message.body)["saga_id"])
        self._some.set()

    def _end(self, saga_id: str) -> None:
        if self.seen is not None:
            if saga_id in self.seen:
                return
            self.seen.add(saga_id)
        self.ended += 1
        self.on_end(self.began_s.pop(saga_id, None))

    async def wait_until(self, count: int) -> None:
        """Until so many have ended."""
        while self.ended < count:
            await self._some.wait()
            self._some.clear()


class Starter:
    """Publishes starts, those that are due together in as few messages as any client of ours would."""

    def __init__(self, bus: RabbitBus, namespace: str, padding: int) -> None:
        self._bus, self._namespace = bus, namespace
        self._context = {
            "order_id": "o-1", "padding": "x" * padding, "reservation_id": None, "payment_id": None,
        }  # fmt: skip
        self.published = 0
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, saga_ids: list[uuid.UUID]) -> None:
        """Starts them in a task: the next need not wait for their confirms."""
        self.published += len(saga_ids)
        task = asyncio.create_task(self._publish(saga_ids), name="starting")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def settled(self) -> None:
        """Until all are confirmed. Raises what failed."""
        await asyncio.gather(*self._under_way)

    async def start(self, saga_ids: list[uuid.UUID]) -> None:
        """Confirmed by the broker on return."""
        self.published += len(saga_ids)
        await self._publish(saga_ids)

    async def _publish(self, saga_ids: list[uuid.UUID]) -> None:
        fates = await publish_gathered(self._bus, [self._message(saga_id) for saga_id in saga_ids])
        assert all(fate is Fate.CONFIRMED for fate in fates), "the broker did not confirm a start"

    def _message(self, saga_id: uuid.UUID) -> Message:
        body = StartSaga.model_construct(saga="BenchSaga", saga_id=saga_id, context=self._context)
        return Message(self._namespace, "start", body.to_body(), body.kind, body.message_id)


async def keep_at_once(
    starter: Starter, meter: Meter, at_once: int, is_over: Callable[[], bool], last: float = float("inf")
) -> None:
    """Another start for each end, in groups; no more than ``last`` in all."""
    group = max(1, min(PUBLISH_AT_ONCE, at_once // 4))
    while not is_over():
        size = int(min(group, last - starter.published))
        await meter.wait_until(starter.published + size - at_once)
        starter.begin([new_saga_id() for _ in range(size)])
        await asyncio.sleep(0)
    await starter.settled()


async def keep_rate(starter: Starter, meter: Meter, rate: float, until_s: float) -> None:
    """Starts at fixed moments. Those that are due when we look go together, each timed from its own moment."""
    first_s = time.perf_counter()
    number = 0
    while (now_s := time.perf_counter()) < until_s:
        saga_ids = []
        while first_s + number / rate <= now_s:
            saga_ids.append(new_saga_id())
            meter.began_s[str(saga_ids[-1])] = first_s + number / rate
            number += 1
        if saga_ids:
            starter.begin(saga_ids)
        due_s = first_s + number / rate
        await asyncio.sleep(max(0.0, min(due_s - time.perf_counter(), TICK_S)))
    await starter.settled()


async def one_by_one(starter: Starter, meter: Meter, ends: Ends) -> None:
    """Each after the other: the time from a start to its end, at rest."""
    while not ends.is_over:
        saga_id = new_saga_id()
        meter.began_s[str(saga_id)] = time.perf_counter()
        await starter.start([saga_id])
        await meter.wait_until(starter.published)


async def count_off(starter: Starter, meter: Meter, count: int, at_once: int) -> None:
    """So many sagas, from rest to rest. It tells how far it is."""
    began_s, first = time.perf_counter(), meter.ended
    last = starter.published + count

    async def tell() -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            say({"at_s": time.perf_counter() - began_s, "so_far": meter.ended - first})

    telling = asyncio.create_task(tell())
    await keep_at_once(starter, meter, at_once, lambda: starter.published >= last, last)
    await meter.wait_until(last)
    telling.cancel()
    Ends(time.perf_counter() - began_s, ended=count).report()


async def run(starter: Starter, meter: Meter) -> None:
    """As the arguments say."""
    given = arguments(*NAMES)
    ends = Ends(given.seconds)
    if given.rate:
        meter.on_end = lambda due_s: ends.add_due(due_s or 0.0)
    else:
        meter.on_end = ends.add
    if given.count:
        await count_off(starter, meter, int(given.count), given.at_once)
        return
    ends.begin()
    if given.rate:
        await keep_rate(starter, meter, float(given.rate), ends.until_s)
    elif given.at_once == 1:
        await one_by_one(starter, meter, ends)
    else:
        await keep_at_once(starter, meter, given.at_once, lambda: ends.is_over)
    await asyncio.wait_for(meter.wait_until(starter.published), DRAIN_WITHIN_S)
    ends.report()


NAMES = ("broker-url", "namespace", "rate", "count", "padding", "unique")


async def main() -> None:
    """Warms up, and runs."""
    given = arguments(*NAMES)
    topology = Topology(given.namespace)
    bus = RabbitBus(given.broker_url, name="bench")
    meter = Meter()
    meter.seen = set() if given.unique else None
    await bus.open()
    logging.getLogger("watership").setLevel(logging.ERROR)
    step_queues = [topology.step_queue(step) for step in STEPS]
    await bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), *step_queues])
    await meter.listen(given.broker_url, topology)
    starter = Starter(bus, given.namespace, int(given.padding or 220))
    async with bootstrap(sagas_mapper=sagas, broker_url=given.broker_url, namespace=given.namespace) as mediator:
        await mediator.run(BenchContext())  # its plan is known from now on, and all is up
    meter.ended = 0
    await starter.start([new_saga_id() for _ in range(WARMING)])
    await meter.wait_until(WARMING)
    ready()
    await run(starter, meter)
    await bus.close()


asyncio.run(main())
