"""A link may break at any time, also while a service is on its way up: it is tried again, and no process ends of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from watership import BrokerUnavailable, Response, Saga, SagaContext, SagaMap, SagaStepHandler
from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Bus
from watership.service import Service
from watership.settings import Settings
from watership.testing.memory_database import MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership.testing.virtual_loop import new_loop
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.reaper import Reaper
from watership_worker import Worker
from watership_worker.consumer import Consumer

SETTINGS = Settings(namespace="test")
ASKED = ("declare", "declare_reply_queue", "consume")


class Nothing(SagaStepHandler[SagaContext, Response]):
    async def act(self, context: SagaContext) -> None: ...


class NothingSaga(Saga[SagaContext]):
    steps = [Nothing]


def sagas(mapper: SagaMap) -> None:
    mapper.bind(SagaContext, NothingSaga)


class BreakingBus(MemoryBus):
    """Its link is down the first time that it is asked for each thing."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.asked: list[tuple[str, object]] = []
        for name in ASKED:
            setattr(self, name, self._breaking(name, getattr(self, name)))

    def _breaking(self, name: str, ask: Any) -> Any:
        async def asked(what: Any, *rest: Any, **options: Any) -> Any:
            key = (name, what if isinstance(what, str) else "all")
            self.asked.append(key)
            if self.asked.count(key) == 1:
                raise BrokerUnavailable("the link is down; it is being restored")
            return await ask(what, *rest, **options)

        return asked


SERVICES: dict[str, Callable[[Bus], Service]] = {
    "orchestrator": lambda bus: Orchestrator(SETTINGS, bus, MemoryBacking(MemoryDatabase(lambda: 1_000_000), "test")),
    "reaper": lambda bus: Reaper(SETTINGS, bus, MemoryBacking(MemoryDatabase(lambda: 1_000_000), "test")),
    "worker": lambda bus: Consumer(SETTINGS, bus, Worker(sagas_mapper=sagas)),
}


@pytest.mark.parametrize("name", SERVICES)
def test_a_link_that_breaks_on_the_way_up_ends_no_service(name: str) -> None:
    loop = new_loop(random.Random(1))

    async def start() -> BreakingBus:
        bus = BreakingBus(MemoryBroker())
        await SERVICES[name](bus).start()
        return bus

    try:
        bus = loop.run_until_complete(start())
    finally:
        loop.close()
    assert bus.asked
    assert all(bus.asked.count(key) == 2 for key in bus.asked), "tried once more, and that is enough"
