"""A transaction straight on the driver: what is committed is there, and a connection in disorder goes to nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership_orchestrator import direct
from watership_orchestrator.database import is_passing, open_database
from watership_orchestrator.direct import Connections, Direct

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]

PUT = sa.text("INSERT INTO direct_test (n) VALUES (CAST(:n AS int)) RETURNING n")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = open_database(database_url)
    async with made.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE direct_test (n int PRIMARY KEY)"))
    yield made
    await made.dispose()


async def there(database: AsyncEngine) -> list[int]:
    async with database.connect() as connection:
        return list((await connection.execute(sa.text("SELECT n FROM direct_test ORDER BY n"))).scalars())


async def test_it_is_committed_at_its_end_and_rolled_back_by_an_error(database: AsyncEngine) -> None:
    async with Connections(database).transaction() as asked:
        assert (await asked.execute(PUT, {"n": 1})).scalars().all() == [1]
    with pytest.raises(ZeroDivisionError):
        async with Connections(database).transaction() as asked:
            await asked.execute(PUT, {"n": 2})
            raise ZeroDivisionError
    assert await there(database) == [1]


async def test_errors_are_sqlalchemys(database: AsyncEngine) -> None:
    async with Connections(database).transaction() as asked:
        await asked.execute(PUT, {"n": 1})
    with pytest.raises(sa.exc.IntegrityError) as refused:
        async with Connections(database).transaction() as asked:
            await asked.execute(PUT, {"n": 1})
    assert not is_passing(refused.value)
    with pytest.raises(sa.exc.DBAPIError) as lost:
        async with Connections(database).transaction() as asked:
            await asked.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"), {})
    assert is_passing(lost.value)
    assert await there(database) == [1]


async def test_after_a_begin_that_nobody_waited_for_the_next_one_is_committed(database: AsyncEngine) -> None:
    """Its connection is in a transaction that nobody knows of: on it, a COMMIT would only release a savepoint."""
    async with database.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        begin = asyncio.create_task(driver.transaction().start())
        await asyncio.sleep(0)
        begin.cancel()
        await asyncio.gather(begin, return_exceptions=True)
    for number in (1, 2):
        async with Connections(database).transaction() as asked:
            await asked.execute(PUT, {"n": number})
    async with database.begin() as connection:
        await connection.execute(PUT, {"n": 3})
    other = open_database(str(database.url.render_as_string(hide_password=False)))
    assert await there(other) == [1, 2, 3]
    await other.dispose()


@pytest.mark.parametrize("taken", [Connections.transaction, Connections.statement])
async def test_a_database_that_takes_no_connection_is_told_as_sqlalchemy_tells_it(
    database_url: str, taken: Callable[[Connections], AbstractAsyncContextManager[Direct]]
) -> None:
    """As of a server that is still starting: whoever asks must know it for a passing trouble."""
    nowhere = open_database(
        sa.make_url(database_url).set(database="watership_nowhere").render_as_string(hide_password=False)
    )
    with pytest.raises(sa.exc.DBAPIError):
        async with taken(Connections(nowhere)):
            pass
    await nowhere.dispose()


# --- the one at hand


async def backend(asked: Direct) -> int:
    return int((await asked.execute(sa.text("SELECT pg_backend_pid() AS pid"), {})).scalars().one())


async def test_a_connection_stays_at_hand(database: AsyncEngine) -> None:
    connections = Connections(database)
    async with connections.statement() as one, connections.transaction() as other:
        first, second = await backend(one), await backend(other)
        assert first != second
    async with connections.statement() as one:
        assert await backend(one) in (first, second)
        assert database.pool.checkedout() == 1  # type: ignore[attr-defined]
    assert database.pool.checkedout() == 1  # type: ignore[attr-defined]


async def test_what_failed_is_not_kept_at_hand(database: AsyncEngine) -> None:
    connections = Connections(database)
    with pytest.raises(ZeroDivisionError):
        async with connections.statement():
            raise ZeroDivisionError
    assert database.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_one_at_hand_that_the_server_ended_is_not_used(database: AsyncEngine) -> None:
    connections = Connections(database)
    async with connections.statement() as asked:
        mine, driver = await backend(asked), asked.driver
    gone = asyncio.Event()
    driver.add_termination_listener(lambda _: gone.set())
    async with database.connect() as connection:
        await connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": mine})
    await asyncio.wait_for(gone.wait(), 10)
    async with connections.statement() as asked:
        assert await backend(asked) != mine


async def test_one_that_was_at_hand_for_long_goes_through_the_pool(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_out: list[object] = []
    sa.event.listen(database.sync_engine, "checkout", lambda *given: checked_out.append(given))
    connections = Connections(database)
    for _ in range(3):
        async with connections.statement():
            pass
    assert len(checked_out) == 1
    monkeypatch.setattr(direct, "AT_HAND_S", 0.0)
    connections = Connections(database)
    for _ in range(3):
        async with connections.statement():
            pass
    assert len(checked_out) == 4


async def test_it_ends_with_its_engine(database: AsyncEngine) -> None:
    connections = Connections(database)
    async with connections.statement() as asked:
        driver = asked.driver
    await database.dispose()
    assert driver.is_closed()
    async with connections.statement() as asked:  # as the engine itself may be used again
        assert await backend(asked)


async def test_one_in_use_while_its_engine_is_disposed_of_is_not_kept(database: AsyncEngine) -> None:
    connections = Connections(database)
    async with connections.statement() as asked:
        mine = await backend(asked)
        await database.dispose()
    async with connections.statement() as asked:
        assert await backend(asked) != mine


async def test_another_one_does_not_make_it_younger(database: AsyncEngine) -> None:
    now_s = 0.0
    checked_out: list[object] = []
    sa.event.listen(database.sync_engine, "checkout", lambda *given: checked_out.append(given))
    connections = Connections(database, lambda: now_s)
    for _ in range(4):
        async with contextlib.AsyncExitStack() as inner, connections.statement():
            await inner.enter_async_context(connections.statement())
        now_s += 0.6 * direct.AT_HAND_S
    assert len(checked_out) == 4 + 2, "the second each time, the first each second time"
