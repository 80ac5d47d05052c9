"""A transaction straight on the driver: what is committed is there, and a connection in disorder goes to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership_orchestrator.database import is_passing, open_database
from watership_orchestrator.direct import Direct, statement, transaction

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
    async with transaction(database) as asked:
        assert (await asked.execute(PUT, {"n": 1})).scalars().all() == [1]
    with pytest.raises(ZeroDivisionError):
        async with transaction(database) as asked:
            await asked.execute(PUT, {"n": 2})
            raise ZeroDivisionError
    assert await there(database) == [1]


async def test_errors_are_sqlalchemys(database: AsyncEngine) -> None:
    async with transaction(database) as asked:
        await asked.execute(PUT, {"n": 1})
    with pytest.raises(sa.exc.IntegrityError) as refused:
        async with transaction(database) as asked:
            await asked.execute(PUT, {"n": 1})
    assert not is_passing(refused.value)
    with pytest.raises(sa.exc.DBAPIError) as lost:
        async with transaction(database) as asked:
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
        async with transaction(database) as asked:
            await asked.execute(PUT, {"n": number})
    async with database.begin() as connection:
        await connection.execute(PUT, {"n": 3})
    other = open_database(str(database.url.render_as_string(hide_password=False)))
    assert await there(other) == [1, 2, 3]
    await other.dispose()


@pytest.mark.parametrize("taken", [transaction, statement])
async def test_a_database_that_takes_no_connection_is_told_as_sqlalchemy_tells_it(
    database_url: str, taken: Callable[[AsyncEngine], AbstractAsyncContextManager[Direct]]
) -> None:
    """As of a server that is still starting: whoever asks must know it for a passing trouble."""
    nowhere = open_database(
        sa.make_url(database_url).set(database="watership_nowhere").render_as_string(hide_password=False)
    )
    with pytest.raises(sa.exc.DBAPIError):
        async with taken(nowhere):
            pass
    await nowhere.dispose()
