"""What a handler can do wrong with its transaction and the barrier, and what its run comes to then."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session as SyncSession

from watership import (
    BarrierMisused,
    ConfigurationError,
    LimitExceeded,
    SagaStepHandler,
    SagaStepResult,
    StepEvent,
    barrier,
    prune_barrier,
)
from watership.barrier import RETENTION_MIN, BarrierBase, barrier_table
from watership.barrier_table import now_ms
from watership.execution import Execution
from watership.machine.state import Outcome

from tests.support.barred_step import Base, Bench, Effect, Order, Reserved, SoldOut, create_tables, take_effect


@pytest.fixture
async def engine(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlite_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def bench(engine: AsyncEngine) -> Bench:
    return Bench(engine)


def says(ended: Execution, outcome: Outcome, words: str) -> None:
    assert ended.outcome is outcome
    assert ended.failure is not None
    assert words in ended.failure.message, ended.failure.message


async def test_a_context_that_is_changed_behind_the_block_is_unknown_with_what_was_stored(bench: Bench) -> None:
    async def late(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "early")
        context.reservation = "late"

    ended = await bench.act(late)
    says(ended, Outcome.UNKNOWN, "the context was changed after the barrier's block (reservation)")
    assert ended.patch == {"reservation": "early"}
    assert (await bench.act(late)).patch == {"reservation": "early"}, "done, and stored"


class Step(SagaStepHandler[Order, Any]):
    async def act(self, context: Order) -> None: ...


async def test_events_that_a_duplicate_would_not_tell_are_refused(bench: Bench) -> None:
    async def late(context: Order) -> Any:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            block.response = await take_effect(session, context, "early")
        return SagaStepResult(block.response, Step, events=[StepEvent("reserved")])

    says(
        await bench.act(late), Outcome.UNKNOWN, "events were returned that its barrier's block does not know (reserved)"
    )

    async def too_late(context: Order) -> Any:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            await take_effect(session, context, "early")
        block.events = [StepEvent("reserved")]

    other = Bench(bench.engine)
    says(await other.act(too_late), Outcome.UNKNOWN, "events were set after the barrier's block")


async def test_more_than_a_message_holds_is_refused_before_anything_is_committed(bench: Bench) -> None:
    async def talkative(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            await take_effect(session, context, "early")
            block.events = [StepEvent("told", "z" * 250_000) for _ in range(4)]

    says(await bench.act(talkative), Outcome.FAILED, "the limit is 983040")
    assert await bench.effects() == []


@pytest.mark.parametrize("field", ["taken back", "spoiled"])
async def test_nor_may_a_change_be_taken_back_or_spoiled_behind_the_block(bench: Bench, field: str) -> None:
    async def late(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "early")
        context.reservation = None if field == "taken back" else object()  # type: ignore[assignment]  # the mistake

    ended = await bench.act(late)
    assert (ended.outcome, ended.patch) == (Outcome.UNKNOWN, {"reservation": "early"})


async def test_an_error_after_the_commit_is_unknown_since_the_effect_is_there(bench: Bench) -> None:
    async def fails_late(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "first")
        raise SoldOut("too late to say so")

    ended = await bench.act(fails_late)
    assert (ended.outcome, ended.patch) == (Outcome.UNKNOWN, {"reservation": "first"})
    assert isinstance(ended.error, SoldOut)
    assert (await bench.act()).outcome is Outcome.DONE
    assert (await bench.compensate()).outcome is Outcome.DONE
    assert await bench.actions() == ["act", "compensate"]


async def test_an_error_before_the_commit_has_failed(bench: Bench) -> None:
    async def fails(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            async with barrier(session):
                await take_effect(session, context, "no")
            raise SoldOut("in time")

    assert (await bench.act(fails)).outcome is Outcome.FAILED
    assert (await bench.effects(), await bench.states()) == ([], {})


@pytest.mark.parametrize("begun", [sa.event.listen, None])
async def test_a_commit_that_raises_leaves_it_in_doubt(bench: Bench, begun: Any) -> None:
    """Whether the database took it, its client cannot know: here it did, and the connection was lost on the way back."""

    def lost(dbapi_connection: Any) -> None:
        dbapi_connection.commit()
        raise ConnectionResetError("lost")

    async def body(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            async with barrier(session):
                await take_effect(session, context, "first")
            if begun is not None:
                bench.engine.sync_engine.dialect.do_commit = lost  # type: ignore[method-assign]
            try:
                await session.commit()
            finally:
                with contextlib.suppress(AttributeError):
                    del bench.engine.sync_engine.dialect.do_commit

    ended = await bench.act(body)
    assert ended.outcome is (Outcome.UNKNOWN if begun is not None else Outcome.DONE)
    assert ended.patch == {"reservation": "first"}
    assert (await bench.act()).patch == {"reservation": "first"}


async def test_a_handler_that_forgets_to_commit_has_failed(bench: Bench) -> None:
    async def forgets(context: Order) -> Reserved:
        async with AsyncSession(bench.engine) as session, barrier(session):
            await take_effect(session, context, "no")
        return Reserved(reservation="no")

    ended = await bench.act(forgets)
    says(ended, Outcome.FAILED, "was rolled back, not committed; commit after the block")
    assert (await bench.effects(), await bench.states()) == ([], {})


async def test_a_commit_inside_the_block_is_refused(bench: Bench) -> None:
    async def commits(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, barrier(session):
            await take_effect(session, context, "no")
            await session.commit()

    says(await bench.act(commits), Outcome.FAILED, "a commit inside a barrier's block")
    assert (await bench.effects(), await bench.states()) == ([], {})

    async def commits_and_goes_on(context: Order) -> None:
        async with bench.engine.connect() as connection:
            with contextlib.suppress(BarrierMisused):
                async with barrier(connection):
                    await take_effect(connection, context, "no")
                    await connection.commit()
            await connection.execute(sa.select(1))
            await connection.commit()

    await bench.act(commits_and_goes_on)
    assert (await bench.effects(), await bench.states()) == ([], {})


async def test_a_rollback_inside_the_block_is_found_out(bench: Bench) -> None:
    async def goes_on(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            async with barrier(session):
                await take_effect(session, context, "lost")
                await session.rollback()
                await take_effect(session, context, "kept")
            await session.commit()

    says(await bench.act(goes_on), Outcome.FAILED, "was rolled back inside the barrier's block")
    assert (await bench.effects(), await bench.states()) == ([], {})


async def test_a_savepoint_inside_the_block_may_fail(bench: Bench) -> None:
    async def tries(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            with contextlib.suppress(SoldOut):
                async with session.begin_nested():
                    await take_effect(session, context, "no")
                    raise SoldOut("the first shelf")
            await take_effect(session, context, "yes")

    assert (await bench.act(tries)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]


async def test_a_commit_behind_our_back_makes_a_duplicate_unknown(bench: Bench) -> None:
    async def half(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, barrier(session):
            await take_effect(session, context, "half")
            driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
            await driver.commit()
            raise SoldOut("after a half")

    await bench.act(half)
    assert await bench.states() == {("act", 1): "begun"}
    says(await bench.act(), Outcome.UNKNOWN, "may be half done")
    assert (await bench.compensate()).outcome is Outcome.DONE, "what may be half done is undone"
    assert await bench.actions() == ["act", "compensate"]


async def test_two_blocks_in_one_run_are_refused(bench: Bench) -> None:
    async def two(context: Order) -> None:
        for number in range(2):
            async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                await take_effect(session, context, str(number))

    says(await bench.act(two), Outcome.UNKNOWN, "a second barrier in one run")
    assert await bench.actions() == ["act"]


async def test_a_response_that_comes_too_late_or_cannot_be_stored(bench: Bench) -> None:
    async def late(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            await take_effect(session, context, "first")
        block.response = Reserved(reservation="late")

    says(await bench.act(late), Outcome.UNKNOWN, "the response was set after the barrier's block")

    async def unfit(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            await take_effect(session, context, "first")
            block.response = Reserved(reservation="a\0b")

    other = Bench(bench.engine)
    says(await other.act(unfit), Outcome.FAILED, "NUL")
    assert (await other.effects(), await other.states()) == ([], {})


async def test_a_context_that_cannot_be_kept_rolls_the_effect_back(bench: Bench) -> None:
    async def unfit(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "first")
            context.reservation = "x" * 300_000

    says(await bench.act(unfit), Outcome.FAILED, "the limit is 262144")
    assert (await bench.effects(), await bench.states()) == ([], {})


async def test_outside_a_handler_there_is_nothing_to_guard(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(LookupError, match="a barrier belongs into a handler"):
            await barrier(session).__aenter__()


async def test_what_is_no_transaction_is_refused(bench: Bench) -> None:
    async def on(session: Any) -> Execution:
        async def body(_: Order) -> None:
            async with barrier(session):
                raise AssertionError("it must not run")

        return await bench.act(body)

    says(await on(SyncSession()), Outcome.FAILED, "takes an AsyncSession or an AsyncConnection, not a Session")
    says(await on(bench.engine.connect()), Outcome.FAILED, "the barrier's connection is not open")
    for options in ("engine", "execution"):
        url = bench.engine.url
        how = {"isolation_level": "AUTOCOMMIT"} if options == "engine" else {}
        engine = create_async_engine(url, **how)
        if options == "execution":
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with AsyncSession(engine) as session:
            says(await on(session), Outcome.FAILED, "isolation level is AUTOCOMMIT")
        await engine.dispose()
    assert await bench.states() == {}
    with pytest.raises(ConfigurationError, match="on oracle, where it was never tried"):
        now_ms("oracle")


async def test_without_its_table_it_says_what_to_do(tmp_path: Any) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'bare.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    ended = await Bench(engine).act()
    says(ended, Outcome.FAILED, "no table watership_barrier: make it with your own migrations")
    assert isinstance(ended.error, ConfigurationError)
    await engine.dispose()


async def test_pruning_keeps_what_may_still_be_asked_for(bench: Bench) -> None:
    ages_days = {uuid.uuid4(): days for days in (1, 13, 29, 31, 400)}
    engine = bench.engine
    for saga_id in ages_days:
        await Bench(engine, saga_id).act()
    async with engine.begin() as connection:
        for saga_id, days in ages_days.items():
            row = barrier_table.c
            update = sa.update(barrier_table).where(row.saga_id == saga_id)
            await connection.execute(update.values(at_ms=row.at_ms - days * 86_400_000))
    async with AsyncSession(engine) as session:
        assert await prune_barrier(session, chunk=1) == 2
        assert await prune_barrier(session, RETENTION_MIN) == 1
        with pytest.raises(LimitExceeded, match="1209599, the limit is 1209600"):
            await prune_barrier(session, RETENTION_MIN - timedelta(seconds=1))
    async with engine.connect() as connection:
        assert await prune_barrier(connection, RETENTION_MIN) == 0
        left = (await connection.execute(sa.select(barrier_table.c.saga_id))).scalars().all()
    assert {ages_days[saga_id] for saga_id in left} == {1, 13}


async def test_a_compensation_makes_the_row_of_its_act_young(bench: Bench) -> None:
    """Else the act's row would go first, and an act that is still later would run."""
    await bench.act()
    row = barrier_table.c
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(barrier_table).values(at_ms=row.at_ms - 40 * 86_400_000))
    await bench.compensate(acted=True)
    async with AsyncSession(bench.engine) as session:
        assert await prune_barrier(session) == 0
    assert (await bench.act()).outcome is Outcome.FAILED


def test_the_table_is_beside_the_users_own() -> None:
    assert list(BarrierBase.metadata.tables) == ["watership_barrier"]
    assert "watership_barrier" not in Base.metadata.tables
    assert Effect.__tablename__ not in BarrierBase.metadata.tables
