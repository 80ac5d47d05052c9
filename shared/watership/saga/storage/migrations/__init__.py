"""The schema's history, by Alembic: run from the package, without an ``alembic.ini``.

An upgrade is one transaction under a lock, so any number of processes may run it at once. A schema that
``create_tables`` made is the newest one: it is recognised and stamped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from watership.errors import ConfigurationError
from watership.saga.storage.engines import in_memory, make_engine, parse_url
from watership.saga.storage.schema import SCHEMA_LOCK, VERSION_TABLE, Base
from watership.saga.storage.trouble import explained, shown

# Alembic keeps what it is about in module globals: one at a time in a process.
_ALEMBIC = threading.Lock()
_T = TypeVar("_T")


async def upgrade(url: str | sa.URL) -> bool:
    """Brings the database to this version's schema, and says whether it had to. Raises `ConfigurationError`.

    It does not go back: a schema of a newer Watership is left as it is.
    """
    return await asyncio.to_thread(_work, parse_url(url), _upgrade)


async def check(url: str | sa.URL) -> list[str]:
    """What this version misses in the database, in sentences; empty if it can work there. Changes nothing."""
    return await asyncio.to_thread(_work, parse_url(url), _differences)


def _work(url: sa.URL, work: Callable[[sa.Connection], _T]) -> _T:
    if in_memory(url):
        raise ConfigurationError("a database in memory cannot be migrated: use `await storage.create_tables()`")

    async def connected() -> _T:
        engine = make_engine(url, pooled=False)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        except Exception as error:
            told = explained(error, url)
            if told is None:
                raise
            raise told from error
        finally:
            await engine.dispose()

    with _ALEMBIC:
        return asyncio.run(connected())


def _config(connection: sa.Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _upgrade(connection: sa.Connection) -> bool:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
        # Waiting behind a long report for the lock on a table would make every saga wait behind us.
        connection.execute(sa.text("SET LOCAL lock_timeout = '10s'"))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = _config(connection)
    revision = _revision(connection)
    if revision is None and sa.inspect(connection).has_table("watership_saga"):
        differences = _differences(connection)
        if differences:
            raise ConfigurationError(
                f"the tables in {shown(connection.engine.url)} were not made by a migration, and are not this version's: "
                + "; ".join(differences)
            )
        command.stamp(config, "head")
    elif revision is None or revision in _known(config):
        command.upgrade(config, "head")
    return _revision(connection) != revision


def _differences(connection: sa.Connection) -> list[str]:
    """What is missing. What is there beyond that is a newer version's, and does no harm."""
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    tables = {table.name: table for table in Base.metadata.sorted_tables}
    if not there & tables.keys():
        return ["there are no Watership tables: run `watership db upgrade`"]
    found: list[str] = []
    for name, table in tables.items():
        if name not in there:
            found.append(f"the table {name} is missing: run `watership db upgrade`")
            continue
        columns = {column["name"] for column in inspector.get_columns(name)}
        indexes = {index["name"] for index in inspector.get_indexes(name)}
        checks = {check["name"] for check in inspector.get_check_constraints(name)}
        missing = [f"column {column.name}" for column in table.columns if column.name not in columns]
        missing += [f"index {index.name}" for index in table.indexes if index.name not in indexes]
        missing += [
            f"check {constraint.name}"
            for constraint in table.constraints
            if isinstance(constraint, sa.CheckConstraint) and constraint.name not in checks
        ]
        found += [f"the table {name} lacks its {what}: run `watership db upgrade`" for what in missing]
    revision, config = _revision(connection), _config(connection)
    head = ScriptDirectory.from_config(config).get_current_head()
    if not found and revision is not None and revision != head and revision in _known(config):
        found.append(f"the schema is at revision {revision}, this version's is {head}: run `watership db upgrade`")
    return found


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _known(config: Config) -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
