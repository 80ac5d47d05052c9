"""The barrier on SQLite, one run after the other: what each run comes to, and what is in the tables then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import AlreadyHandled, StepEvent, barrier
from watership.machine.state import Action, Outcome

from tests.support.barred_step import Bench, Effect, Order, Reserved, SoldOut, create_tables, take_effect, usual
from tests.support.interleaving import MOVES, Script, asking, check, check_end, interleavings, play


@pytest.fixture(params=["file", "memory"])
async def bench(request: pytest.FixtureRequest, sqlite_url: str) -> AsyncIterator[Bench]:
    engine = create_async_engine(sqlite_url if request.param == "file" else "sqlite+aiosqlite://")
    await create_tables(engine)
    yield Bench(engine)
    await engine.dispose()


async def test_a_duplicate_runs_nothing_and_answers_what_was_stored(bench: Bench) -> None:
    first = await bench.act(run="first")
    assert (first.outcome, first.patch) == (Outcome.DONE, {"reservation": "first"})
    for attempt in (1, 2):
        again = await bench.act(run="again", attempt=attempt)
        assert (again.outcome, again.patch, again.response) == (first.outcome, first.patch, first.response)
        assert again.run != first.run
        assert again.result is not None
        assert again.result.response == Reserved(reservation="first")
    assert await bench.effects() == [("act", "first", None)]


async def test_a_duplicate_tells_the_same_events(bench: Bench) -> None:
    async def body(context: Order) -> Any:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session) as block:
            await take_effect(session, context, "first")
            block.events = [StepEvent("reserved", {"order_id": context.order_id})]

    told = ({"name": "reserved", "data": {"order_id": "o-1"}},)
    first = await bench.act(body)
    assert (first.outcome, first.events) == (Outcome.DONE, told)
    assert first.result is not None
    assert [event.name for event in first.result.events] == ["reserved"]
    again = await bench.act(body)
    assert (again.outcome, again.events) == (Outcome.DONE, told)
    assert await bench.effects() == [("act", "first", None)]


async def test_a_compensation_undoes_once_and_answers_as_before(bench: Bench) -> None:
    await bench.act()
    for generation in (1, 1, 2):
        done = await bench.compensate(
            acted=True, context={"order_id": "o-1", "reservation": "usual"}, generation=generation
        )
        assert (done.outcome, done.patch) == (Outcome.DONE, {"released": True})
    assert await bench.effects() == [("act", "usual", None), ("compensate", "usual", "usual")]
    assert await bench.states() == {("act", 1): "undone", ("compensate", 1): "done"}


async def test_an_empty_compensation_is_on_record_and_its_act_is_refused(bench: Bench) -> None:
    for _ in range(2):
        empty = await bench.compensate()
        assert (empty.outcome, empty.patch, empty.failure) == (Outcome.DONE, None, None)
    late = await bench.act()
    assert (late.outcome, late.certain) == (Outcome.FAILED, True)
    assert late.failure is not None
    assert late.failure.code == "act_refused"
    assert "this act is late: its compensation came first" in late.failure.message
    assert await bench.effects() == []
    assert await bench.states() == {("act", 1): "empty", ("compensate", 1): "empty"}


async def test_an_act_that_comes_back_after_it_was_undone_is_refused(bench: Bench) -> None:
    await bench.act()
    await bench.compensate(acted=True)
    late = await bench.act(attempt=2)
    assert (late.outcome, late.certain) == (Outcome.FAILED, True)
    assert await bench.actions() == ["act", "compensate"]


async def test_a_compensation_is_told_what_the_act_changed_although_its_reply_was_lost(bench: Bench) -> None:
    await bench.act(run="lost")
    done = await bench.compensate(acted=False)
    assert done.patch == {"reservation": "lost", "released": True}, "and so is the saga"
    assert await bench.effects() == [("act", "lost", None), ("compensate", "usual", "lost")]


async def test_what_the_saga_knows_already_is_not_put_back(bench: Bench) -> None:
    await bench.act(run="old")
    done = await bench.compensate(acted=True, context={"order_id": "o-1", "reservation": "newer"})
    assert done.patch == {"released": True}
    assert (await bench.effects())[-1] == ("compensate", "usual", "newer")


async def without_barrier(bench: Bench, context: Order) -> None:
    async with AsyncSession(bench.engine) as session, session.begin():
        await take_effect(session, context, "bare")


async def test_an_act_from_before_there_was_a_barrier_is_undone(bench: Bench) -> None:
    await bench.act(lambda context: without_barrier(bench, context))
    assert (await bench.compensate(acted=True)).outcome is Outcome.DONE
    assert (await bench.compensate(acted=True)).outcome is Outcome.DONE
    assert await bench.actions() == ["act", "compensate"]


async def test_a_late_done_that_the_barrier_never_saw_is_undone_after_all(bench: Bench) -> None:
    assert (await bench.compensate(acted=False)).outcome is Outcome.DONE, "empty"
    await bench.act(lambda context: without_barrier(bench, context))
    assert (await bench.compensate(acted=True, generation=2)).patch == {"released": True}
    assert await bench.actions() == ["act", "compensate"]


async def test_a_failed_block_leaves_nothing_and_the_next_attempt_runs(bench: Bench) -> None:
    async def sold_out(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "no")
            raise SoldOut("none left")

    failed = await bench.act(sold_out)
    assert (failed.outcome, failed.patch, failed.certain) == (Outcome.FAILED, None, False)
    assert isinstance(failed.error, SoldOut)
    assert await bench.states() == {}
    assert (await bench.act(attempt=2)).outcome is Outcome.DONE
    assert await bench.actions() == ["act"]


async def test_an_error_that_the_handler_swallows_commits_nothing_of_its_block(bench: Bench) -> None:
    async def swallows(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            with contextlib.suppress(SoldOut):
                async with barrier(session):
                    await take_effect(session, context, "no")
                    raise SoldOut("none left")
            await session.commit()

    await bench.act(swallows)
    assert (await bench.effects(), await bench.states()) == ([], {})


async def test_a_handler_may_try_its_block_again(bench: Bench) -> None:
    async def twice(context: Order) -> None:
        async with AsyncSession(bench.engine) as session:
            with contextlib.suppress(SoldOut):
                async with barrier(session):
                    await take_effect(session, context, "no")
                    raise SoldOut("none left")
            async with barrier(session):
                await take_effect(session, context, "yes")
            await session.commit()

    assert (await bench.act(twice)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "yes", None)]


async def test_no_except_exception_can_eat_it(bench: Bench) -> None:
    await bench.act()
    seen: list[BaseException] = []

    async def eats(context: Order) -> None:
        try:
            async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
                await take_effect(session, context, "twice")
        except Exception as error:
            raise SoldOut("mistaken for a failure") from error
        except BaseException as error:
            seen.append(error)
            raise

    again = await bench.act(eats)
    assert (again.outcome, again.patch) == (Outcome.DONE, {"reservation": "usual"})
    assert [type(error) for error in seen] == [AlreadyHandled]
    assert not isinstance(seen[0], Exception)


async def usual_body(bench: Bench, context: Order) -> None:
    await usual(bench.engine)(context)


@pytest.mark.parametrize("how", ["swallowed", "turned into a failure", "in a task group"])
async def test_the_stored_answer_stands_whatever_the_handler_makes_of_it(bench: Bench, how: str) -> None:
    await bench.act()

    async def body(context: Order) -> None:
        try:
            if how == "in a task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(usual_body(bench, context))
            else:
                await usual(bench.engine)(context)
        except AlreadyHandled as error:
            if how == "turned into a failure":
                raise SoldOut("a bug") from error

    again = await bench.act(body)
    assert (again.outcome, again.patch) == (Outcome.DONE, {"reservation": "usual"})
    assert await bench.actions() == ["act"]


async def test_a_real_connection_serves_as_well(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with bench.engine.begin() as connection, barrier(connection) as block:
            block.response = await take_effect(connection, context, "core")

    for _ in range(2):
        done = await bench.act(body)
        assert (done.outcome, done.response) == (Outcome.DONE, {"reservation": "core"})
    assert (await bench.compensate(body)).outcome is Outcome.DONE
    assert await bench.actions() == ["act", "compensate"]


async def test_pending_objects_are_written_before_the_row_and_none_with_an_empty_compensation(bench: Bench) -> None:
    def add(session: AsyncSession, action: str) -> None:
        session.add(Effect(saga_id=str(bench.saga_id), action=action, run="orm"))

    async def acts(_: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            add(session, "act")

    async def too_early(_: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin():
            add(session, "compensate")
            async with barrier(session):
                pass

    other = Bench(bench.engine)
    assert (await other.compensate(too_early)).outcome is Outcome.DONE
    assert await bench.effects() == []
    assert (await bench.act(acts)).outcome is Outcome.DONE
    assert await bench.actions() == ["act"]


async def test_a_driver_may_take_its_arguments_by_name(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url, paramstyle="named")
    await create_tables(engine)
    bench = Bench(engine)
    for action in (Action.ACT, Action.ACT, Action.COMPENSATE, Action.COMPENSATE):
        assert (await bench.run(action, acted=action is Action.COMPENSATE)).outcome is Outcome.DONE
    assert await bench.actions() == ["act", "compensate"]
    await engine.dispose()


async def test_the_table_is_where_the_schema_is_translated_to(sqlite_url: str, tmp_path: Path) -> None:
    engine = create_async_engine(sqlite_url, execution_options={"schema_translate_map": {None: "tenant"}})

    @sa.event.listens_for(engine.sync_engine, "connect")
    def attach(dbapi_connection: Any, _: Any) -> None:
        dbapi_connection.execute(f"ATTACH '{tmp_path}/tenant.db' AS tenant")

    await create_tables(engine)
    bench = Bench(engine)
    for _ in range(2):
        assert (await bench.act(usual(engine))).outcome is Outcome.DONE
    assert await bench.actions() == ["act"]
    await engine.dispose()


async def test_errors_of_its_statements_are_sqlalchemys_and_hide_what_an_engine_hides(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url, hide_parameters=True)
    await create_tables(engine)
    async with engine.begin() as connection:
        stops = "CREATE TRIGGER stops BEFORE UPDATE ON watership_barrier BEGIN SELECT RAISE(ABORT, 'stopped'); END"
        await connection.execute(sa.text(stops))
    bench = Bench(engine)
    refused = await bench.run(Action.ACT, run="secret")
    assert isinstance(refused.error, sa.exc.DBAPIError)
    assert "stopped" in str(refused.error)
    assert "secret" not in str(refused.error)

    async def closes(_: Order) -> None:
        async with AsyncSession(engine) as session, session.begin(), barrier(session):
            driver = (await (await session.connection()).get_raw_connection()).driver_connection
            assert driver is not None
            await driver.close()

    assert isinstance((await bench.act(closes)).error, sa.exc.DBAPIError)
    await engine.dispose()


async def test_a_connection_need_not_be_in_a_transaction_yet(bench: Bench) -> None:
    async def body(context: Order) -> None:
        async with bench.engine.connect() as connection:
            async with barrier(connection):
                await take_effect(connection, context, "mine")
            await connection.commit()

    for _ in range(2):
        assert (await bench.act(body)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "mine", None)]


async def test_two_sagas_and_two_steps_do_not_meet(bench: Bench) -> None:
    other = Bench(bench.engine)
    assert (await bench.act()).outcome is (await other.act()).outcome is Outcome.DONE
    assert (await other.compensate(acted=True)).outcome is Outcome.DONE
    assert await bench.actions() == ["act"]


async def test_the_rows_of_a_run_that_was_cancelled_are_gone(bench: Bench) -> None:
    async def hangs(context: Order) -> None:
        async with AsyncSession(bench.engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "hangs")
            await asyncio.Event().wait()

    hung = await bench.act(hangs, timeout_ms=200)
    assert hung.outcome is Outcome.UNKNOWN
    assert (await bench.act(attempt=2)).outcome is Outcome.DONE
    assert await bench.effects() == [("act", "usual", None)]


async def test_locked_is_an_attempt_that_failed_and_never_a_wrong_answer(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url, connect_args={"timeout": 0})
    await create_tables(engine)
    bench, inside, go = Bench(engine), asyncio.Event(), asyncio.Event()

    async def slow(context: Order) -> None:
        async with AsyncSession(engine) as session, session.begin(), barrier(session):
            await take_effect(session, context, "slow")
            inside.set()
            await go.wait()

    first = asyncio.create_task(bench.act(slow))
    await inside.wait()
    for action in Action:
        if action.value in ("act", "compensate"):
            locked = await bench.run(action)
            assert locked.outcome is Outcome.FAILED
            assert "database is locked" in str(locked.error)
    go.set()
    assert (await first).outcome is Outcome.DONE
    assert (await bench.act()).patch == {"reservation": "slow"}
    assert await bench.actions() == ["act"]
    await engine.dispose()


async def test_the_second_waits_for_the_first_on_sqlite_too(sqlite_url: str) -> None:
    engine: AsyncEngine = create_async_engine(sqlite_url, connect_args={"timeout": 30})
    await create_tables(engine)
    bench = Bench(engine)
    runs = await asyncio.gather(*(bench.act(run=f"run-{number}") for number in range(4)))
    assert {run.outcome for run in runs} == {Outcome.DONE}
    assert len({str(run.patch) for run in runs}) == 1
    assert len(await bench.effects()) == 1
    await engine.dispose()


async def test_a_connection_that_lives_for_long_has_one_listener(bench: Bench) -> None:
    """A connection that lives for long is watched once, however many blocks it sees."""
    async with bench.engine.connect() as connection:

        async def body(context: Order) -> None:
            async with barrier(connection):
                await take_effect(connection, context, "core")
            await connection.commit()

        counts: list[Any] = []
        for _ in range(3):
            other = Bench(bench.engine)
            assert (await other.act(body)).outcome is Outcome.DONE
            assert connection.sync_connection is not None
            counts.append(len(connection.sync_connection.dispatch.commit))
        assert counts == [1, 1, 1]
        assert (await connection.execute(sa.select(sa.func.count()).select_from(Effect))).scalar() == 3


@pytest.mark.parametrize(
    "actions", list(itertools.combinations_with_replacement([Action.ACT, Action.COMPENSATE], 2)), ids=str
)
async def test_interleavings_of_two_runs_on_sqlite(sqlite_url: str, actions: tuple[Action, Action]) -> None:
    """A second writer is refused, not made to wait: it is the wrong answers that must not come of that."""
    engine = create_async_engine(sqlite_url, connect_args={"timeout": 0})
    await create_tables(engine)
    endings = itertools.cycle(itertools.product([True, False], repeat=2))
    async with asking(engine) as asks:
        for schedule, commits in zip(list(interleavings(MOVES, mirrored=True))[::11], endings, strict=False):
            bench = Bench(engine)
            scripts = [Script(action, commit) for action, commit in zip(actions, commits, strict=True)]
            await check(bench, await play(bench, scripts, schedule, asks), contended=True)
            await check_end(bench)
    await engine.dispose()
