"""Pruned sagas in the distributed system: their replies go to the ledger, their starts are known for what they are."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from watership import SagaConflict, SagaPruned, bootstrap
from watership.client import wire_for
from watership.machine.state import Action, SagaState, Status
from watership.messages import AdminVerb, ReplyOutcome, SagaKnown, StartSaga, StepReply, read
from watership.saga.storage.protocol import LogEntry
from watership.saga.storage.pruning import Pruner
from watership_orchestrator.store import Store
from watership_worker import Worker

from tests.support.engine_ground import new_row
from tests.support.order_steps import OrderContext, sagas
from tests.support.running import WITHIN_S, Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]

DAY_MS = 86_400_000


async def pruned_saga(system: Running) -> uuid.UUID:
    """A saga that ran, and was pruned since."""
    saga_id = await system.start("OrderSaga", {"order_id": "1", "fail_at": None, "trail": []})
    await system.until(saga_id, status="COMPLETED", owed=False)
    for column in ("created_at_ms", "updated_at_ms"):
        await system.sql(f"UPDATE watership_saga SET {column} = {column} - :ms", ms=40 * DAY_MS)
    namespace, url = system.settings.namespace, system.settings.database()
    pruned = await Pruner(url, namespace, older_than_ms=30 * DAY_MS, retention_ms=7 * DAY_MS).run()
    assert pruned.sagas == 1
    return saga_id


def reply(saga_id: uuid.UUID) -> StepReply:
    return StepReply(
        saga_id=saga_id, step="Charge", action=Action.ACT, attempt=1, run="late", outcome=ReplyOutcome.DONE
    )


async def ledger(system: Running, count: int) -> list[Any]:
    async with asyncio.timeout(WITHIN_S):
        while True:
            rows = await system.sql("SELECT saga_id, reason FROM watership_ledger ORDER BY ledger_id")
            if len(rows) >= count:
                return [tuple(row) for row in rows]
            await asyncio.sleep(0.02)


async def test_replies_for_nobody_are_in_the_ledger_with_the_reason(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    gone, nobody = await pruned_saga(system), uuid.uuid4()
    await system.send("replies", reply(gone))
    await system.send("replies", reply(nobody))
    rows = await ledger(system, 2)
    assert sorted(rows, key=lambda row: str(row[1])) == [
        (gone, "its saga was pruned"),
        (nobody, "there is no such saga"),
    ]
    wire = wire_for(system.settings.broker(), system.settings.namespace)
    try:
        (line,) = await wire.ask(AdminVerb.LEDGER, saga_id=gone)
        assert (line["reason"], line["message"]["outcome"]) == ("its saga was pruned", "done")
        assert len(await wire.ask(AdminVerb.LEDGER)) == 2
        with pytest.raises(SagaPruned, match="ended COMPLETED and was pruned"):
            await wire.ask(AdminVerb.SHOW, saga_id=gone)
        live = await system.start("OrderSaga", {"order_id": "2"})
        await system.until(live, status="COMPLETED")
        await system.send("replies", reply(live))
        await ledger(system, 3)
        shown = await wire.ask(AdminVerb.SHOW, saga_id=live)
        assert [line["reason"] for line in shown["ledger"]] == ["act Charge attempt 1 was not awaited"]
    finally:
        await wire.close()


async def test_a_start_of_a_pruned_saga_makes_no_new_one(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    saga_id = await pruned_saga(system)
    name = f"{system.settings.namespace}.client.{uuid.uuid4().hex}"
    told: asyncio.Queue[Any] = asyncio.Queue()
    await system.bus.declare_reply_queue(name)
    await system.bus.consume(
        name, prefetch=9, on_delivery=lambda delivery: told.put_nowait(read(delivery.type, delivery.body))
    )
    start = StartSaga(saga="OrderSaga", saga_id=saga_id, context={"order_id": "1", "fail_at": None, "trail": []})
    await system.send("start", start, reply_to=name)
    assert isinstance(await asyncio.wait_for(told.get(), WITHIN_S), SagaKnown)
    await system.send("start", start.model_copy(update={"context": {"order_id": "2"}}), reply_to=name)
    refused = await asyncio.wait_for(told.get(), WITHIN_S)
    assert (refused.kind, refused.code) == ("saga-rejected", "saga_conflict")
    mediator = bootstrap(sagas_mapper=sagas, broker_url=system.settings.broker(), namespace=system.settings.namespace)
    async with mediator:
        assert await mediator.start(OrderContext("1"), saga_id) == saga_id
        with pytest.raises(SagaPruned):
            await mediator.result(saga_id, timeout_s=WITHIN_S)
        with pytest.raises(SagaPruned):
            await mediator.run(OrderContext("1"), saga_id, timeout_s=WITHIN_S)
        with pytest.raises(SagaConflict):
            await mediator.run(OrderContext("2"), saga_id, timeout_s=WITHIN_S)
    assert await system.row(saga_id) is None


async def test_a_start_whose_insert_waited_while_its_id_was_pruned_makes_no_saga(system: Running) -> None:
    """The statement's snapshot is from before the tombstone; what is written after it must not be (law 11)."""
    store = Store(system.database, system.settings.namespace)
    held, pruned = sorted(uuid.uuid4() for _ in range(2))
    insert = (
        "INSERT INTO watership_saga (saga_id, namespace, driver, name, status, seq, context, state, input_hash, "
        "machine_version, owed, paused, created_at_ms, updated_at_ms, wake_at_ms, due_at_ms) "
        "VALUES (:id, 'elsewhere', 'embedded', 'x', 'RUNNING', 1, '{}', '{}', 'x', 1, false, false, 1, 1, 1, 1)"
    )
    states = [SagaState(str(one), name="OrderSaga", status=Status.COMPLETED, seq=1) for one in (held, pruned)]

    async def make() -> set[uuid.UUID]:
        async with store.batch() as batch:
            await batch.lock([])
            made = await batch.insert([new_row(state) for state in states])
            return made - await batch.write([], [(one, LogEntry(1, 1, "start", ())) for one in made], made)

    async with system.database.connect() as other:
        await other.execute(sa.text(insert), {"id": held})  # by somebody who takes no advisory lock
        making = asyncio.create_task(make())
        async with asyncio.timeout(WITHIN_S):
            while not await system.sql("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
                assert not making.done()
                await asyncio.sleep(0.02)
        await system.sql(
            "INSERT INTO watership_tombstone (saga_id, namespace, driver, name, input_hash, status, ended_at_ms) "
            "VALUES (:id, 'x', 'orchestrator', 'OrderSaga', 'x', 'COMPLETED', 1)",
            id=pruned,
        )
        await other.rollback()
        assert await making == {held}
    assert await system.row(pruned) is None
    assert [row.saga_id for row in await system.sql("SELECT saga_id FROM watership_log")] == [held], "nor has it a log"
