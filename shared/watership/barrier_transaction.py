"""The transaction around a barrier's block: whose connection it is on, and what becomes of it.

It knows SQLAlchemy's sessions and events. It must never know a saga, or what the barrier's rows say.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RootTransaction, TwoPhaseTransaction, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session

from watership.barrier_table import barrier_table
from watership.errors import BarrierMisused, ConfigurationError
from watership.saga.run import Block

ResultT = TypeVar("ResultT")
_OURS = {"clause": barrier_table}


async def connection_of(session: AsyncSession | AsyncConnection) -> AsyncConnection:
    """The connection that the session's transaction is on. Raises `ConfigurationError` if it is no async session."""
    opened = _opened(session)
    return opened if isinstance(opened, AsyncConnection) else await opened.connection(bind_arguments=_OURS)


async def on_connection_of(session: AsyncSession | AsyncConnection, work: Callable[[Connection], ResultT]) -> ResultT:
    """Runs ``work`` on that connection, all of it in one greenlet: to enter one for each call cost a third of a statement."""
    opened = _opened(session)
    if isinstance(opened, AsyncConnection):
        return await opened.run_sync(work)
    return await opened.run_sync(lambda sync: work(sync.connection(bind_arguments=_OURS)))


async def flushed(session: AsyncSession | AsyncConnection, work: Callable[[], bool], *, commits: bool = False) -> bool:
    """Runs ``work`` behind a flush of the session, in the same greenlet; then ``commits``, if it said yes.

    A connection has nothing to flush.
    """

    def all_of_it(sync: Session | Connection) -> bool:
        if isinstance(sync, Session):
            sync.flush()
        done = work()
        if done and commits:
            sync.commit()
        return done

    return await _opened(session).run_sync(all_of_it)


def commits_plainly(session: AsyncSession | AsyncConnection) -> bool:
    """Whether its commit is SQLAlchemy's own, which is nothing but the one beneath it; not a user's, which may do more."""
    return getattr(session.commit, "__func__", None) in (AsyncSession.commit, AsyncConnection.commit)


def _opened(session: AsyncSession | AsyncConnection) -> AsyncSession | AsyncConnection:
    """Raises `ConfigurationError` if nothing can be written through it."""
    if isinstance(session, async_scoped_session):
        scoped: AsyncSession = session()
        return scoped
    if isinstance(session, AsyncConnection):
        if session.sync_connection is None:
            raise ConfigurationError("the barrier's connection is not open: async with engine.connect() as connection")
    elif not isinstance(session, AsyncSession):
        raise ConfigurationError(
            f"a barrier takes an AsyncSession or an AsyncConnection, not a {type(session).__name__}"
        )
    return session


