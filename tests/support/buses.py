"""A bus to test and the broker behind it, whichever it is: what the bus tests share."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Bus, Delivery, Message
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Queue, Topology

from tests.support.proxy import Proxy

PATIENCE_S = 30.0


class Inbox:
    """A consumer that keeps what arrives."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    def __call__(self, delivery: Delivery) -> None:
        self._arrived.put_nowait(delivery)

    async def take(self, count: int) -> list[Delivery]:
        async with asyncio.timeout(PATIENCE_S):
            return [await self._arrived.get() for _ in range(count)]

    @property
    def is_empty(self) -> bool:
        return self._arrived.empty()


@dataclasses.dataclass
class House:
    """One broker and one namespace: makes buses, and cuts their links."""

    topology: Topology
    new_bus: Callable[[], Any]
    cut: Callable[[Bus], None]
    ids: itertools.count[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    def message(self, key: str, *, exchange: str | None = None, **more: Any) -> Message:
        number = next(self.ids)
        exchange = self.topology.exchange if exchange is None else exchange
        return Message(exchange, key, f"body {number}".encode(), "test", f"id-{number}", **more)

    async def lay(self, bus: Bus) -> Queue:
        """Declares the namespace, with a queue for the step "pay"."""
        queue = self.topology.step_queue("pay")
        await bus.declare(self.topology.exchanges(), [*self.topology.orchestrator_queues(), queue])
        return queue


@contextlib.asynccontextmanager
async def memory_house() -> AsyncIterator[House]:
    broker = MemoryBroker()

    def cut(bus: Bus) -> None:
        assert isinstance(bus, MemoryBus)
        bus.cut()

    yield House(Topology("test"), lambda: MemoryBus(broker), cut)


@contextlib.asynccontextmanager
async def rabbit_house(url: str, namespace: str) -> AsyncIterator[House]:
    proxies: dict[Bus, Proxy] = {}
    async with contextlib.AsyncExitStack() as stack:
        spare = [await stack.enter_async_context(Proxy.for_url(url)) for _ in range(3)]

        def new_bus() -> Bus:
            proxy = spare.pop()
            bus = RabbitBus(proxy.url_for(url), name="contract test")
            proxies[bus] = proxy
            return bus

        yield House(Topology(namespace), new_bus, lambda bus: proxies[bus].cut())


async def replaced(bus: Bus, generation: int) -> None:
    """Waits until the publishing channel of ``generation`` has a successor, and both links are up."""
    async with asyncio.timeout(PATIENCE_S):
        while bus.generation == generation:
            await asyncio.sleep(0.005)
        await bus.ready()
