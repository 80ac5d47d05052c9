"""The services' door to Postgres: every wait with a limit, and no start on a database that is not ready."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from watership.errors import ConfigurationError
from watership.saga.storage import migrations

# So that one that is stopped in the middle of a batch holds up nobody for long.
SERVER_SETTINGS = {
    "application_name": "watership",
    "jit": "off",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
}
# Classes of SQLSTATE that say "not now": connection, resources, rollback, object in use, shutting down.
PASSING = ("08", "40", "53", "55", "57")


def open_database(url: str) -> AsyncEngine:
    """An engine on Postgres; it connects at first use. Raises `ConfigurationError`."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigurationError(f"the database URL cannot be read: {error}") from error
    if parsed.drivername != "postgresql+asyncpg":
        raise ConfigurationError(
            f"the services need PostgreSQL, as postgresql+asyncpg://…; the database URL says {parsed.drivername}"
        )
    return create_async_engine(
        parsed,
        pool_size=4,
        max_overflow=2,
        pool_timeout=10,
        pool_recycle=1_800,
        connect_args={"timeout": 10, "command_timeout": 15, "server_settings": SERVER_SETTINGS},
    )


async def check_database(database: AsyncEngine) -> None:
    """Raises `ConfigurationError` if the schema is not this version's, `StoreUnavailable` if nobody answers."""
    differences = await migrations.check(database.url)
    if differences:
        raise ConfigurationError(f"the database is not ready: {differences[0]} (`watership db check` tells all)")


def is_passing(error: Exception) -> bool:
    """Whether the same work may go through later: the database was away, or two transactions met."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return error.connection_invalidated or state is None or state.startswith(PASSING)
    return isinstance(error, OSError | TimeoutError | PoolTimeout)
