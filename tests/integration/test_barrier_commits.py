"""Commits that PostgreSQL refuses, or answers by a rollback without a word: the run behind the barrier is never done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import barrier
from watership.machine.state import Action, Outcome

from tests.support.barred_step import (
    Bench,
    Effect,
    Order,
    create_tables,
    foreign_keys_at_commit,
    orphan,
    take_effect,
)

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def bench(engine: AsyncEngine) -> Bench:
    return Bench(engine)


async def test_a_constraint_that_is_looked_at_by_the_commit(bench: Bench) -> None:
    await foreign_keys_at_commit(bench.engine)

    async def body(context: Order) -> None:
        with contextlib.suppress(IntegrityError):
            async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                await take_effect(session, context, "no")
                await session.execute(orphan())

    await bench.had_none(await bench.act(body), Outcome.UNKNOWN, "violates foreign key constraint")


async def test_a_commit_that_cannot_be_serialized(bench: Bench) -> None:
    strict = bench.engine.execution_options(isolation_level="SERIALIZABLE")
    count = sa.select(sa.func.count()).select_from(Effect)

    async def body(context: Order) -> None:
        async with AsyncSession(strict) as session:
            async with barrier(session):
                await session.execute(count)
                await take_effect(session, context, "no")
            async with AsyncSession(strict) as other, other.begin():
                await other.execute(count)
                await other.execute(sa.insert(Effect).values(saga_id="other", action="act", run="other"))
            with contextlib.suppress(DBAPIError):
                await session.commit()

    await bench.had_none(await bench.act(body), Outcome.UNKNOWN, "could not serialize access")


async def test_what_failed_on_the_drivers_own_connection_is_found_out_by_the_settling(bench: Bench) -> None:
    """SQLAlchemy hears nothing of it, and COMMIT would be a rollback without a word: so no block ends without a statement."""

    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "no")
            driver = (await (await session.connection()).get_raw_connection()).driver_connection
            assert driver is not None
            with contextlib.suppress(Exception):
                await driver.execute("SELECT 1 / 0")

    await bench.had_none(await bench.act(body), Outcome.FAILED, "current transaction is aborted")


async def test_a_link_that_is_cut_before_the_commit(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            async with barrier(session):
                await take_effect(session, context, "no")
            pid = (await session.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
            async with bench.engine.connect() as other:
                await other.execute(sa.text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
            with contextlib.suppress(DBAPIError):
                await session.commit()

    await bench.had_none(await bench.act(body), Outcome.UNKNOWN, "the commit of its barrier's transaction failed")


async def test_a_block_that_finds_its_connection_gone_tells_the_pool_of_the_others(bench: Bench) -> None:
    """As after a restart of the server: one attempt fails, and not one for each connection that had been open."""
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(3):
            connection = await opened.enter_async_context(bench.engine.connect())
            await connection.execute(sa.text("SELECT 1"))
    ending = sa.text(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    other = create_async_engine(bench.engine.url)
    async with other.connect() as connection:
        assert len((await connection.execute(ending)).all()) >= 3
    await other.dispose()
    first = await bench.run(Action.ACT)
    assert first.outcome is Outcome.FAILED
    assert isinstance(first.error, DBAPIError)
    assert first.error.connection_invalidated
    second = await bench.run(Action.ACT)
    assert second.outcome is Outcome.DONE, second.error


@pytest.mark.parametrize("turns", range(12))
async def test_a_block_that_is_cancelled_while_it_begins_leaves_no_transaction_to_the_next(
    database_url: str, turns: int
) -> None:
    """Of a BEGIN that nobody waited for, nobody knows: in there, the next one's COMMIT would only release a savepoint."""
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0)
    await create_tables(engine)
    bench = Bench(engine)
    begun = asyncio.create_task(bench.run(Action.ACT))
    for _ in range(turns):
        await asyncio.sleep(0)
    begun.cancel()
    await asyncio.gather(begun, return_exceptions=True)
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(sa.insert(Effect).values(saga_id="next", action="act", run="next"))
    other = create_async_engine(database_url)
    async with other.connect() as connection:
        committed = (await connection.execute(sa.select(Effect.saga_id))).scalars().all()
    await other.dispose()
    await engine.dispose()
    assert "next" in committed


async def test_a_commit_of_a_transaction_that_a_statement_has_broken(bench: Bench) -> None:
    """PostgreSQL answers it by ROLLBACK, and no driver tells."""

    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                await take_effect(session, context, "no")
            with contextlib.suppress(DBAPIError):
                await session.execute(sa.text("SELECT 1 / 0"))

    ended = await bench.act(body)
    await bench.had_none(ended, Outcome.FAILED, "the database itself rolled the transaction of a barrier back")


async def test_a_statement_that_fails_in_a_savepoint_behind_the_block_costs_nothing(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                await take_effect(session, context, "yes")
            with contextlib.suppress(DBAPIError):
                async with session.begin_nested():
                    await session.execute(sa.text("SELECT 1 / 0"))

    assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]


async def test_two_phases_are_refused(bench: Bench) -> None:
    async def body(_: Order) -> None:
        async with AsyncSession(bench.engine, twophase=True) as session, session.begin(), barrier(session):
            raise AssertionError("it must not run")

    await bench.had_none(await bench.act(body), Outcome.FAILED, "and this session's has two phases")
