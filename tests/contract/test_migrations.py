"""The migrated schema is the one that `create_tables` makes, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from watership.errors import ConfigurationError
from watership.saga.storage import migrations
from watership.saga.storage.schema import VERSION_TABLE
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage

from tests.support.databases import empty_database
from tests.support.stored_sagas import StoredSaga

# Rows as the first schema's programs wrote them.
FIRST_SAGA = """
    INSERT INTO watership_saga (saga_id, namespace, driver, name, status, seq, context, state, input_hash,
        machine_version, wake_at_ms, created_at_ms, updated_at_ms)
    VALUES ('{saga_id}', 'watership', 'embedded', 'Order', 'RUNNING', 1, '{{"n":1}}', '{{"steps":{{}}}}', 'x', 1, 1, 1, 1)
"""
FIRST_LEDGER_LINE = """
    INSERT INTO watership_ledger (namespace, saga_id, at_ms, reason, message)
    VALUES ('watership', '{saga_id}', 1, 'late', '{{}}')
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def empty_urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two databases with nothing in them."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'one.db'}", f"sqlite+aiosqlite:///{tmp_path / 'two.db'}"
        return
    url = request.getfixturevalue("servers").database_url
    with empty_database(url) as one, empty_database(url) as two:
        yield one, two


async def inside(url: str, look: Callable[[sa.Connection], Any]) -> Any:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        found = await connection.run_sync(look)
    await engine.dispose()
    return found


async def execute(url: str, statement: str) -> None:
    await inside(url, lambda connection: connection.exec_driver_sql(statement))


async def create_tables(url: str) -> None:
    storage = SqlAlchemySagaStorage(url)
    await storage.create_tables()
    await storage.close()


def picture(connection: sa.Connection) -> dict[str, Any]:
    """Everything about the tables that a reflection can see."""
    inspector = sa.inspect(connection)
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        if table == VERSION_TABLE:
            continue
        found[table] = {
            "columns": [{**column, "type": str(column["type"])} for column in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "indexes": sorted((_plain(index) for index in inspector.get_indexes(table)), key=str),
            "checks": inspector.get_check_constraints(table),
            "unique": inspector.get_unique_constraints(table),
        }
    if connection.dialect.name == "postgresql":
        rows = connection.exec_driver_sql("SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'watership%%'")
        found["options"] = sorted(tuple(map(str, row)) for row in rows if VERSION_TABLE not in row[0])
    else:
        rows = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        found["options"] = sorted(" ".join(row[0].split()) for row in rows)
    return found


def _plain(index: Any) -> dict[str, Any]:
    return {**index, "dialect_options": {name: str(value) for name, value in index.get("dialect_options", {}).items()}}


async def test_the_migrated_schema_is_the_made_one(empty_urls: tuple[str, str]) -> None:
    migrated, made = empty_urls
    await migrations.upgrade(migrated)
    await create_tables(made)
    one, two = await inside(migrated, picture), await inside(made, picture)
    assert {"watership_saga", "watership_log", "watership_plan"} <= one.keys()
    assert one == two
    assert await migrations.check(migrated) == await migrations.check(made) == []


async def test_an_upgrade_may_run_many_times_at_once(empty_urls: tuple[str, str]) -> None:
    url, _ = empty_urls
    await asyncio.gather(*(migrations.upgrade(url) for _ in range(4)))
    await migrations.upgrade(url)
    assert await migrations.check(url) == []


async def test_made_tables_are_stamped_and_their_sagas_stay(empty_urls: tuple[str, str]) -> None:
    url, _ = empty_urls
    storage = SqlAlchemySagaStorage(url)
    await storage.create_tables()
    saga = await StoredSaga(storage).create()
    await migrations.upgrade(url)
    revision = await inside(url, lambda c: c.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar_one())
    assert revision == "0004"
    assert await storage.load(saga.saga_id) is not None
    await storage.close()


def run_first_migration_only(connection: sa.Connection) -> None:
    config = migrations._config(connection)
    command.upgrade(config, "0001")


async def test_sagas_of_the_first_schema_survive_the_upgrade(empty_urls: tuple[str, str]) -> None:
    old, _ = empty_urls
    await inside(old, run_first_migration_only)
    storage = SqlAlchemySagaStorage(old)
    saga = StoredSaga(storage)
    await inside(old, lambda c: c.exec_driver_sql(FIRST_SAGA.format(saga_id=saga.saga_id.hex)))
    await inside(old, lambda c: c.exec_driver_sql(FIRST_LEDGER_LINE.format(saga_id=saga.saga_id.hex)))
    assert any("watership_start is missing" in sentence for sentence in await migrations.check(old))
    assert await migrations.upgrade(old)
    assert await migrations.check(old) == []
    record = await storage.load(saga.saga_id)
    assert record is not None
    assert (record.state.name, record.state.context) == ("Order", {"n": 1})
    assert await inside(old, lambda c: c.exec_driver_sql("SELECT reason FROM watership_ledger").scalar_one()) == "late"
    another = await StoredSaga(storage).create()
    assert await storage.load(another.saga_id) is not None
    await storage.close()


async def test_what_differs_is_told(empty_urls: tuple[str, str]) -> None:
    url, foreign = empty_urls
    assert await migrations.check(url) == ["there are no Watership tables: run `watership db upgrade`"]
    await create_tables(url)
    await execute(url, "DROP INDEX watership_saga_newest")
    await execute(url, "ALTER TABLE watership_saga DROP COLUMN traceparent")
    await execute(url, "DROP TABLE watership_ledger")
    assert sorted(await migrations.check(url)) == [
        "the table watership_ledger is missing: run `watership db upgrade`",
        "the table watership_saga lacks its column traceparent: run `watership db upgrade`",
        "the table watership_saga lacks its index watership_saga_newest: run `watership db upgrade`",
    ]
    with pytest.raises(ConfigurationError, match=r"not this version's.*traceparent"):
        await migrations.upgrade(url)
    await execute(foreign, "CREATE TABLE watership_saga (id INTEGER)")
    with pytest.raises(ConfigurationError, match="not made by a migration"):
        await migrations.upgrade(foreign)


async def test_a_newer_schema_is_left_alone(empty_urls: tuple[str, str]) -> None:
    url, _ = empty_urls
    await migrations.upgrade(url)
    await execute(url, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    await execute(url, "ALTER TABLE watership_saga ADD COLUMN novelty TEXT")
    assert await migrations.check(url) == []
    await migrations.upgrade(url)
    assert await migrations.check(url) == []


async def test_a_database_in_memory_is_not_migrated() -> None:
    with pytest.raises(ConfigurationError, match="create_tables"):
        await migrations.upgrade("sqlite+aiosqlite://")


async def test_the_last_steps_down_and_up_again_leave_the_same_tables(empty_urls: tuple[str, str]) -> None:
    url, _ = empty_urls
    await migrations.upgrade(url)
    before = await inside(url, picture)

    def down_and_up(connection: sa.Connection) -> None:
        config = migrations._config(connection)
        command.downgrade(config, "0002")
        command.upgrade(config, "head")

    await inside(url, down_and_up)
    assert await inside(url, picture) == before
    assert await migrations.check(url) == []
