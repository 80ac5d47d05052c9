"""Engines of our own, and what all storages of one database share within an event loop.

A storage is made cheaply, often one for each request. What is dear is kept here, one for each event loop, database and
namespace: a connection belongs to the loop that opened it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from watership.errors import ConfigurationError
from watership.saga.storage.database import Database

POOL_SIZE = 5
CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 30
SQLITE_BUSY_S = 10

_DRIVERS = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}

# What storages share. An entry goes when its last storage is closed, or with its event loop.
_DATABASES: dict[tuple[asyncio.AbstractEventLoop, Hashable, str], Database] = {}


def parse_url(text: str | sa.URL) -> sa.URL:
    """A database URL, its driver made the asynchronous one. Raises `ConfigurationError`."""
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:  # a port that is no number, for one
        # The error's own words would show the URL, and with it the password.
        raise ConfigurationError(
            "this is not a database URL; it looks like sqlite+aiosqlite:///orders.db or "
            "postgresql+asyncpg://user:password@host/database"
        ) from error.with_traceback(None)
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in _DRIVERS.values():
        raise ConfigurationError(
            f"a database URL that begins with {url.drivername}:// is of no use here; "
            f"Watership works with {' and '.join(sorted(set(_DRIVERS.values())))}"
        )
    return url


def in_memory(url: sa.URL) -> bool:
    """Whether it is a SQLite database that only this process can see."""
    if url.get_backend_name() != "sqlite":
        return False
    name = url.database or ""
    return name in ("", ":memory:") or name.startswith("file::memory:") or url.query.get("mode") == "memory"


def reopens(url: sa.URL) -> bool:
    """Whether another engine, made by `make_engine`, would find the same database."""
    return url.drivername in _DRIVERS.values() and not in_memory(url)


def place(url: sa.URL) -> str:
    """What tells one database from another, whoever logs in and by whichever driver."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:{Path(url.database or '').resolve()}"
    host, port = url.host or "", url.port or 5432
    query = sorted((name, str(value)) for name, value in url.query.items() if name in ("host", "port"))
    return (
        f"postgresql://{host}:{port}/{url.database}?{query}" if query else f"postgresql://{host}:{port}/{url.database}"
    )


def make_engine(url: sa.URL, *, pooled: bool = True, timeout_s: float | None = None) -> AsyncEngine:
    """An engine of our own; opens nothing. ``timeout_s`` bounds each statement and the connecting."""
    options: dict[str, Any] = {}
    if not pooled:
        options["poolclass"] = NullPool
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": timeout_s or SQLITE_BUSY_S}
        if in_memory(url) and pooled:
            options["poolclass"] = StaticPool
    else:
        options["connect_args"] = {
            # Without these, asyncpg waits for ever on a link that is dead and does not say so.
            "timeout": timeout_s or CONNECT_TIMEOUT_S,
            "command_timeout": timeout_s or COMMAND_TIMEOUT_S,
            # A plan is made for each run: one that is kept from when a table was small is wrong when it has grown.
            "server_settings": {
                "application_name": "watership",
                "jit": "off",
                "plan_cache_mode": "force_custom_plan",
            },
        }
        if pooled:
            options |= {"pool_size": POOL_SIZE, "max_overflow": POOL_SIZE}
    try:
        engine = create_async_engine(url, **options)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"PostgreSQL needs {error.name}: pip install 'watership[postgres]'") from error
    if url.get_backend_name() == "sqlite" and not in_memory(url):
        sa.event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers beside the writer (WAL); a commit is on the disk when it returns (FULL).

    NORMAL is faster, and loses the newest commits in a power cut: a saga would have acted and not know it.
    """
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError:
        pass  # another connection is about it just now; the mode is the file's
    finally:
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()


def shared_database(
    user: object, identity: Hashable, namespace: str, engine: Callable[[], AsyncEngine], *, owned: bool
) -> Database:
    """The database of this loop for ``identity``, made on first use. ``user`` is the storage that asks."""
    loop = asyncio.get_running_loop()
    key = (loop, identity, namespace)
    database = _DATABASES.get(key)
    if database is None:
        for stale in [stale for stale in _DATABASES if stale[0].is_closed()]:
            del _DATABASES[stale]
        database = _DATABASES[key] = Database(engine(), namespace, owned=owned)
    database.users.add(user)
    return database


async def leave_database(user: object, identity: Hashable, namespace: str) -> None:
    """The storage ``user`` is done; the last one of a loop closes what is shared."""
    key = (asyncio.get_running_loop(), identity, namespace)
    database = _DATABASES.get(key)
    if database is None:
        return
    database.users.discard(user)
    if not database.users:
        del _DATABASES[key]
        await database.close()
