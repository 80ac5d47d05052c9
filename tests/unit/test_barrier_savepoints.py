"""Savepoints around, inside and behind a barrier's block, and transactions that are moved by SQL text."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import barrier
from watership.machine.state import Outcome

from tests.support.barred_step import Bench, Order, SoldOut, create_tables, take_effect


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlite_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def bench(engine: AsyncEngine) -> Bench:
    return Bench(engine)


async def test_a_block_in_a_savepoint_is_refused_since_that_can_be_rolled_back(bench: Bench) -> None:
    async def within(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            with contextlib.suppress(SoldOut):
                async with session.begin_nested():
                    async with barrier(session):
                        await take_effect(session, context, "no")
                    raise SoldOut("what follows in the same savepoint")

    await bench.had_none(await bench.act(within), Outcome.FAILED, "inside a savepoint")


async def test_nor_may_a_savepoint_outlive_the_block(bench: Bench) -> None:
    async def outlives(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                savepoint = await session.begin_nested()
                await take_effect(session, context, "no")
            await savepoint.rollback()

    await bench.had_none(await bench.act(outlives), Outcome.FAILED, "a savepoint that was begun inside")


async def test_a_savepoint_before_or_behind_the_block_is_nobodys_business(bench: Bench) -> None:
    async def beside(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with session.begin_nested():
                await session.execute(sa.text("SELECT 1"))
            async with barrier(session), session.begin_nested():
                await take_effect(session, context, "yes")
            savepoint = await session.begin_nested()
            await session.execute(sa.text("SELECT 1"))
            await savepoint.rollback()

    assert (await bench.act(beside)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]


# --- transactions by SQL text


TEXTS = ["COMMIT", " -- now\n/* really */ end", "ROLLBACK", "ROLLBACK TO SAVEPOINT mine"]


@pytest.mark.parametrize(
    ("text", "where"), [*((text, "behind") for text in TEXTS), *((text, "inside") for text in TEXTS[:-1])]
)
async def test_a_transaction_is_not_ended_by_text(bench: Bench, text: str, where: str) -> None:
    async def body(context: Order) -> None:
        async with bench.engine.connect() as connection:
            async with barrier(connection):
                await connection.exec_driver_sql("SAVEPOINT mine")
                await take_effect(connection, context, "no")
                if where == "inside":
                    await connection.exec_driver_sql(text)
            await connection.exec_driver_sql(text)
            await connection.commit()

    await bench.had_none(await bench.act(body), Outcome.FAILED, "in a barrier's transaction")


async def test_savepoints_by_text_are_the_blocks_own_business(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with bench.engine.begin() as connection, barrier(connection):
            await connection.exec_driver_sql("SAVEPOINT mine")
            await take_effect(connection, context, "no")
            await connection.exec_driver_sql("ROLLBACK TO mine")
            await take_effect(connection, context, "yes")

    assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]
