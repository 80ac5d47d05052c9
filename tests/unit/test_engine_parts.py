"""A batch has two parts: what is decided as it is remembered, and what must be read. Neither costs the other anything."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Delivery
from watership.machine.plan import Plan
from watership.messages import RegisterWorker, StartSaga
from watership.testing.memory_database import MemoryDatabase, connection_lost
from watership.testing.memory_plans import MemoryBacking
from watership.testing.memory_store import MemoryBatch, MemoryStore
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.engine import PUBLISH_WINDOW_S, Engine

from tests.support.judging import SAGA_ID, reply, start, step
from tests.support.memory_engine import TOPOLOGY

OTHER = uuid.UUID(int=9)


class Away(MemoryStore):
    """``times``: so often, no transaction begins."""

    times = 0

    def batch(self) -> MemoryBatch:
        if self.times:
            self.times -= 1
            raise connection_lost()
        return super().batch()


class Ground:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.now_s = plan, 0.0
        self.database = MemoryDatabase(lambda: 1_000_000 + int(self.now_s * 1000))
        self.store = Away(self.database, "test")
        self.bus = MemoryBus(MemoryBroker())
        self.sent: list[str] = []

    async def open(self) -> Engine:
        await self.bus.open()
        queues = [TOPOLOGY.step_queue(one.queue) for one in self.plan.by_name.values()]
        await self.bus.declare(TOPOLOGY.exchanges(), [*TOPOLOGY.orchestrator_queues(), *queues])
        for queue in queues:
            await self.bus.consume(queue.name, prefetch=0, on_delivery=self._take)
        backing = MemoryBacking(self.database, "test", now_s=lambda: self.now_s)
        await backing.plans.register(RegisterWorker(worker="w", plans=(self.plan.to_data(),)))
        return Engine(self.store, self.bus, backing.plans, TOPOLOGY, now_s=lambda: self.now_s)

    def _take(self, delivery: Delivery) -> None:
        self.sent.append((delivery.message_id or "").removeprefix(f"{SAGA_ID}:"))


def other_start() -> Arrival:
    return Arrival(OTHER, StartSaga(saga="OrderSaga", saga_id=OTHER, context={"n": 1}))


@pytest.mark.parametrize("rerun", [True, False])
async def test_what_is_committed_is_sent_though_the_rest_finds_no_database(
    rerun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = Ground(Plan("OrderSaga", (step("A"), step("B", rerun=rerun), step("C"))))
    engine = await ground.open()
    await engine.process([Arrival(SAGA_ID, start())])

    async def at_once(_: float) -> None:
        """No pause."""

    monkeypatch.setattr("watership_orchestrator.deciding.asyncio.sleep", at_once)
    ground.store.times = 8
    late = other_start()
    result = await engine.process([Arrival(SAGA_ID, reply("A")), late])
    assert result.redeliver == [late]
    assert late.in_doubt
    await asyncio.wait_for(_until(lambda: "B:act:1:1" in ground.sent), 5)
    assert [row.cause for row in ground.database.logs[SAGA_ID]] == ["start", "reply:A:act:1:A-act-1"]
    assert (await engine.process([late])).redeliver == []
    assert ground.database.sagas.keys() == {SAGA_ID, OTHER}


async def test_what_is_committed_is_not_old_because_the_rest_took_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = Ground(Plan("OrderSaga", (step("A"), step("B"), step("C"))))
    engine = await ground.open()
    await engine.process([Arrival(SAGA_ID, start())])

    async def slept(_: float) -> None:
        ground.now_s += PUBLISH_WINDOW_S / 3

    monkeypatch.setattr("watership_orchestrator.deciding.asyncio.sleep", slept)
    ground.store.times = 4
    result = await engine.process([Arrival(SAGA_ID, reply("A")), other_start()])
    assert (result.redeliver, result.again) == ([], [])
    await asyncio.wait_for(_until(lambda: {"B:act:1:1", f"{OTHER}:A:act:1:1"} <= set(ground.sent)), 5)


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        turned = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turned.set_result, None)
        await turned
