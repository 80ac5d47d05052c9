"""What only Postgres can show: heap-only updates, query plans, lost connections, its refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from watership.errors import ConfigurationError, LeaseLost, StoreUnavailable
from watership.machine import events as e
from watership.machine.state import Status
from watership.saga.storage.queries import PostgresQueries, Write, Written
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

from tests.support.databases import empty_database
from tests.support.servers import Servers
from tests.support.stored_sagas import LEASE_MS, PLAN, StoredSaga, eventually

pytestmark = pytest.mark.servers


@pytest.fixture
def empty_database_url(servers: Servers) -> Iterator[str]:
    with empty_database(servers.database_url) as url:
        yield url


@pytest.fixture
async def admin(database_url: str) -> Any:
    engine = create_async_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


async def scalar(engine: AsyncEngine, statement: str) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(sa.text(statement))).scalar_one()


async def test_the_writes_of_a_running_saga_are_heap_only(database_url: str, admin: AsyncEngine) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(5)))
    now_ms = await storage.now_ms()
    for turn in range(1, 101):
        for saga in sagas:
            saga.decide(e.TimePassed(), now_ms=now_ms + turn * 10_000_000)
        await asyncio.gather(
            *(storage.commit(saga.lease, saga.state, saga.entries[-1:], release=False) for saga in sagas if saga.lease)
        )
        if turn % 10 == 0:
            await storage.renew([saga.lease for saga in sagas if saga.lease], lease_ms=LEASE_MS)
    await storage.close()

    async def counted() -> bool:  # a backend reports what it did when it ends
        return int(await scalar(admin, f"SELECT n_tup_upd {FROM_STATISTICS}")) >= 500

    await eventually(counted)
    hot, updates = await scalar(admin, f"SELECT ARRAY[n_tup_hot_upd, n_tup_upd] {FROM_STATISTICS}")
    # 550 of 550 where we are alone. A transaction that anybody on the server holds open, even in another database, keeps
    # dead versions from being pruned, and rows move to other pages: 425. An index on what changes would give 0.
    assert hot / updates > 0.7


FROM_STATISTICS = "FROM pg_stat_user_tables WHERE relname = 'watership_saga'"


async def test_what_is_due_is_found_by_the_index(database_url: str, admin: AsyncEngine) -> None:
    engine = create_async_engine(database_url)
    storage = SqlAlchemySagaStorage(engine)
    saga = await StoredSaga(storage).create()
    await saga.complete()
    columns = "namespace, driver, name, plan_hash, seq, context, state, input_hash, machine_version"
    async with admin.connect() as connection:
        await connection.exec_driver_sql(
            f"INSERT INTO watership_saga (saga_id, status, wake_at_ms, created_at_ms, updated_at_ms, {columns}) "
            f"SELECT gen_random_uuid(), CASE WHEN n % 100 = 0 THEN 'RUNNING' ELSE 'COMPLETED' END, "
            f"CASE WHEN n % 100 = 0 THEN n END, n, n, {columns} FROM watership_saga, generate_series(1, 50000) AS n"
        )
        await connection.exec_driver_sql("ANALYZE watership_saga")
    seen: list[tuple[str, Any]] = []
    sa.event.listen(
        engine.sync_engine, "before_cursor_execute", lambda _c, _k, sql, values, *_: seen.append((sql, values))
    )
    found = await storage.due(names=["Order"], limit=50)
    assert len(found) == 50
    (sql, values) = seen[-1]
    async with engine.connect() as connection:
        rows = (await connection.exec_driver_sql(f"EXPLAIN {sql}", values)).scalars().all()
    assert "watership_saga_wake" in "\n".join(rows)
    assert "Seq Scan" not in "\n".join(rows)
    await engine.dispose()


@pytest.mark.parametrize("ours", [True, False], ids=["our engine", "the user's engine"])
async def test_commits_go_by_the_key_from_the_first_row_on(ours: bool, database_url: str, admin: AsyncEngine) -> None:
    engine = create_async_engine(database_url)
    storage = SqlAlchemySagaStorage(database_url if ours else engine)
    for _ in range(3):
        sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(200)))
        await asyncio.gather(*(saga.complete() for saga in sagas))
    await storage.close()
    await engine.dispose()

    async def counted() -> bool:
        return int(await scalar(admin, f"SELECT n_tup_upd {FROM_STATISTICS}")) >= 1_800

    await eventually(counted)
    assert int(await scalar(admin, f"SELECT seq_tup_read {FROM_STATISTICS}")) < 100


async def test_sagas_outlast_connections_that_are_killed(database_url: str, admin: AsyncEngine) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(40)))
    killed: list[int] = []

    async def kill_between(place: int, saga: StoredSaga) -> None:
        await saga.act("Reserve")
        if place % 8 == 0:  # while the others are writing
            statement = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name = 'watership' AND datname = current_database()"
            )
            killed.append(await scalar(admin, statement))
        await saga.act("Charge")
        await saga.act("Ship", release=True)

    await asyncio.gather(*(kill_between(place, saga) for place, saga in enumerate(sagas)))
    assert sum(killed) > 0
    for saga in sagas:
        record = await storage.load(saga.saga_id)
        assert record is not None
        assert record.state == saga.state
        assert await storage.history(saga.saga_id) == saga.entries
    await storage.close()


class Forgetful(PostgresQueries):
    """Loses the connection after the next write was committed, or before it was sent."""

    def __init__(self) -> None:
        super().__init__("watership")
        self.fail: str | None = None

    async def write(self, connection: AsyncConnection, writes: Sequence[Write]) -> Written:
        how, self.fail = self.fail, None
        if how == "before":
            raise ConnectionResetError("cut")
        written = await super().write(connection, writes)
        if how == "after":
            raise ConnectionResetError("cut")
        return written


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_whose_outcome_is_unknown_is_found_out(when: str, database_url: str) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    storage._database().queries = queries = Forgetful()
    saga = await StoredSaga(storage).create()
    queries.fail = when
    await saga.act("Reserve")
    assert await storage.history(saga.saga_id) == saga.entries
    assert saga.lease is not None
    await storage.release(saga.lease)
    former, saga.lease = saga.lease, await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)  # type: ignore[assignment]
    entries = saga.decide(e.TimePassed(), now_ms=9_999_999_999_999)
    queries.fail = when
    with pytest.raises(LeaseLost):
        await storage.commit(former, saga.state, entries, release=False)
    await storage.close()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_create_whose_outcome_is_unknown_is_never_held_twice(when: str, database_url: str) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    storage._database().queries = queries = Forgetful()
    saga = StoredSaga(storage)
    (entry,) = saga.decide(e.SagaStarted("Order", {}, PLAN.hash))
    queries.fail = when
    lease = await storage.create(saga.saga_id, saga.state, entry, input_hash="x", lease_ms=LEASE_MS)
    assert (lease is None) is (when == "after")
    assert await storage.history(saga.saga_id) == [entry]
    await storage.close()


async def test_a_text_that_postgres_refuses_fails_alone(database_url: str) -> None:
    storage = SqlAlchemySagaStorage(database_url)
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(5)))
    sagas[0].state.parked_reason = "a NUL: \0"
    results = await asyncio.gather(*(saga.act("Reserve") for saga in sagas), return_exceptions=True)
    assert [isinstance(result, sa.exc.DBAPIError) for result in results] == [True, False, False, False, False]
    await storage.close()


async def test_not_migrated(empty_database_url: str) -> None:
    storage = SqlAlchemySagaStorage(empty_database_url)
    saga = StoredSaga(storage)
    for call in (saga.create(), storage.due(names=["x"], limit=1), storage.acquire(saga.saga_id, lease_ms=1)):
        with pytest.raises(ConfigurationError, match=r"no Watership tables.*watership db upgrade"):
            await call
    await storage.create_tables()
    await (await StoredSaga(storage).create()).complete()
    assert len(await storage.list_sagas(limit=5, status=Status.COMPLETED)) == 1
    await storage.close()


async def test_what_cannot_be_reached_or_refuses_us(database_url: str) -> None:
    url = sa.make_url(database_url).set(password="hush-hush")
    for broken, words in (
        (url.set(username="nobody_here"), "refuses us.*nobody_here"),
        (url.set(database="no_such_database"), "refuses us.*no_such_database"),
        (url.set(port=1), "cannot be reached"),
        (url.set(host="no-such-host.invalid"), "cannot be reached"),
    ):
        storage = SqlAlchemySagaStorage(broken)
        with pytest.raises(StoreUnavailable, match=words) as caught:
            await storage.now_ms()
        assert "hush-hush" not in str(caught.value)
        with pytest.raises(StoreUnavailable, match=words):
            await StoredSaga(storage).create()
        await storage.close()


async def test_a_refused_login_is_told_without_the_password(database_url: str, admin: AsyncEngine) -> None:
    # A server that trusts its host asks for no password: a role that may not log in is refused alike, with class 28.
    async with admin.connect() as connection:
        await connection.exec_driver_sql("CREATE ROLE watership_shut NOLOGIN")
    try:
        url = sa.make_url(database_url).set(username="watership_shut", password="hush-hush")
        storage = SqlAlchemySagaStorage(url)
        with pytest.raises(StoreUnavailable, match=r"refuses us.*not permitted to log in") as caught:
            await storage.list_sagas(limit=1)
        assert "hush-hush" not in str(caught.value)
        await storage.close()
    finally:
        async with admin.connect() as connection:
            await connection.exec_driver_sql("DROP ROLE watership_shut")
