"""The transaction around a barrier's block: whose connection it is on, and what becomes of it.

It knows SQLAlchemy's sessions and events. It must never know a saga, or what the barrier's rows say.
"""

from __future__ import annotations

import weakref

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from watership.barrier_table import barrier_table
from watership.errors import BarrierMisused, ConfigurationError
from watership.saga.run import Block


async def connection_of(session: AsyncSession | AsyncConnection) -> AsyncConnection:
    """The connection that the session's transaction is on. Raises `ConfigurationError` if it is no async session."""
    if isinstance(session, AsyncConnection):
        return session
    if not isinstance(session, AsyncSession | async_scoped_session):
        raise ConfigurationError(
            f"a barrier takes an AsyncSession or an AsyncConnection, not a {type(session).__name__}"
        )
    return await session.connection(bind_arguments={"clause": barrier_table})


def _sync_of(connection: AsyncConnection) -> Connection:
    if connection.sync_connection is None:
        raise ConfigurationError("the barrier's connection is not open: async with engine.connect() as connection")
    return connection.sync_connection


def refuse_autocommit(connection: AsyncConnection) -> None:
    """Raises `ConfigurationError` if each statement would be a transaction of its own."""
    level = _sync_of(connection).get_execution_options().get("isolation_level")
    if level is None:  # SQLAlchemy has no public name for what an engine was made with
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise ConfigurationError(
            "a barrier needs a transaction, and this session's isolation level is AUTOCOMMIT: each statement would be on "
            "its own; give the handler a session of an engine without it"
        )


class Watch:
    """What happens to the transaction of a block. One for each connection, for as long as that is there."""

    block: Block | None = None

    def on_commit(self, connection: Connection) -> None:
        """A commit is about to be sent. Raises `BarrierMisused` inside the block."""
        if self.block is None:
            return
        if not self.block.ended:
            connection.connection.rollback()  # SQLAlchemy takes a commit that is refused for the end of the transaction
            raise BarrierMisused(
                "a commit inside a barrier's block; commit after it, so that its row and the effect go together"
            )
        self.block.committing = True

    def on_rollback(self, connection: Connection) -> None:
        """The transaction is rolled back: asked for, or since its session is closed."""
        if self.block is not None:
            self.block.rolled_back = True


_watches: weakref.WeakKeyDictionary[Connection, Watch] = weakref.WeakKeyDictionary()


def watch(connection: AsyncConnection, block: Block) -> Watch:
    """From now on, the block hears what becomes of its transaction."""
    target = _sync_of(connection)
    found = _watches.get(target)
    if found is None:
        found = _watches[target] = Watch()
        event.listen(target, "commit", found.on_commit)
        event.listen(target, "rollback", found.on_rollback)
    found.block = block
    return found


def explain_missing_table(error: BaseException) -> None:
    """Raises `ConfigurationError` if what is missing is our table."""
    if isinstance(error, DBAPIError) and "watership_barrier" in str(error.orig):
        missing = ("no such table", "does not exist", "doesn't exist")
        if any(words in str(error.orig) for words in missing):
            raise ConfigurationError(
                "the database has no table watership_barrier: make it with your own migrations (docs/guide.md has the DDL), or "
                "`await connection.run_sync(BarrierBase.metadata.create_all)`"
            ) from error
