"""The barrier on MariaDB, with its default isolation: REPEATABLE READ, where a plain read shows what was, not what is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from watership import barrier, prune_barrier
from watership.barrier import barrier_table
from watership.machine.state import Action, Outcome

from tests.support.barred_step import Bench, Order, create_tables, take_effect
from tests.support.interleaving import MOVES, Script, asking, check, check_end, interleavings, play

ACT, COMPENSATE = Action.ACT, Action.COMPENSATE
PAIRS = [(ACT, ACT), (ACT, COMPENSATE), (COMPENSATE, COMPENSATE)]


@pytest.fixture
async def engine(mariadb_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(mariadb_url, pool_size=6)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def bench(engine: AsyncEngine) -> Bench:
    return Bench(engine)


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize("acted_before", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(action.value for action in pair))
async def test_interleavings_of_two_runs(
    engine: AsyncEngine, pair: tuple[Action, Action], acted_before: bool, reads_first: bool
) -> None:
    async with asking(engine) as asks:
        endings = itertools.cycle(itertools.product([True, False], repeat=2))
        for schedule, commits in zip(list(interleavings(MOVES, mirrored=True))[::5], endings, strict=False):
            scripts = [
                Script(action, commit, reads_first=reads_first) for action, commit in zip(pair, commits, strict=True)
            ]
            bench = Bench(engine)
            if acted_before:
                await bench.act(run="before")
            await check(bench, await play(bench, scripts, schedule, asks), contended=True)
            await check_end(bench)


async def test_one_after_the_other(bench: Bench) -> None:
    for run in ("first", "again"):
        done = await bench.act(run=run)
        assert (done.outcome, done.patch, done.response) == (
            Outcome.DONE,
            {"reservation": "first"},
            {"reservation": "first"},
        )
    undone = await bench.compensate()
    assert undone.patch == {"reservation": "first", "released": True}
    assert (await bench.compensate(generation=2, acted=True)).patch == undone.patch
    assert (await bench.act()).certain
    assert await bench.actions() == ["act", "compensate"]
    assert await bench.states() == {("act", 1): "undone", ("compensate", 1): "done"}


async def test_an_empty_compensation(bench: Bench) -> None:
    assert (await bench.compensate()).outcome is Outcome.DONE
    assert (await bench.act()).certain
    assert await bench.effects() == []
    assert await bench.states() == {("act", 1): "empty", ("compensate", 1): "empty"}


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE surprise (n INT)",
        "/* now */ DROP TABLE IF EXISTS surprise",
        "TRUNCATE effect",
        "LOCK TABLES effect WRITE",
        "SET SESSION autocommit = 1",
        "ANALYZE TABLE effect",
        "START TRANSACTION",
    ],
)
@pytest.mark.parametrize("where", ["inside", "behind"])
async def test_what_commits_by_itself_is_refused(bench: Bench, text: str, where: str) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            async with barrier(session):
                await take_effect(session, context, "no")
                if where == "inside":
                    await session.execute(sa.text(text))
            await session.execute(sa.text(text))

    await bench.had_none(await bench.act(body), Outcome.FAILED, "in a barrier's transaction")


async def test_what_only_looks_like_it_is_not(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await session.execute(sa.text("CREATE TEMPORARY TABLE mine (n INT)"))
            await take_effect(session, context, "yes")
            await session.execute(sa.text("DROP TEMPORARY TABLE mine"))
            async with session.begin_nested() as savepoint:
                await take_effect(session, context, "no")
                await savepoint.rollback()
            context.reservation = "yes"

    assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]


async def test_a_deadlock_behind_the_block_rolls_the_effect_back(bench: Bench) -> None:
    """InnoDB ends the whole transaction of the one that it chooses, and takes what follows for another."""
    engine, other_waits = bench.engine, asyncio.Event()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE shelf (n INT PRIMARY KEY, pieces INT) ENGINE=InnoDB"))
        await connection.execute(sa.text("INSERT INTO shelf SELECT seq, 0 FROM seq_1_to_1000"))

    async def other(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE shelf SET pieces = 1 WHERE n > 1"))
        other_waits.set()
        await connection.execute(sa.text("UPDATE shelf SET pieces = 1 WHERE n = 1"))

    async def body(context: Order) -> None:
        async with AsyncSession(engine) as session, engine.connect() as connection:
            async with barrier(session):
                await take_effect(session, context, "no")
            await session.execute(sa.text("UPDATE shelf SET pieces = 2 WHERE n = 1"))
            waits = asyncio.create_task(other(connection))
            await other_waits.wait()
            with contextlib.suppress(DBAPIError):  # the other has written more, so that this one is chosen
                await session.execute(sa.text("UPDATE shelf SET pieces = 2 WHERE n = 2"))
            await waits
            await connection.commit()
            await session.commit()

    words = "the database itself rolled the transaction of a barrier back"
    await bench.had_none(await bench.act(body), Outcome.FAILED, words)


async def test_names_are_told_apart_by_every_letter(engine: AsyncEngine, bench: Bench) -> None:
    await bench.act()
    row = barrier_table.c
    async with engine.connect() as connection:
        for step, found in (("Reserve", 1), ("reserve", 0), ("RESERVE", 0), ("Résérve", 0)):
            query = sa.select(sa.func.count()).where(row.saga_id == bench.saga_id, row.step == step)
            assert (await connection.execute(query)).scalar_one() == found, step


async def test_without_its_table_it_says_what_to_do(mariadb_url: str) -> None:
    engine = create_async_engine(mariadb_url)
    failed = await Bench(engine).act()
    assert failed.failure is not None
    assert "no table watership_barrier: make it with your own migrations" in failed.failure.message
    await engine.dispose()


async def test_autocommit_is_refused(mariadb_url: str) -> None:
    engine = create_async_engine(mariadb_url, isolation_level="AUTOCOMMIT")
    await create_tables(engine)
    failed = await Bench(engine).act()
    assert failed.failure is not None
    assert "isolation level is AUTOCOMMIT" in failed.failure.message
    await engine.dispose()


async def test_old_rows_go_and_young_ones_stay(engine: AsyncEngine, bench: Bench) -> None:
    await bench.act()
    async with engine.begin() as connection:
        await connection.execute(sa.update(barrier_table).values(at_ms=barrier_table.c.at_ms - 20 * 86_400_000))
    young = Bench(engine)
    await young.act()
    async with AsyncSession(engine) as session:
        assert await prune_barrier(session) == 0
        assert await prune_barrier(session, timedelta(days=15), chunk=1) == 1
    assert await bench.states() == {}
    assert await young.states() == {("act", 1): "done"}
