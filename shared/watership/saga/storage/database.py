"""One database as one event loop sees it: short connections, retries, and the batches of `writer`.

What is retried is what is safe: a transaction that gave way to another, a read, and a write whose guard (epoch and
sequence number, or the id itself) makes a second time harmless. It must never know what a saga does.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import StaticPool

from watership.errors import ConfigurationError, SagaConflict, WatershipError
from watership.saga.storage.protocol import Lease
from watership.saga.storage.queries import EMBEDDED, PostgresQueries, Queries, SqliteQueries, Write, Written
from watership.saga.storage.rows import lease_lost, log_moved
from watership.saga.storage.schema import SCHEMA_LOCK, Base, log_table, saga_table
from watership.saga.storage.trouble import Trouble, explained, trouble_of
from watership.saga.storage.writer import Lane

SQLITE_VERSION_MIN = (3, 35)
CONTENDED_TRIES_MAX = 10
LOST_TRIES_MAX = 3
# A commit is what a step's outcome hangs on: it outlasts a restart of the database, if that is quick.
COMMIT_PATIENCE_S = 10.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.01, 1.0

_T = TypeVar("_T")


class _NotConnected(Exception):
    """The connection was never had: nothing was sent."""


class Database:
    """An engine, its dialect's statements, and the queues of writes. It belongs to one event loop."""

    def __init__(self, engine: AsyncEngine, namespace: str, *, owned: bool) -> None:
        self.engine, self.owned = engine, owned
        self.namespace = namespace
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.queries: Queries
        if engine.dialect.name == "postgresql":
            self.queries = PostgresQueries(namespace)
            # Each of our statements is whole in itself, so none needs a BEGIN and a COMMIT around it.
            self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
            self.commits, self.creates = Lane(self._write_batch), Lane(self._write_batch)
        elif engine.dialect.name == "sqlite":
            if sqlite3.sqlite_version_info < SQLITE_VERSION_MIN:
                raise ConfigurationError(
                    f"SQLite is {sqlite3.sqlite_version} here; sagas need 3.35 (RETURNING) or newer"
                )
            self.queries = SqliteQueries(namespace)
            self._engine = engine
            self.commits = self.creates = Lane(self._write_batch)  # SQLite has one writer at a time anyway
        else:
            raise ConfigurationError(
                f"SqlAlchemySagaStorage works on postgresql and sqlite; this engine speaks {engine.dialect.name}"
            )
        # Whoever waits for SQLite's write lock sleeps and looks again: better that we queue here, and are called.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else None
        # One connection that all share: readers must wait too, or one's rollback would be everybody's.
        self._readers_too = isinstance(engine.pool, StaticPool)

    async def close(self) -> None:
        """Waits for the writes that are under way; closes the engine if it is ours."""
        await self.creates.idle()
        await self.commits.idle()
        if self.owned:
            await self.engine.dispose()

    async def read(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Runs ``work`` on a connection; again if that was lost on the way. Raises what a user can read."""
        return await self._persist(work, turn=self._turn if self._readers_too else None)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """The same in a transaction of its own. ``work`` may run twice, so a second time must be harmless."""

        async def transact(connection: AsyncConnection) -> _T:
            await self._begin(connection)
            result = await work(connection)
            await connection.commit()
            return result

        return await self._persist(transact, turn=self._turn)

    async def create_tables(self) -> None:
        """Makes the tables that are missing."""

        async def make(connection: AsyncConnection) -> None:
            if connection.dialect.name == "postgresql":  # two that look at once would both find nothing
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            await connection.run_sync(Base.metadata.create_all)

        try:
            async with self._turn or nullcontext(), self.engine.begin() as connection:
                await make(connection)
        except Exception as error:  # noqa: BLE001  # told in words, or raised as it is
            self._raise(error)

    async def _begin(self, connection: AsyncConnection) -> None:
        """On SQLite the write lock comes first: a reader that becomes a writer may be refused for good."""
        if connection.dialect.name != "sqlite":
            return
        await connection.begin()  # an engine of the user's may have a listener here that says BEGIN
        raw: Any = (await connection.get_raw_connection()).driver_connection
        if not getattr(raw, "in_transaction", True):
            await connection.exec_driver_sql("BEGIN IMMEDIATE")

    async def _once(self, work: Callable[[AsyncConnection], Awaitable[_T]], turn: asyncio.Lock | None) -> _T:
        connected = False
        async with turn or nullcontext():
            try:
                async with self._engine.connect() as connection:
                    connected = True
                    return await work(connection)
            except Exception as error:
                if not connected and trouble_of(error) is Trouble.LOST:
                    raise _NotConnected from error
                raise

    async def _persist(
        self,
        work: Callable[[AsyncConnection], Awaitable[_T]],
        *,
        turn: asyncio.Lock | None,
        patience_s: float = 0.0,
        on_lost: Callable[[], None] = lambda: None,
    ) -> _T:
        give_up_at = asyncio.get_running_loop().time() + patience_s
        tries = 0
        while True:
            try:
                return await self._once(work, turn)
            except Exception as error:  # noqa: BLE001  # tried again, told in words, or raised as it is
                tries += 1
                cause = error.__cause__ if isinstance(error, _NotConnected) and error.__cause__ else error
                kind = trouble_of(cause)
                if kind is Trouble.LOST and not isinstance(error, _NotConnected):
                    on_lost()
                patient = asyncio.get_running_loop().time() < give_up_at
                again = (kind is Trouble.CONTENDED and tries < CONTENDED_TRIES_MAX) or (
                    kind is Trouble.LOST
                    and (patient or (tries < LOST_TRIES_MAX and not isinstance(error, _NotConnected)))
                )
                if not again:
                    self._raise(cause)
            await asyncio.sleep(_pause_s(tries))

    def _raise(self, error: BaseException) -> NoReturn:
        told = explained(error, self.engine.url)
        if told is not None:
            raise told from error
        raise error

    # --- batches -----------------------------------------------------------------------------------------------------

    async def _write_batch(self, writes: Sequence[Write]) -> list[Any]:
        """What each waiter gets. Raises only when the fault may be one write's: then each is tried alone."""

        async def transact(connection: AsyncConnection) -> Written:
            await self._begin(connection)
            written = await self.queries.write(connection, writes)
            await connection.commit()
            return written

        def doubt() -> None:
            for write in writes:
                write.in_doubt = True

        patience_s = COMMIT_PATIENCE_S if all(write.lease is not None for write in writes) else 0.0
        try:
            written = await self._persist(transact, turn=self._turn, patience_s=patience_s, on_lost=doubt)
        except WatershipError as error:  # nobody's fault: the same for all, each with an exception of its own
            return [_again(error) for _ in writes]
        return [await self._result(write, written) for write in writes]

    async def _result(self, write: Write, written: Written) -> Any:
        if write.lease is not None and write.saga_id in written.committed:
            return None
        times = written.created.get(write.saga_id)
        if times is not None:
            return Lease(write.saga_id, 1, *times)
        try:
            return await (self._why_not_created(write) if write.lease is None else self._why_not_committed(write))
        except Exception as error:  # noqa: BLE001  # its waiter gets it
            return error

    async def _why_not_created(self, write: Write) -> SagaConflict | None:
        row = await self._standing(write)
        if row is None or (row.namespace == self.namespace and row.driver == EMBEDDED):
            # After a lost connection it may be ours; to be sure, it is told as taken: its lease runs out soon.
            return None
        return SagaConflict(
            f"the id {write.saga_id} is taken by a saga of the namespace {row.namespace!r} (driver: {row.driver}); "
            f"ids are one across namespaces in a database"
        )

    async def _why_not_committed(self, write: Write) -> Exception | None:
        assert write.lease is not None
        row = await self._standing(write)
        if row is None or row.namespace != self.namespace:
            return lease_lost(write.lease)
        if write.in_doubt and write.log and tuple(row[4:]) == write.log[-1][1:]:
            return None  # our newest entry is in the log, word for word: the connection was lost after the commit
        if row.epoch != write.lease.epoch or row.driver != EMBEDDED:
            return lease_lost(write.lease)
        return log_moved(write.lease, row.seq)

    async def _standing(self, write: Write) -> sa.Row[Any] | None:
        last = write.log[-1][0] if write.log else 0
        columns = saga_table.c
        statement = (
            sa.select(columns.namespace, columns.driver, columns.epoch, columns.seq)
            .add_columns(log_table.c.at_ms, log_table.c.cause, log_table.c.changes)
            .outerjoin_from(saga_table, log_table, (log_table.c.saga_id == columns.saga_id) & (log_table.c.seq == last))
            .where(columns.saga_id == write.saga_id)
        )

        async def look(connection: AsyncConnection) -> sa.Row[Any] | None:
            return (await connection.execute(statement)).one_or_none()

        return await self.read(look)


def _pause_s(tries: int) -> float:
    return min(PAUSE_MIN_S * 2.0**tries, PAUSE_MAX_S) * random.uniform(0.5, 1.0)


def _again(error: WatershipError) -> WatershipError:
    fresh = type(error)(str(error))
    fresh.__cause__ = error.__cause__
    return fresh
