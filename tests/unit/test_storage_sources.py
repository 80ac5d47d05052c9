"""What a SqlAlchemySagaStorage may be made of, what storages share, and what is said when it cannot work."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from watership.errors import ConfigurationError, StoreUnavailable
from watership.saga.storage import engines
from watership.saga.storage.sqlalchemy import Base, Source, SqlAlchemySagaStorage
from watership.saga.storage.trouble import Trouble, trouble_of

from tests.support.stored_sagas import PLAN, StoredSaga, eventually


async def test_a_session_as_in_the_seeds(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url)
    session_factory = async_sessionmaker(engine, expire_on_commit=False)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    storage = SqlAlchemySagaStorage(session_factory())
    saga = await StoredSaga(storage).create()
    await saga.complete()
    assert isinstance(storage.session, AsyncSession)
    await storage.session.commit()
    another = SqlAlchemySagaStorage(session_factory())
    assert another.key == storage.key
    record = await another.load(saga.saga_id)
    assert record is not None
    assert record.state == saga.state
    await storage.close()
    async with engine.connect() as connection:  # the user's engine is the user's to close
        assert await connection.scalar(sa.text("SELECT count(*) FROM watership_saga")) == 1
    await storage.session.close()
    await another.session.close()
    await engine.dispose()


@pytest.mark.parametrize("source", ["engine", "factory", "session on a connection", "url"])
async def test_other_sources(source: str, sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url)
    connection = await engine.connect()
    sources: dict[str, Source] = {
        "engine": engine,
        "factory": async_sessionmaker(engine),
        "session on a connection": AsyncSession(connection),
        "url": sqlite_url.replace("+aiosqlite", ""),
    }
    storage = SqlAlchemySagaStorage(sources[source])
    await storage.create_tables()
    await (await StoredSaga(storage).create()).complete()
    assert storage.key == SqlAlchemySagaStorage(sqlite_url).key
    await storage.close()
    await connection.close()
    await engine.dispose()


@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT"])
async def test_an_engine_that_begins_by_itself_and_one_that_never_does(
    isolation_level: str | None, sqlite_url: str
) -> None:
    options = {"isolation_level": isolation_level} if isolation_level else {}
    engine = create_async_engine(sqlite_url, **options)
    if isolation_level is None:  # SQLAlchemy's own recipe for transactions on SQLite
        sa.event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    storage = SqlAlchemySagaStorage(engine)
    await storage.create_tables()
    sagas = await asyncio.gather(*(StoredSaga(storage).create() for _ in range(10)))
    await asyncio.gather(*(saga.complete() for saga in sagas))
    assert (await storage.history(sagas[0].saga_id)) == sagas[0].entries
    await engine.dispose()


async def test_databases_in_memory_are_each_their_own() -> None:
    one, two = SqlAlchemySagaStorage("sqlite://"), SqlAlchemySagaStorage("sqlite+aiosqlite:///:memory:")
    assert one.key != two.key
    assert one.keeper() is two.keeper() is None
    await one.create_tables()
    saga = await StoredSaga(one).create()
    others = [await StoredSaga(one).create() for _ in range(5)]
    readers = (one.load(saga.saga_id) for _ in range(20))
    await asyncio.gather(saga.complete(), *readers, *(other.complete() for other in others))
    assert (await one.history(saga.saga_id)) == saga.entries
    with pytest.raises(ConfigurationError):
        await two.load(saga.saga_id)
    await one.close()
    await two.close()


async def test_storages_of_one_url_share_an_engine_until_the_last_is_closed(sqlite_url: str) -> None:
    one, two = SqlAlchemySagaStorage(sqlite_url), SqlAlchemySagaStorage(sqlite_url)
    await one.create_tables()
    await two.now_ms()
    assert one._database() is two._database()
    await one.close()
    assert (await StoredSaga(two).create()).lease is not None
    shared = two._database()
    await two.close()
    assert two._database() is not shared, "a storage that was closed opens again when it is used"
    await two.close()
    await two.close()


def test_making_a_storage_opens_nothing_and_a_closed_loop_is_forgotten(sqlite_url: str) -> None:
    storage = SqlAlchemySagaStorage(sqlite_url)
    assert storage.key == SqlAlchemySagaStorage(sqlite_url).key
    assert not Path(sqlite_url.removeprefix("sqlite+aiosqlite:///")).exists()

    async def use() -> None:
        await storage.create_tables()
        await storage.close()

    async def leave_open() -> None:
        engine = create_async_engine(sqlite_url)
        await SqlAlchemySagaStorage(engine).now_ms()
        await engine.dispose()

    asyncio.run(use())
    asyncio.run(leave_open())
    asyncio.run(use())
    gc.collect()
    assert not [loop for loop, *_ in engines._DATABASES if loop.is_closed()]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url with secret", "this is not a database URL"),
        ("mysql://root:secret@host/x", "mysql:// is of no use here"),
        ("postgresql+psycopg2://root:secret@host/x", "asyncpg"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        SqlAlchemySagaStorage(url)
    assert "secret" not in str(caught.value)


def test_sources_that_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a Session"):
        SqlAlchemySagaStorage(Session())  # type: ignore[arg-type]  # the mistake that the message is for
    with pytest.raises(ConfigurationError, match="no engine"):
        SqlAlchemySagaStorage(AsyncSession())
    with pytest.raises(ConfigurationError, match="has no session"):
        _ = SqlAlchemySagaStorage("sqlite:///x.db").session


def test_keys_tell_databases_and_namespaces_apart_not_logins() -> None:
    def key(url: str, namespace: str = "watership") -> object:
        return SqlAlchemySagaStorage(url, namespace=namespace).key

    ours = key("postgresql://ann:one@db/orders")
    assert ours == key("postgresql+asyncpg://bob:two@db:5432/orders")
    assert ours != key("postgresql://ann:one@db/other")
    assert ours != key("postgresql://ann:one@db/orders", "other")
    assert "one" not in str(ours)
    assert key("sqlite:///x.db") == key("sqlite+aiosqlite:///./x.db")


async def test_a_database_without_tables_says_what_to_do(sqlite_url: str) -> None:
    storage = SqlAlchemySagaStorage(sqlite_url)
    saga = StoredSaga(storage)
    for call in (
        saga.create(),
        storage.load(saga.saga_id),
        storage.acquire(saga.saga_id, lease_ms=1),
        storage.due(names=["x"], limit=1),
        storage.history(saga.saga_id),
        storage.list_sagas(limit=1),
        storage.save_plan(PLAN),
        storage.load_plan("x"),
        storage.get_step_history(saga.saga_id),
        storage.load_saga_state(saga.saga_id),
    ):
        with pytest.raises(ConfigurationError, match=r"no Watership tables.*watership db upgrade.*create_tables"):
            await call
    await storage.close()


async def test_a_file_that_cannot_be_opened_says_so() -> None:
    storage = SqlAlchemySagaStorage("sqlite:////no/such/folder/x.db")
    with pytest.raises(StoreUnavailable, match="unable to open database file"):
        await storage.now_ms()
    with pytest.raises(StoreUnavailable):
        await StoredSaga(storage).create()
    await storage.close()

    async def its_threads_ended() -> bool:  # aiosqlite ends one by the loop, which must not be closed by then
        return not any("_connection_worker_thread" in thread.name for thread in threading.enumerate())

    await eventually(its_threads_ended)


async def test_a_locked_database_is_waited_for(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url, connect_args={"timeout": 0})  # no patience but ours
    storage = SqlAlchemySagaStorage(engine)
    await storage.create_tables()
    saga = await StoredSaga(storage).create()
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite+aiosqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    commit = asyncio.create_task(saga.act("Reserve"))
    locked = asyncio.Event()
    sa.event.listen(engine.sync_engine, "handle_error", lambda _context: locked.set())
    await asyncio.wait_for(locked.wait(), 5)
    other.execute("COMMIT")
    other.close()
    await commit
    await engine.dispose()


def test_an_error_of_a_statement_is_nobodys_trouble() -> None:
    assert trouble_of(ValueError("no such table: watership_saga")) is Trouble.OTHER
    assert trouble_of(sa.exc.TimeoutError("pool")) is Trouble.REFUSED
    assert trouble_of(ConnectionResetError()) is trouble_of(TimeoutError()) is Trouble.LOST
