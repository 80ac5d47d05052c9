"""What goes when a database is pruned, what stays of it, and what a start of a pruned id gets: on SQLite and on Postgres."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from watership import SagaConflict, SagaMap, SagaNotFound, SagaPruned, bootstrap
from watership.errors import LimitExceeded
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Status
from watership.saga.storage.pruning import CHUNK, Pruned, Pruner
from watership.saga.storage.schema import saga_table
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

from tests.support.order_steps import OrderContext, OrderSaga
from tests.support.stored_sagas import LEASE_MS, StoredSaga

DAY_MS = 86_400_000


async def execute(url: str, statement: str, **values: object) -> list[Any]:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        result = await connection.execute(sa.text(statement), values)
        rows = list(result.all()) if result.returns_rows else []
    await engine.dispose()
    return rows


async def make_old(url: str, days: int = 40) -> None:
    """As if all this had happened so long ago."""
    for column in ("created_at_ms", "updated_at_ms"):
        await execute(url, f"UPDATE watership_saga SET {column} = {column} - :ms", ms=days * DAY_MS)
    for table in ("ledger", "dead_letter", "signal"):
        await execute(url, f"UPDATE watership_{table} SET at_ms = at_ms - :ms", ms=days * DAY_MS)


async def prune(
    url: str, days: float = 30, *, namespace: str = "watership", dry_run: bool = False, retention_days: float = 7
) -> Pruned:
    age_ms, retention_ms = round(days * DAY_MS), round(retention_days * DAY_MS)
    return await Pruner(url, namespace, older_than_ms=age_ms, retention_ms=retention_ms).run(dry_run=dry_run)


async def test_only_what_is_over_and_old_goes(sql_storage: SqlAlchemySagaStorage, sql_url: str) -> None:
    done, undone, running, parked = [await StoredSaga(sql_storage).create() for _ in range(4)]
    others = SqlAlchemySagaStorage(sql_url, namespace="other")
    foreign = await StoredSaga(others).create()
    for saga in (done, foreign):
        await saga.complete()
    await undone.fail("Reserve")
    await parked.park()
    await make_old(sql_url)
    young = await StoredSaga(sql_storage).create()
    await young.complete()
    for saga in (done, running):
        await sql_storage.keep_in_ledger(saga.saga_id, "late", "{}")
    await make_old(sql_url, 0)
    counted = await prune(sql_url, dry_run=True)
    assert counted.sagas == 2
    assert await sql_storage.load(done.saga_id) is not None, "a dry run removes nothing"
    assert (await prune(sql_url)).sagas == 2
    assert {line.saga_id for line in await sql_storage.list_sagas(limit=10)} == {
        running.saga_id,
        parked.saga_id,
        young.saga_id,
    }
    for gone in (done, undone):
        assert await sql_storage.load(gone.saga_id) is None
        assert await sql_storage.history(gone.saga_id) == []
        logged = await execute(sql_url, "SELECT saga_id FROM watership_log")
        assert gone.saga_id.hex not in {str(row[0]).replace("-", "") for row in logged}
    tombstone = await sql_storage.tombstone(done.saga_id)
    assert tombstone is not None
    assert (tombstone.name, tombstone.status, tombstone.ours) == ("Order", Status.COMPLETED, True)
    assert (await prune(sql_url, namespace="other")).sagas == 1
    stranger = await sql_storage.tombstone(foreign.saga_id)
    assert stranger is not None
    assert not stranger.ours
    assert await prune(sql_url) == Pruned(), "what is gone is gone"
    await others.close()


async def test_more_than_a_chunk(sql_storage: SqlAlchemySagaStorage, sql_url: str) -> None:
    saga = await StoredSaga(sql_storage).create()
    await saga.complete()
    columns = ", ".join(column.name for column in saga_table.columns if column.name != "saga_id")
    numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {CHUNK * 2 + 3})"
    saga_id = "CAST(lpad(CAST(n AS text), 32, '0') AS uuid)" if "postgresql" in sql_url else "printf('%032d', n)"
    rows = f"SELECT {saga_id}, {columns} FROM watership_saga CROSS JOIN numbers"  # all of one moment, as in a bulk of starts
    await execute(sql_url, f"INSERT INTO watership_saga (saga_id, {columns}) {numbers} {rows}")
    await make_old(sql_url)
    assert (await prune(sql_url)).sagas == CHUNK * 2 + 4
    (count,) = await execute(sql_url, "SELECT count(*) FROM watership_tombstone")
    assert count[0] == CHUNK * 2 + 4


async def test_old_ledger_lines_dead_letters_and_signals_go_with_their_sagas(
    sql_storage: SqlAlchemySagaStorage, sql_url: str
) -> None:
    ended, running = [await StoredSaga(sql_storage).create() for _ in range(2)]
    await ended.complete()
    for saga in (ended, running):
        await sql_storage.keep_in_ledger(saga.saga_id, "late", "{}")
        await execute(
            sql_url,
            "INSERT INTO watership_signal (namespace, saga_id, signal_id, driver, name, data, at_ms) "
            f"VALUES ('watership', '{saga.saga_id.hex}', 's', 'embedded', 'approval', '{{}}', :now)",
            now=await sql_storage.now_ms(),
        )
    for judged in ("'discarded'", "NULL"):
        await execute(
            sql_url,
            "INSERT INTO watership_dead_letter (namespace, queue, reason, kind, headers, body, at_ms, judged) "
            f"VALUES ('watership', 'q', 'rejected', 'x', '{{}}', '', :now, {judged})".replace(
                "''", "''" if sql_url.startswith("postgresql") else "x''"
            ),
            now=await sql_storage.now_ms(),
        )
    await make_old(sql_url)
    await sql_storage.keep_in_ledger(ended.saga_id, "later", "{}")
    assert await prune(sql_url) == Pruned(sagas=1, ledger_lines=1, dead_letters=1, signals=1)
    assert [line.reason for line in await sql_storage.ledger(saga_id=ended.saga_id, limit=9)] == ["later"]
    assert [line.reason for line in await sql_storage.ledger(saga_id=running.saga_id, limit=9)] == ["late"]
    assert [row[0] for row in await execute(sql_url, "SELECT judged FROM watership_dead_letter")] == [None]


async def test_the_id_of_a_pruned_saga_stays_taken(sql_storage: SqlAlchemySagaStorage, sql_url: str) -> None:
    mapper = SagaMap()
    mapper.bind(OrderContext, OrderSaga)
    saga_id = uuid.uuid4()
    async with bootstrap(sagas_mapper=mapper, database_url=sql_url, recover_every_s=0) as mediator:
        await mediator.run(OrderContext("1"), saga_id)
        await make_old(sql_url)
        assert (await prune(sql_url)).sagas == 1
        assert await mediator.start(OrderContext("1"), saga_id) == saga_id, "the same saga: known, and over"
        with pytest.raises(SagaPruned, match=f"OrderSaga {saga_id} ended COMPLETED and was pruned"):
            await mediator.result(saga_id)
        with pytest.raises(SagaPruned):
            await mediator.run(OrderContext("1"), saga_id)
        with pytest.raises(SagaConflict, match="pruned"):
            await mediator.run(OrderContext("2"), saga_id)
        assert await sql_storage.load(saga_id) is None
        with pytest.raises(SagaNotFound):
            await mediator.result(uuid.uuid4())


async def test_nothing_is_pruned_for_which_a_message_may_still_come(
    sql_storage: SqlAlchemySagaStorage, sql_url: str
) -> None:
    slow = StepPlan("Slow", "q", queue_within_ms=2 * DAY_MS, timeout_ms=60_000)
    await sql_storage.save_plan(Plan("Order", (StepPlan("A", "q"), slow)))
    saga = await StoredSaga(sql_storage).create()
    await saga.complete()
    await make_old(sql_url, 4)
    with pytest.raises(LimitExceeded, match=r"in seconds, is 172800, the limit is 172860; .*DEAD_LETTER_RETENTION_S"):
        await prune(sql_url, 2)
    await execute(sql_url, "UPDATE watership_saga SET driver = 'orchestrator'")
    with pytest.raises(LimitExceeded, match="the limit is 259260"):
        await prune(sql_url, 3, retention_days=1)
    assert (await prune(sql_url, 3.1, retention_days=1)).sagas == 1


async def test_a_saga_that_came_back_is_not_pruned(sql_storage: SqlAlchemySagaStorage, sql_url: str) -> None:
    """Its tombstone was laid, and then a late act came: it stays, and its start is still known by its row."""
    saga = await StoredSaga(sql_storage).create()
    await saga.complete()
    await make_old(sql_url)
    pruner = Pruner(sql_url, "watership", older_than_ms=30 * DAY_MS, retention_ms=0)
    before_ms = await sql_storage.now_ms() - 30 * DAY_MS
    await pruner._leave_tombstones([saga.saga_id], before_ms)
    await execute(sql_url, "UPDATE watership_saga SET updated_at_ms = updated_at_ms + :ms", ms=40 * DAY_MS)
    assert await pruner._remove_sagas([saga.saga_id], before_ms) == 0
    assert await sql_storage.load(saga.saga_id) is not None
    (entry,) = saga.entries[:1]
    assert await sql_storage.create(saga.saga_id, saga.state, entry, input_hash="x", lease_ms=LEASE_MS) is None
