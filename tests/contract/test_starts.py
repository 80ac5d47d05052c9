"""Sagas that are started in a transaction of the caller's, and run in this process: on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from watership import (
    ConfigurationError,
    MemorySagaStorage,
    Response,
    Saga,
    SagaContext,
    SagaMap,
    SagaMediator,
    SagaParked,
    SagaStepHandler,
    bootstrap,
    recover_saga,
)
from watership.machine.state import Status
from watership.saga.drivers import Drivers, drivers_for
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage


@dataclasses.dataclass
class Note(SagaContext):
    text: str
    seen: int = 0


class Read(SagaStepHandler[Note, Response]):
    async def act(self, context: Note) -> None:
        context.seen += 1


class NoteSaga(Saga[Note]):
    steps = [Read]


def sagas() -> SagaMap:
    mapper = SagaMap()
    mapper.bind(Note, NoteSaga)
    return mapper


@pytest.fixture
async def engine(sql_url: str) -> AsyncIterator[AsyncEngine]:
    """The caller's own."""
    made = create_async_engine(sql_url, poolclass=NullPool)
    yield made
    await made.dispose()


@pytest.fixture
async def mediator(sql_storage: SqlAlchemySagaStorage) -> AsyncIterator[SagaMediator]:
    async with bootstrap(sagas_mapper=sagas(), saga_storage=sql_storage, recover_every_s=0) as made:
        yield made


@pytest.fixture
async def drivers(mediator: SagaMediator, sql_storage: SqlAlchemySagaStorage) -> Drivers:
    assert mediator, "it binds the saga to the drives of its store"
    return drivers_for(sql_storage)


async def waiting(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(sa.text("SELECT count(*) FROM watership_start"))).scalar_one())


async def write(engine: AsyncEngine, saga_id: uuid.UUID, context: str, saga: str = "NoteSaga") -> None:
    """A start as another program writes it."""
    async with engine.begin() as connection:
        query = "INSERT INTO watership_start (namespace, driver, saga_id, saga, context, at_ms) VALUES "
        query += f"('watership', 'embedded', '{saga_id.hex}', :saga, :context, 1)"
        await connection.execute(sa.text(query), {"saga": saga, "context": context})


async def test_it_starts_if_its_caller_commits_and_never_if_it_rolls_back(
    mediator: SagaMediator, drivers: Drivers, engine: AsyncEngine
) -> None:
    async with AsyncSession(engine) as session:
        kept = await mediator.start(Note("kept"), session=session)
        await session.commit()
        await mediator.start(Note("lost"), session=session)
        await session.rollback()
    async with engine.begin() as connection:
        other = await mediator.start(Note("too"), uuid.uuid4(), session=connection)
    assert await waiting(engine) == 2
    assert len(await drivers.recover_once()) == 2
    for saga_id, text in ((kept, "kept"), (other, "too")):
        result = await mediator.result(saga_id, timeout_s=10)
        assert (result.status, result.context) == (Status.COMPLETED, Note(text, 1))
    assert await waiting(engine) == 0
    assert await drivers.recover_once() == []


async def test_the_right_to_insert_is_all_that_it_takes(mediator: SagaMediator, engine: AsyncEngine) -> None:
    statements: list[str] = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    async with engine.connect() as connection:
        await mediator.start(Note("a"), session=connection)
    (statement,) = [text for text in statements if "watership" in text]
    assert statement.startswith("INSERT INTO watership_start ")
    assert "RETURNING" not in statement
    assert "SELECT" not in statement.replace("julianday", "")


async def test_the_same_start_twice_is_one_saga_and_another_input_is_in_the_ledger(
    mediator: SagaMediator, drivers: Drivers, engine: AsyncEngine, sql_storage: SqlAlchemySagaStorage
) -> None:
    saga_id = uuid.uuid4()
    for text in ("a", "a", "b"):
        async with engine.begin() as connection:
            await mediator.start(Note(text), saga_id, session=connection)
    await drivers.recover_once()
    result = await mediator.result(saga_id, timeout_s=10)
    assert result.context == Note("a", 1)
    (line,) = await sql_storage.ledger(saga_id=saga_id, limit=9)
    assert "started with other input" in line.reason
    assert await waiting(engine) == 0


@pytest.mark.parametrize(
    ("context", "reason"),
    [("{nonsense", "is not JSON"), ('{"seen": 1}', "does not fit Note"), ("7", "must be a JSON object")],
)
async def test_one_that_cannot_be_used_is_parked(
    mediator: SagaMediator,
    drivers: Drivers,
    engine: AsyncEngine,
    sql_storage: SqlAlchemySagaStorage,
    context: str,
    reason: str,
) -> None:
    bad, good = uuid.uuid4(), uuid.uuid4()
    await write(engine, bad, context)
    await write(engine, good, '{"text": "a"}')
    await drivers.recover_once()
    assert (await mediator.result(good, timeout_s=10)).completed
    result = await sql_storage.load(bad)
    assert result is not None
    assert result.state.status is Status.PENDING
    assert reason in (result.state.parked_reason or "")
    assert await sql_storage.due(names=["NoteSaga"], limit=9) == []
    with pytest.raises(SagaParked, match="is parked"):
        await recover_saga(NoteSaga, bad, Note, None, sql_storage)
    await write(engine, bad, context)
    await drivers.recover_once()
    assert "its id is taken" in (await sql_storage.ledger(saga_id=bad, limit=1))[0].reason
    assert await waiting(engine) == 0


async def test_a_saga_that_is_not_bound_here_is_left_to_who_has_it(drivers: Drivers, engine: AsyncEngine) -> None:
    await write(engine, uuid.uuid4(), "{}", saga="Elsewhere")
    assert await drivers.recover_once() == []
    assert await waiting(engine) == 1


async def test_a_row_that_was_taken_up_by_one_who_died_is_taken_up_again(
    mediator: SagaMediator, drivers: Drivers, engine: AsyncEngine, sql_storage: SqlAlchemySagaStorage
) -> None:
    saga_id = uuid.uuid4()
    await write(engine, saga_id, '{"text": "a"}')
    (row,) = await sql_storage.take_starts(names=["NoteSaga"], limit=9, hold_ms=60_000)
    assert row.saga_id == saga_id
    assert await drivers.recover_once() == [], "somebody else is at it"
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE watership_start SET look_at_ms = 1"))
    assert len(await drivers.recover_once()) == 1
    assert (await mediator.result(saga_id, timeout_s=10)).completed


async def test_two_processes_take_each_row_once(sql_storage: SqlAlchemySagaStorage, engine: AsyncEngine) -> None:
    ids = [uuid.uuid4() for _ in range(20)]
    for saga_id in ids:
        await write(engine, saga_id, '{"text": "a"}')
    taken = await asyncio.gather(
        *(sql_storage.take_starts(names=["NoteSaga"], limit=15, hold_ms=60_000) for _ in range(3))
    )
    found = [row.saga_id for rows in taken for row in rows]
    assert len(found) == len(set(found))
    assert set(found) <= set(ids)


async def test_sagas_in_memory_have_no_transactions(engine: AsyncEngine) -> None:
    async with (
        bootstrap(sagas_mapper=sagas(), saga_storage=MemorySagaStorage(), recover_every_s=0) as front,
        engine.connect() as connection,
    ):
        with pytest.raises(ConfigurationError, match="live in memory"):
            await front.start(Note("a"), session=connection)
