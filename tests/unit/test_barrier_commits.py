"""Whether the transaction of a barrier's block was committed: a run is done if it was, and only then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import BarrierMisused, barrier
from watership.machine.state import Outcome

from tests.support.barred_step import (
    Bench,
    Order,
    SoldOut,
    create_tables,
    foreign_keys_at_commit,
    orphan,
    take_effect,
)


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlite_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def bench(engine: AsyncEngine) -> Bench:
    return Bench(engine)


# --- the commit itself fails


@pytest.mark.parametrize("swallowed", [True, False])
@pytest.mark.parametrize("on", ["session", "connection"])
async def test_a_commit_that_the_database_refuses_is_unknown_whoever_swallows_it(
    bench: Bench, on: str, swallowed: bool
) -> None:
    await foreign_keys_at_commit(bench.engine)

    async def body(context: Order) -> None:
        with contextlib.suppress(*[IntegrityError] if swallowed else []):
            if on == "session":
                async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                    await take_effect(session, context, "no")
                    await session.execute(orphan())
            else:
                async with bench.engine.begin() as connection, barrier(connection):
                    await take_effect(connection, context, "no")
                    await connection.execute(orphan())

    ended = await bench.act(body)
    assert ended.patch == {"reservation": "no"}
    await bench.had_none(ended, Outcome.UNKNOWN, "FOREIGN KEY constraint failed")


async def test_since_a_commit_that_failed_may_be_made_good_later(bench: Bench) -> None:
    """SQLite leaves the transaction open, and SQLAlchemy takes it for ended: no certainty that it is gone."""
    await foreign_keys_at_commit(bench.engine)

    async def body(context: Order) -> None:
        async with bench.engine.connect() as connection:
            async with barrier(connection):
                await take_effect(connection, context, "yes")
                await connection.execute(orphan())
            with contextlib.suppress(IntegrityError):
                await connection.commit()
            await connection.rollback()
            await connection.exec_driver_sql("INSERT INTO parent VALUES (7)")
            await connection.commit()

    assert (await bench.act(body)).outcome is Outcome.UNKNOWN
    assert await bench.states() == {("act", 1): "done"}


async def test_a_commit_that_was_cancelled_is_unknown(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            async with barrier(session):
                await take_effect(session, context, "perhaps")

            def cancelled(_: Any) -> None:
                raise asyncio.CancelledError

            bench.engine.sync_engine.dialect.do_commit = cancelled  # type: ignore[assignment,method-assign]
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await session.commit()
            finally:
                del bench.engine.sync_engine.dialect.do_commit

    await bench.had_none(await bench.act(body), Outcome.UNKNOWN, "CancelledError")


async def test_an_engines_own_error_listener_hides_nothing(bench: Bench) -> None:
    """It may raise, and then SQLAlchemy asks no other listener."""
    await foreign_keys_at_commit(bench.engine)

    class Ours(Exception):
        pass

    @sa.event.listens_for(bench.engine.sync_engine, "handle_error")
    def translate(context: Any) -> None:
        raise Ours from context.original_exception

    async def body(context: Order) -> None:
        with contextlib.suppress(Ours):
            async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                await take_effect(session, context, "no")
                await session.execute(orphan())

    await bench.had_none(await bench.act(body), Outcome.UNKNOWN, "FOREIGN KEY constraint failed")


async def test_a_commit_that_nobody_waits_for_is_unknown_while_it_runs(bench: Bench) -> None:
    sent, answer = asyncio.Event(), asyncio.Event()
    left: list[asyncio.Task[None]] = []

    async def body(context: Order) -> None:
        session = AsyncSession(bench.engine)
        async with barrier(session):
            await take_effect(session, context, "yes")
        connection = await session.connection()
        assert connection.sync_connection is not None

        @sa.event.listens_for(connection.sync_connection.engine, "commit")  # after ours: the commit is on its way
        def slow(_: Any) -> None:
            sent.set()
            sa.util.await_only(answer.wait())

        left.append(asyncio.create_task(session.commit()))
        await sent.wait()

    ended = await bench.act(body)
    assert ended.outcome is Outcome.UNKNOWN
    answer.set()
    await left[0]
    assert await bench.states() == {("act", 1): "done"}


# --- another transaction than the block's is committed


@pytest.mark.parametrize("on", ["session", "connection"])
async def test_a_later_transaction_that_commits_is_not_the_blocks(bench: Bench, on: str) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) if on == "session" else bench.engine.connect() as session:
            async with barrier(session):
                await take_effect(session, context, "no")
            await session.rollback()
            for text in ("SAVEPOINT mine", "CREATE TABLE IF NOT EXISTS audit (id INTEGER)", "END", "SELECT 1"):
                await session.execute(sa.text(text))  # it may do what it likes
            await session.commit()

    await bench.had_none(await bench.act(body), Outcome.FAILED, "was rolled back, not committed")


@pytest.mark.parametrize("on", ["session", "connection"])
async def test_nor_is_one_that_rolls_back_or_fails(bench: Bench, on: str) -> None:
    await foreign_keys_at_commit(bench.engine)

    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) if on == "session" else bench.engine.connect() as session:
            async with barrier(session):
                await take_effect(session, context, "yes")
            await session.commit()
            await session.commit()  # twice, and nothing
            await session.execute(sa.text("SELECT 1"))
            await session.rollback()
            await session.execute(orphan())
            with contextlib.suppress(DBAPIError):
                await session.commit()

    assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.actions() == ["act"]


async def test_the_commit_of_a_connection_that_the_session_was_given(bench: Bench) -> None:
    """Such a session's own commit is none."""

    async def commits(context: Order) -> None:
        async with bench.engine.begin() as connection:
            session = AsyncSession(bind=connection)
            async with barrier(session):
                await take_effect(session, context, "yes")
            await session.commit()
            if bench is not first:
                raise SoldOut("after no commit at all")

    first, second = bench, Bench(bench.engine)
    assert (await first.act(commits)).outcome is Outcome.DONE
    bench = second
    await second.had_none(await second.act(commits), Outcome.FAILED, "after no commit at all")


