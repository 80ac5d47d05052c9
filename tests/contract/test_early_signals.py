"""Signals that came before their saga and that no reaper has judged yet: nothing overtakes them. On Postgres and in memory."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.topology import Topology
from watership.machine.changes import Elapsed, SignalKept, Signalled
from watership.machine.nodes import StepPlan, WaitPlan
from watership.machine.plan import Plan
from watership.messages import RegisterWorker, Signal, StartSaga
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.engine import Engine

from tests.support.engine_ground import Ground, ground, postgres_url

__all__ = ["ground", "postgres_url"]  # fixtures

SAGA_ID = uuid.UUID(int=1)
TOPOLOGY = Topology("test")
STEP = StepPlan("A", "a")
FIRST, SECOND = {"by": "Ann"}, {"by": "Bob"}


async def engine_on(ground: Ground, *nodes: Any) -> Engine:
    plan = Plan("Order", nodes)
    bus = MemoryBus(MemoryBroker())
    await bus.open()
    await bus.declare(TOPOLOGY.exchanges(), [*TOPOLOGY.orchestrator_queues(), TOPOLOGY.step_queue("a")])
    await ground.backing.plans.register(RegisterWorker(worker="w", plans=(plan.to_data(),)))
    return Engine(ground.store, bus, ground.backing.plans, TOPOLOGY)


def start() -> Arrival:
    return Arrival(SAGA_ID, StartSaga(saga="Order", saga_id=SAGA_ID, context={}))


def signal(signal_id: str, data: Any) -> Arrival:
    return Arrival(SAGA_ID, Signal(saga_id=SAGA_ID, name="approval", signal_id=signal_id, data=data))


async def taken(ground: Ground, kind: type[Any]) -> list[Any]:
    async with ground.store.batch() as batch:
        log = (await batch.history([SAGA_ID]))[SAGA_ID]
    return [change for entry in log for change in entry.changes if isinstance(change, kind)]


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["with the start", "after it"])
async def test_a_later_signal_does_not_overtake_one_that_is_kept(ground: Ground, in_one_batch: bool) -> None:
    engine = await engine_on(ground, STEP, WaitPlan("approval", None, 60_000))
    await engine.process([signal("s-1", FIRST)])
    later = signal("s-2", SECOND)
    if in_one_batch:
        result = await engine.process([start(), later])
    else:
        await engine.process([start()])
        result = await engine.process([later])
    assert await taken(ground, SignalKept) == [SignalKept("approval", FIRST)]
    assert "keeps the first" in result.refusals[id(later)]
    assert await ground.store.signals(10) == [], "it is judged"


async def test_a_wait_does_not_end_for_want_of_a_signal_that_is_kept(ground: Ground) -> None:
    engine = await engine_on(ground, WaitPlan("approval", None, 1))
    await engine.process([signal("s-1", FIRST)])
    await engine.process([start()])
    async with asyncio.timeout(10):
        while not await engine.look(10):
            await asyncio.sleep(0.01)
    assert await taken(ground, Signalled) == [Signalled("approval", FIRST, None)]
    assert await taken(ground, Elapsed) == []


async def test_signals_are_kept_until_their_saga_runs(ground: Ground) -> None:
    engine = await engine_on(ground, STEP, WaitPlan("approval", None, 60_000))
    await engine.process([signal("s-1", FIRST)])
    await engine.process([signal("s-2", SECOND), signal("s-1", SECOND)])
    async with ground.store.batch() as batch:
        kept = await batch.early_signals([SAGA_ID])
    assert [(each.signal_id, each.data) for each in kept] == [("s-1", '{"by":"Ann"}'), ("s-2", '{"by":"Bob"}')]


async def test_what_somebody_else_is_judging_puts_the_saga_off(ground: Ground) -> None:
    engine = await engine_on(ground, STEP, WaitPlan("approval", None, 60_000))
    await engine.process([signal("s-1", FIRST)])
    await engine.process([start()])
    later = signal("s-2", SECOND)
    async with ground.store.batch() as batch:
        (kept,) = await batch.early_signals([SAGA_ID])
        assert await batch.hold([kept.row]) == {kept.row}
        result = await engine.process([later])
    assert result.again == [later]
    assert await taken(ground, SignalKept) == []