def refuse_unfit(target: Connection) -> None:
    """Raises `ConfigurationError` or `BarrierMisused` if one commit would not settle what is written from here on."""
    level = target.get_execution_options().get("isolation_level")
    if level is None:  # SQLAlchemy has no public name for what an engine was made with
        level = getattr(target.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise ConfigurationError(
            "a barrier needs a transaction, and this session's isolation level is AUTOCOMMIT: each statement would be on "
            "its own; give the handler a session of an engine without it"
        )
    if isinstance(target.get_transaction(), TwoPhaseTransaction):
        raise ConfigurationError(
            "a barrier needs a transaction that one commit ends, and this session's has two phases"
        )
    if target.in_nested_transaction():
        raise BarrierMisused(
            "a barrier inside a savepoint, which can be rolled back after its block; enter it outside of "
            "session.begin_nested(), which belongs inside the block, around what may fail"
        )


def refuse_open_savepoint(connection: Connection) -> None:
    """Raises `BarrierMisused` if a savepoint of the block is there still at its end."""
    if connection.in_nested_transaction():
        raise BarrierMisused(
            "a savepoint that was begun inside a barrier's block is open at its end, so that a part of the effect can be "
            "rolled back behind it; end it inside the block: async with session.begin_nested(): ..."
        )


# What may stand before a statement's first word.
_LEAD = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
# What begins or ends a transaction. A rollback to a savepoint does not, but it can undo a block that has ended.
_CONTROL = re.compile(
    _LEAD + r"(?:(?P<to>rollback(?:\s+(?:work|transaction))?\s+to)|"
    r"(?:commit|end|rollback|abort|begin(?!\s+not\s+atomic)|start\s+transaction|prepare\s+transaction|xa)\b)",
    re.IGNORECASE | re.DOTALL,
)
# What MariaDB and MySQL commit at, without being asked to.
_COMMITS_BY_ITSELF = re.compile(
    _LEAD + r"(?:(?:create|drop)(?!\s+(?:or\s+replace\s+)?temporary\b)|alter|truncate|rename|grant|revoke|flush|"
    r"(?:un)?lock\s+tables?|set\b[^=]*\bautocommit|(?:analyze|check|optimize|repair)\s+(?:\w+\s+)?tables?)\b",
    re.IGNORECASE | re.DOTALL,
)


class Watch:
    """What happens to the transaction of a block. One for each connection, for as long as that is there."""

    block: Block | None = None
    _transaction: weakref.ref[RootTransaction] | None = None  # not kept: it keeps its connection
    _settled_row: Callable[[], sa.Select[Any]] | None = None
    _shaken = False  # a statement failed behind the block, and perhaps took the whole transaction with it

    def begin(self, connection: Connection, block: Block, settled_row: Callable[[], sa.Select[Any]]) -> None:
        """From now on, it watches the transaction that the connection is in for this block, which settles this row."""
        transaction = connection.get_transaction()
        assert transaction is not None, "the block has written its row"
        self.block, self._transaction = block, weakref.ref(transaction)
        self._settled_row, self._shaken = settled_row, False
        block.is_open = self.is_open

    def is_open(self) -> bool:
        """Whether the block's transaction is its connection's still: neither its commit nor a rollback came back."""
        transaction = self._transaction() if self._transaction is not None else None
        return transaction is not None and transaction.connection.get_transaction() is transaction

    def on_commit(self, connection: Connection) -> None:
        """A commit is about to be sent. Raises `BarrierMisused` for one that must not be."""
        block = self.block
        if block is None or ((block.ended or block.failed) and not self.is_open()):
            return  # of a later transaction, which says nothing of the block's
        refused, cause = self._refused(connection, block)
        if refused is not None:
            connection.connection.rollback()  # SQLAlchemy takes a commit that is refused for the end of the transaction
            raise BarrierMisused(refused) from cause
        block.committing = True

    def _refused(self, connection: Connection, block: Block) -> tuple[str | None, Exception | None]:
        """Why the block's transaction must not be committed, if so, and what that comes of."""
        if block.abandoned:
            return "a commit of a barrier's transaction came after its handler had ended without one", None
        if not block.ended:
            return (
                "a commit inside a barrier's block; commit after it, so that its row and the effect go together",
                None,
            )
        if not self._shaken:
            return None, None
        gone = "the database itself rolled the transaction of a barrier back, since a statement behind the block failed"
        assert self._settled_row is not None, "the block has begun"
        try:
            return (None, None) if connection.execute(self._settled_row()).one_or_none() is not None else (gone, None)
        except DBAPIError as error:  # PostgreSQL takes no statement any more, and answers COMMIT by a rollback
            return gone, error

    def on_rollback(self, connection: Connection) -> None:
        """The transaction is rolled back: asked for, or since its session is closed."""
        if self.block is not None:
            self.block.rolled_back = True

    def on_error(self, error: BaseException) -> None:
        """Something failed on the connection; while the block's commit runs, that is the commit."""
        if self.block is None or not self.is_open():
            return
        if self.block.committing:
            self.block.commit_error = error
        elif self.block.ended:
            self._shaken = True

    def on_statement(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        """A statement is about to be sent. Raises `BarrierMisused` for one that moves transactions behind our back."""
        if self.block is None or not self.is_open():
            return
        compiled = context.compiled if context is not None else None
        if compiled is None or isinstance(compiled.statement, sa.TextClause):  # not SQLAlchemy's own
            found = _CONTROL.match(statement)
            if found is not None and (found["to"] is None or self.block.ended):
                raise BarrierMisused(
                    f"{statement.strip()[:80]!r} as text in a barrier's transaction, of whose end nobody would know; use "
                    f"session.commit(), session.rollback() and session.begin_nested()"
                )
        if connection.dialect.name in ("mysql", "mariadb") and _COMMITS_BY_ITSELF.match(statement):
            raise BarrierMisused(
                f"{statement.strip()[:80]!r} in a barrier's transaction, which {connection.dialect.name} would commit by "
                f"itself, half done; keep such statements out of it"
            )


_watches: weakref.WeakKeyDictionary[Connection, Watch] = weakref.WeakKeyDictionary()
_listened: weakref.WeakSet[Engine] = weakref.WeakSet()
_HEARS: dict[str, Callable[..., None]] = {
    "commit": Watch.on_commit,
    "rollback": Watch.on_rollback,
    "before_cursor_execute": Watch.on_statement,
}


def watch(target: Connection, block: Block, settled_row: Callable[[], sa.Select[Any]]) -> None:
    """From now on, the block hears what becomes of its transaction; its row, once settled, is what the query finds."""
    if target.engine not in _listened:  # once for an engine: a connection's own listeners cost more than its statements
        _listened.add(target.engine)
        for name in _HEARS:
            event.listen(target.engine, name, functools.partial(_tell, name))
    found = _watches.get(target)
    if found is None:
        found = _watches[target] = Watch()
    found.begin(target, block, settled_row)


def _tell(name: str, connection: Connection, *what: Any) -> None:
    found = _watches.get(connection)
    if found is not None:
        _HEARS[name](found, connection, *what)


def _on_error(context: ExceptionContext) -> None:
    """SQLAlchemy says before a commit that it comes, and after it only that it failed."""
    found = _watches.get(context.connection) if context.connection is not None else None
    if found is not None:
        found.on_error(context.original_exception)


# To all dialects: such a listener is asked before an engine's own, one of which may raise an error, and end the asking.
event.listen(Dialect, "handle_error", _on_error)


def explain_missing_table(error: BaseException) -> None:
    """Raises `ConfigurationError` if what is missing is our table."""
    if isinstance(error, DBAPIError) and "watership_barrier" in str(error.orig):
        missing = ("no such table", "does not exist", "doesn't exist")
        if any(words in str(error.orig) for words in missing):
            raise ConfigurationError(
                "the database has no table watership_barrier: make it with your own migrations (docs/guide.md has the DDL), or "
                "`await connection.run_sync(BarrierBase.metadata.create_all)`"
            ) from error