async def test_an_empty_compensation_is_kept_though_the_session_commits_nothing(bench: Bench) -> None:
    async def body(_: Order) -> None:
        async with bench.engine.begin() as connection, barrier(AsyncSession(bind=connection)):
            raise AssertionError("it must not run")

    assert (await bench.compensate(body)).outcome is Outcome.DONE
    assert await bench.states() == {("act", 1): "empty", ("compensate", 1): "empty"}
    assert (await bench.act()).outcome is Outcome.FAILED


# --- no transaction is committed


@pytest.mark.parametrize("how", ["closed", "never left", "left open", "connection", "invalidated"])
async def test_what_is_not_committed_has_failed(bench: Bench, how: str) -> None:
    left: list[AsyncSession] = []

    async def body(context: Order) -> None:
        if how == "connection":
            async with bench.engine.connect() as connection, barrier(connection):
                await take_effect(connection, context, "no")
            return
        session = AsyncSession(bench.engine)
        left.append(session)
        block = barrier(session)
        await block.__aenter__()
        await take_effect(session, context, "no")
        if how == "never left":
            return
        await block.__aexit__(None, None, None)
        if how == "closed":
            await session.close()
        if how == "invalidated":
            await session.invalidate()

    ended = await bench.act(body)
    for session in left:
        if how in ("left open", "never left"):
            with pytest.raises(BarrierMisused, match="its handler had ended"):
                await session.commit()
        await session.close()
    await bench.had_none(ended, Outcome.FAILED, "not committed; commit after the block")


async def test_nor_can_it_be_committed_once_its_handler_has_failed(bench: Bench) -> None:
    session = AsyncSession(bench.engine)

    async def body(context: Order) -> None:
        async with barrier(session):
            await take_effect(session, context, "no")
        raise SoldOut("before the commit")

    ended = await bench.act(body)
    with pytest.raises(BarrierMisused, match="its handler had ended"):
        await session.commit()
    await session.close()
    await bench.had_none(ended, Outcome.FAILED, "before the commit")


async def test_a_block_that_failed_is_not_done_though_its_error_is_swallowed(bench: Bench) -> None:
    async def swallows(context: Order) -> None:
        with contextlib.suppress(SoldOut):
            async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                await take_effect(session, context, "no")
                raise SoldOut("the first shelf")

    await bench.had_none(await bench.act(swallows), Outcome.FAILED, "SoldOut: the first shelf")

    async def tries_again(context: Order) -> None:
        async with bench.engine.connect() as connection:
            for run in ("no", "yes"):
                with contextlib.suppress(SoldOut):
                    async with barrier(connection):
                        await take_effect(connection, context, run)
                        if run == "no":
                            raise SoldOut("the first shelf")
                await connection.execute(sa.text("SELECT 1"))
                await connection.commit()

    async def is_cut_off(_: Order) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit, AsyncSession(bench.engine) as session, barrier(session):
                limit.reschedule(0)
                await asyncio.Event().wait()  # for another service, perhaps

    cut = Bench(bench.engine)
    await cut.had_none(await cut.act(is_cut_off), Outcome.UNKNOWN, "CancelledError")

    other = Bench(bench.engine)
    assert (await other.act(tries_again)).outcome is Outcome.DONE
    assert await other.effects() == [("act", "yes", None)]


async def test_a_transaction_that_the_database_rolled_back_by_itself(bench: Bench) -> None:
    """A statement behind the block fails, and takes the transaction with it; a later commit is none of it."""

    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                await take_effect(session, context, "no")
            await session.execute(sa.text("CREATE TABLE IF NOT EXISTS one (n INTEGER PRIMARY KEY)"))
            for _ in range(2):
                with contextlib.suppress(IntegrityError):
                    await session.execute(sa.text("INSERT OR ROLLBACK INTO one VALUES (1)"))

    ended = await bench.act(body)
    await bench.had_none(ended, Outcome.FAILED, "the database itself rolled the transaction of a barrier back")


async def test_a_statement_that_fails_behind_the_block_alone_costs_nothing(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                await take_effect(session, context, "yes")
            with contextlib.suppress(DBAPIError):
                await session.execute(sa.text("SELECT nothing"))

    assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]
