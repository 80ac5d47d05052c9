"""The services' door to Postgres: every wait with a limit, and no start on a database that is not ready."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from watership.errors import ConfigurationError
from watership.saga.storage import migrations
from watership.saga.storage.engines import parse_url
from watership.saga.storage.trouble import Trouble, trouble_of

# So that one that is stopped in the middle of a batch holds up nobody for long.
SERVER_SETTINGS = {
    "application_name": "watership",
    "jit": "off",
    # Each statement is by key or through a partial index, whatever the tables have grown to (tested): to plan it anew for
    # each batch would only cost.
    "plan_cache_mode": "force_generic_plan",
    # And such a plan is kept: one that is made while a table is empty, as all are on the first day, would read the whole
    # table ever after, until somebody analyzes it. (And so no statement may need a hash join: see `statements.ADVANCE`.)
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
}


def open_database(url: str) -> AsyncEngine:
    """An engine on Postgres; it connects at first use. Raises `ConfigurationError`."""
    parsed = parse_url(url)
    if parsed.drivername != "postgresql+asyncpg":
        raise ConfigurationError(
            f"the services need PostgreSQL, as postgresql+asyncpg://…; the database URL says {parsed.drivername}"
        )
    database = create_async_engine(
        parsed,
        pool_size=4,
        max_overflow=6,
        pool_timeout=10,
        pool_recycle=1_800,
        connect_args={"timeout": 10, "command_timeout": 15, "server_settings": SERVER_SETTINGS},
    )
    sa.event.listen(database.sync_engine, "checkout", _refuse_one_in_a_transaction)
    return database


def _refuse_one_in_a_transaction(connection: Any, *_: object) -> None:
    """A BEGIN that timed out may have begun one after all: the next one's COMMIT would only release a savepoint."""
    driver = connection.driver_connection
    if driver.is_in_transaction() or getattr(driver, "_top_xact", None) is not None:
        raise sa.exc.DisconnectionError("it was given back in a transaction")  # the pool takes another


async def check_database(database: AsyncEngine) -> None:
    """Raises `ConfigurationError` if the schema is not this version's, `StoreUnavailable` if nobody answers."""
    differences = await migrations.check(database.url)
    if differences:
        raise ConfigurationError(f"the database is not ready: {differences[0]} (`watership db check` tells all)")


def is_too_long(error: Exception) -> bool:
    """Whether the server gave a statement up for its time: half of the work may go through."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == "57014"


def is_passing(error: Exception) -> bool:
    """Whether the same work may go through later: the database was away, busy, failing, or not what it was.

    All but a statement that is itself at fault, which would be so again.
    """
    if trouble_of(error) is not Trouble.OTHER:
        return True
    return isinstance(error, DBAPIError) and str(getattr(error.orig, "sqlstate", "")).startswith("XX")  # internal
