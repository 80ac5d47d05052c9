"""A database for handlers in virtual time: SQLite in memory, without a thread, behind SQLAlchemy's usual async engine.

Real drivers need sockets or threads, which a virtual loop has not. Here each connection is one of `sqlite3` that runs its
statements at once; who meets a lock waits for it in virtual time. The server's side is played as well: a connection whose
process died, or stands still for long, is closed, and what it has not committed is rolled back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import sqlite3
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import MetaData
from sqlalchemy.dialects.sqlite.aiosqlite import dialect as sqlite_dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateTable

from watership.testing.virtual_loop import Lane, current_lane

T = TypeVar("T")

LOCK_TIMEOUT_S = 15.0
LOCK_RETRY_S = 0.05
IDLE_IN_TRANSACTION_S = 10.0
BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
CLOSED = "connection closed"  # the words by which SQLAlchemy knows that a connection is gone

_WRITES = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE)\b(?:.*?\b(?:INTO|FROM)\b)?\s*[\"`\[]?(\w+)?", re.IGNORECASE)
_names = itertools.count(1)

# Told of each write and each commit before it takes place: there, a process may be made to crash.
before_write: ContextVar[Callable[[str], Awaitable[None]] | None] = ContextVar("watership_before_write", default=None)


def database(*metadata: MetaData) -> AsyncEngine:
    """An engine on a new, empty SQLite database in memory, with the tables of ``metadata``. For handlers under `torture`.

    ::

        def fresh():
            return ShopContainer(database(ShopBase.metadata, BarrierBase.metadata))

    Sessions, transactions and constraints are those of SQLite; it works in any event loop, and the same run gives the same
    result each time. The database is gone with its engine. Raises what SQLite raises for a table that it cannot make.
    """
    server = _Server()
    server.execute_all(statement for one in metadata for statement in _statements_of(one))

    async def connect(*_: Any, **__: Any) -> InlineConnection:
        return InlineConnection(server)

    return create_async_engine("sqlite+aiosqlite://", async_creator=connect, poolclass=NullPool)


_made: weakref.WeakKeyDictionary[MetaData, list[str]] = weakref.WeakKeyDictionary()


def _statements_of(metadata: MetaData) -> list[str]:
    """The DDL of these tables: hundreds of runs want it, so it is compiled once."""
    statements = _made.get(metadata)
    if statements is None:
        dialect: Any = sqlite_dialect()
        statements = _made[metadata] = []
        for table in metadata.sorted_tables:
            statements.append(str(CreateTable(table).compile(dialect=dialect)))
            statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
    return statements


class _Server:
    """One database, and who is connected to it."""

    def __init__(self) -> None:
        self.uri = f"file:watership-in-memory-{next(_names)}?mode=memory&cache=shared"
        self.connections: weakref.WeakSet[InlineConnection] = weakref.WeakSet()
        self._keeper = self.connect()  # the database is there for as long as somebody is connected
        weakref.finalize(self, self._keeper.close)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.uri, uri=True, timeout=0, check_same_thread=False)

    def execute_all(self, statements: Iterable[str]) -> None:
        for statement in statements:
            self._keeper.execute(statement)
        self._keeper.commit()

    def take_back(self, waited_s: float) -> bool:
        """Closes what dead processes hold, and those that have stood still for longer than a server would wait."""
        gone = [
            one for one in self.connections if one.is_dead or (waited_s >= IDLE_IN_TRANSACTION_S and one.is_stopped)
        ]
        for connection in gone:
            connection.stop()
        return bool(gone)


class InlineConnection:
    """What `aiosqlite.Connection` is to SQLAlchemy, run at once. One for each transaction."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._open: sqlite3.Connection | None = server.connect()
        self._connection = True  # SQLAlchemy takes a commit for done where this is not true
        self._lane: Lane | None = current_lane()
        self._tx = _AtOnce()
        server.connections.add(self)

    # --- what SQLAlchemy looks for

    @property
    def _conn(self) -> sqlite3.Connection:
        if self._open is None:
            raise sqlite3.OperationalError(CLOSED)
        return self._open

    @property
    def isolation_level(self) -> str | None:
        return self._conn.isolation_level

    async def create_function(self, *arguments: Any, **options: Any) -> None:
        self._conn.create_function(*arguments, **options)

    def cursor(self) -> InlineCursor:
        return InlineCursor(self)

    async def commit(self) -> None:
        if self._conn.in_transaction:
            await _tell("COMMIT")
        await self.patiently(self._conn.commit)

    async def rollback(self) -> None:
        if self._open is not None:  # else the server has done it
            self._open.rollback()

    async def close(self) -> None:
        self.stop()
        self._connection = False

    def stop(self) -> None:
        """Closes it; SQLite rolls back what is not committed."""
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    # --- how

    @property
    def is_dead(self) -> bool:
        """Its process died, and the server has not noticed yet."""
        return self._open is not None and self._lane is not None and self._lane.dead

    @property
    def is_stopped(self) -> bool:
        """Its process stands still."""
        return self._open is not None and self._lane is not None and self._lane.stopped

    async def patiently(self, statement: Callable[[], T]) -> T:
        """Runs it; waits, in virtual time, for the locks of others. Raises "database is locked" after a while."""
        waited_s = 0.0
        while True:
            try:
                return statement()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in BUSY_CODES:
                    raise
                if self._server.take_back(waited_s):
                    continue
                if waited_s >= LOCK_TIMEOUT_S:
                    raise
            await asyncio.sleep(LOCK_RETRY_S)
            waited_s += LOCK_RETRY_S

    def raw_cursor(self) -> sqlite3.Cursor:
        return self._conn.cursor()


class InlineCursor:
    """What `aiosqlite.Cursor` is to SQLAlchemy."""

    def __init__(self, connection: InlineConnection) -> None:
        self._connection = connection
        self._cursor = connection.raw_cursor()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def execute(self, operation: str, parameters: Any = ()) -> Self:
        await _tell_of(operation)
        await self._connection.patiently(lambda: self._run(self._cursor.execute, operation, parameters))
        return self

    async def executemany(self, operation: str, parameters: Any) -> Self:
        await _tell_of(operation)
        await self._connection.patiently(lambda: self._run(self._cursor.executemany, operation, parameters))
        return self

    def _run(self, execute: Callable[..., Any], operation: str, parameters: Any) -> None:
        self._connection.raw_cursor()  # refuses a connection that the server has closed
        execute(operation, parameters)

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        return self._cursor.fetchmany(size or self.arraysize)

    async def fetchall(self) -> Sequence[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # its connection is closed, and the cursor with it
            self._cursor.close()

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    @property
    def arraysize(self) -> int:
        return self._cursor.arraysize

    @arraysize.setter
    def arraysize(self, value: int) -> None:
        self._cursor.arraysize = value


class _AtOnce:
    """Where aiosqlite has the queue of its thread, by which SQLAlchemy sets an isolation level."""

    def put_nowait(self, item: tuple[asyncio.Future[None], Callable[[], None]]) -> None:
        future, function = item
        function()
        future.set_result(None)


async def _tell_of(operation: str) -> None:
    found = _WRITES.match(operation)
    if found is not None:
        await _tell(f"{found[1].upper()} {found[2] or ''}".strip())


async def _tell(what: str) -> None:
    hook = before_write.get()
    if hook is not None:
        await hook(what)
