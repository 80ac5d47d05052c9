"""Many sagas, namespaces and holders on one store at once."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import create_async_engine

from watership.errors import LeaseLost, SagaConflict
from watership.machine import events as e
from watership.machine.state import MACHINE_VERSION, Action, Outcome, Status
from watership.saga.storage.keeper import LeaseThread
from watership.saga.storage.protocol import EarlySignal, HeldElsewhere, Lease, LogEntry, SagaStorage
from watership.saga.storage.schema import saga_table
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

from tests.support.stored_sagas import (
    LEASE_MS,
    PLAN,
    StoredSaga,
    acquire_when_free,
    assert_stored,
)

# --- early signals that nobody here can give ---------------------------------------------------------------------------


async def test_early_signals_of_sagas_that_are_not_bound_here_stand_in_nobodys_way(storage: SagaStorage) -> None:
    theirs, ours = [await StoredSaga(storage, name=name).create() for name in ("Theirs", "Ours")]
    for saga in (theirs, ours):
        await storage.keep_signal(EarlySignal(saga.saga_id, "s-1", "approval", {"n": 1}))
    assert [one.saga_id for one in await storage.early_signals(names=["Ours"], limit=1)] == [ours.saga_id]
    assert await storage.early_signals(names=[]) == []
    assert [one.saga_id for one in await storage.early_signals(saga_id=theirs.saga_id)] == [theirs.saga_id]
    assert len(await storage.early_signals()) == 2


async def test_early_signals_of_sagas_of_a_newer_version_stand_in_nobodys_way(
    sql_storage: SqlAlchemySagaStorage,
) -> None:
    newer, ours = [await StoredSaga(sql_storage).create() for _ in range(2)]
    for saga in (newer, ours):
        await sql_storage.keep_signal(EarlySignal(saga.saga_id, "s-1", "approval", {"n": 1}))
    engine = create_async_engine(sql_storage._url)
    async with engine.begin() as connection:
        row = sa.update(saga_table).where(saga_table.c.saga_id == newer.saga_id)
        await connection.execute(row.values(machine_version=MACHINE_VERSION + 1))
    await engine.dispose()
    assert [one.saga_id for one in await sql_storage.early_signals(limit=1)] == [ours.saga_id]
    assert await sql_storage.early_signals(saga_id=newer.saga_id) == []


# --- many at once ----------------------------------------------------------------------------------------------------


async def test_two_hundred_sagas_at_once(storage: SagaStorage) -> None:
    async def run() -> StoredSaga:
        saga = await StoredSaga(storage).create()
        await saga.complete()
        return saga

    sagas = await asyncio.gather(*(run() for _ in range(200)))
    for saga in sagas[::20]:
        await assert_stored(saga)
    assert len(await storage.list_sagas(limit=1_000, status=Status.COMPLETED)) == 200


async def test_writes_that_come_together_go_together(sql_url: str) -> None:
    engine = create_async_engine(sql_url)
    writes: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        # Of a batch, the statement on the row; SQLite has one more for its log entries.
        if re.search(r"(UPDATE|INTO) watership_saga", statement):
            writes.append(statement)

    storage = SqlAlchemySagaStorage(engine)
    await storage.create_tables()
    sa.event.listen(engine.sync_engine, "before_cursor_execute", count)
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(100)))
    await asyncio.gather(*(saga.act("Reserve") for saga in sagas))
    assert 2 <= len(writes) <= 20, "200 writes must take far fewer statements"
    writes.clear()
    await sagas[0].act("Charge")
    assert len(writes) == 1, "at rest, a write goes at once and alone"
    for saga in sagas[::25]:
        await assert_stored(saga)
    await storage.close()
    await engine.dispose()


async def test_a_bad_write_in_a_batch_fails_alone(sql_storage: SqlAlchemySagaStorage) -> None:
    sagas = await asyncio.gather(*(StoredSaga(sql_storage).create() for _ in range(20)))
    stale = sagas[3]
    assert stale.lease is not None
    await sql_storage.release(stale.lease)
    await acquire_when_free(sql_storage, stale.saga_id)
    bad = sagas[7]
    before = bad.state
    (entry,) = bad.decide(e.StepReplied("Reserve", Action.ACT, 1, "r", Outcome.DONE))
    nameless: Any = None
    poison = LogEntry(entry.seq, entry.at_ms, nameless, entry.changes)  # the column takes no NULL
    assert bad.lease is not None
    results = await asyncio.gather(
        sql_storage.commit(bad.lease, bad.state, [poison], release=False),
        *(saga.act("Reserve") for saga in sagas if saga is not bad),
        *(StoredSaga(sql_storage).create() for _ in range(3)),
        return_exceptions=True,
    )
    assert isinstance(results[0], sa.exc.IntegrityError)
    errors = [result for result in results[1:] if isinstance(result, BaseException)]
    assert [type(error) for error in errors] == [LeaseLost]
    for saga in sagas:
        if saga is not bad and saga is not stale:
            await assert_stored(saga)
    bad.state, bad.entries = before, bad.entries[:-1]
    await assert_stored(bad)


async def test_a_waiter_that_leaves_disturbs_nobody(storage: SagaStorage) -> None:
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(20)))
    tasks = [asyncio.create_task(saga.act("Reserve")) for saga in sagas]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks)
    for task, saga in zip(tasks, sagas, strict=True):
        if not task.cancelled():
            task.result()
            await assert_stored(saga)
    assert not any(task.cancelled() for task in tasks[1::2])


# --- databases -------------------------------------------------------------------------------------------------------


async def test_namespaces_do_not_see_each_other(sql_storage: SqlAlchemySagaStorage) -> None:
    saga = await StoredSaga(sql_storage).create(lease_ms=0)
    await sql_storage.save_plan(PLAN)
    url = sql_storage._url
    other = SqlAlchemySagaStorage(url, namespace="other")
    assert other.key != sql_storage.key
    assert await other.load(saga.saga_id) is None
    assert await other.acquire(saga.saga_id, lease_ms=1) is None
    assert await other.history(saga.saga_id) == []
    assert await other.list_sagas(limit=10) == await other.due(names=["Order"], limit=10) == []
    assert await other.load_plan(PLAN.hash) is None
    assert saga.lease is not None
    with pytest.raises(LeaseLost):
        await other.commit(saga.lease, saga.state, [], release=True)
    with pytest.raises(SagaConflict, match="namespace 'watership'"):
        await other.create(saga.saga_id, saga.state, saga.entries[0], input_hash="x", lease_ms=1)
    await other.close()


async def test_the_keeper_keeps_what_is_held(sql_storage: SqlAlchemySagaStorage) -> None:
    keeper = LeaseThread(sql_storage._url, "watership", lease_ms=400)
    held, dropped, lost = [await StoredSaga(sql_storage).create(lease_ms=400) for _ in range(3)]
    assert held.lease is not None
    assert dropped.lease is not None
    assert lost.lease is not None
    await sql_storage.release(lost.lease)
    taken = await acquire_when_free(sql_storage, lost.saga_id)
    await sql_storage.release(taken)
    for saga in (held, dropped, lost):
        assert saga.lease is not None
        keeper.hold(saga.lease)
    keeper.drop(dropped.lease)
    await acquire_when_free(sql_storage, dropped.saga_id)  # by now the first lease of `held` has run out as well
    assert isinstance(await sql_storage.acquire(held.saga_id, lease_ms=1), HeldElsewhere)
    assert isinstance(await sql_storage.acquire(lost.saga_id, lease_ms=LEASE_MS), Lease)
    keeper.stop()
    await acquire_when_free(sql_storage, held.saga_id)
