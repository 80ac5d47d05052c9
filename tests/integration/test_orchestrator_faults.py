"""Orchestrators on real servers when rows, commits, workers and batches are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.exc import DBAPIError

from watership import Response, SagaStepHandler
from watership.bus.protocol import Delivery
from watership.bus.rabbit import RabbitBus
from watership.errors import ConfigurationError
from watership.machine.events import SagaStarted
from watership.machine.react import react
from watership.machine.state import SagaState
from watership_orchestrator import engine
from watership_orchestrator.ports import SagaBatch
from watership_orchestrator.records import NewRow
from watership_orchestrator.store import Store
from watership_worker import Worker
from watership_worker.consumer import Consumer

from tests.support.order_steps import OrderContext, Reserve, sagas
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]


async def test_a_newer_machines_saga_is_left_to_a_newer_orchestrator(system: Running) -> None:
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(saga_id, step="Charge")
    await system.sql("UPDATE watership_saga SET machine_version = 99, wake_at_ms = 1")
    await (await system.reaper()).run_once()
    body = {"v": 1, "saga_id": str(saga_id), "step": "Charge", "action": "act", "attempt": 1, "run": "r1"}
    await system.send_raw("replies", json.dumps({**body, "outcome": "done"}).encode(), "step-reply")
    other = await system.start("OrderSaga", {"order_id": "2"})
    await system.until(other, step="Charge")  # others go on meanwhile
    row = await system.row(saga_id)
    assert row is not None
    assert (row["seq"], row["status"], row["machine_version"]) == (2, "RUNNING", 99)
    await system.sql("UPDATE watership_saga SET machine_version = 1 WHERE saga_id = :id", id=saga_id)
    reaper = await system.reaper()
    async with asyncio.timeout(20):  # the reply was not lost: the broker brings it, or a reaper finds it
        while (await system.row(saga_id) or {})["status"] != "COMPLETED":
            await reaper.run_once()
            await asyncio.sleep(0.05)


async def test_a_handler_of_a_name_that_another_one_has_is_refused(system: Running) -> None:
    class Other(SagaStepHandler[OrderContext, Response]):
        name = "Reserve"

        async def act(self, context: OrderContext) -> None:
            raise AssertionError

    await system.orchestrator()
    first = Consumer(system.settings, RabbitBus(system.settings.broker()), Worker(sagas_mapper=sagas))
    await first.start()
    stranger = Consumer(system.settings, RabbitBus(system.settings.broker()), Worker(handlers=[Other]))
    with pytest.raises(ConfigurationError, match="step Reserve is served by .*:Reserve already"):
        await stranger.start()
    await stranger.drain()
    await first.drain()  # a worker that stops frees its names
    await system.worker(Worker(handlers=[Other]))


async def test_what_cannot_be_judged_fails_alone(system: Running) -> None:
    """A row that is broken: what arrives for it is dead-lettered with the reason, and the others of its batch go on."""
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    broken, whole = (
        await system.start("OrderSaga", {"order_id": "1"}),
        await system.start("OrderSaga", {"order_id": "2"}),
    )
    for saga_id in (broken, whole):
        await system.until(saga_id, step="Charge")
    await system.sql("UPDATE watership_saga SET state = '{}' WHERE saga_id = :id", id=broken)
    for saga_id in (broken, whole):
        body = {"v": 1, "saga_id": str(saga_id), "step": "Charge", "action": "act", "attempt": 1, "run": "r1"}
        await system.send_raw("replies", json.dumps({**body, "outcome": "done"}).encode(), "step-reply")
    await system.until(whole, status="COMPLETED")
    assert await system.dead_letter("step-reply") == "rejected"
    row = await system.row(broken)
    assert row is not None
    assert row["wake_at_ms"] > row["updated_at_ms"], "backed off, and never forgotten"


async def test_a_commit_whose_answer_is_lost_still_sends_what_followed(
    system: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 1: the server committed, the link broke before it could say so. Nothing but a message would bring it back."""
    orchestrator = await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    store, lost = orchestrator._engine._store, 0
    whole = store.batch

    @contextlib.asynccontextmanager
    async def cut() -> AsyncIterator[SagaBatch]:
        nonlocal lost
        async with whole() as batch:
            yield batch
        if lost < 3:  # the start, and the two replies
            lost += 1
            raise DBAPIError("COMMIT", {}, ConnectionResetError("cut"), connection_invalidated=True)

    monkeypatch.setattr(store, "batch", cut)
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(saga_id, status="COMPLETED")  # no reaper runs, and no deadline is near
    assert lost == 3


async def test_a_saga_that_another_transaction_is_making_is_not_waited_for(system: Running) -> None:
    """Whoever makes it may be stopped in the middle of that: nobody else's batch is held up by it."""
    store = Store(system.database, system.settings.namespace)
    rows = []
    for _ in range(2):
        saga_id = uuid.uuid4()
        state = react(None, SagaState(str(saga_id)), SagaStarted("OrderSaga", {}, None, 1), 0).state
        rows.append(NewRow(saga_id, state, "hash", None, None))
    contested, other = rows
    async with store.batch() as first, store.batch() as second:
        assert await first.insert([contested]) == {contested.saga_id}
        async with asyncio.timeout(1.0):  # half of the time that a lock would be waited for
            assert await second.insert(rows) == {other.saga_id}
    assert await system.row(contested.saga_id) is not None


async def test_a_batch_that_was_committed_too_long_ago_publishes_nothing(
    system: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 3: a process that was stopped between commit and publish sends nothing old. The broker brings it again."""
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas))
    commands: asyncio.Queue[Delivery] = asyncio.Queue()
    monkeypatch.setattr(worker, "_serve", commands.put)
    monkeypatch.setattr(engine, "PUBLISH_WINDOW_S", -1.0)
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(saga_id, status="RUNNING")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(commands.get(), 0.5)
    monkeypatch.undo()
    await system.until(saga_id, status="COMPLETED")
