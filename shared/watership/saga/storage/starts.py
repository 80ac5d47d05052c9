"""Starts that are written in the caller's own transaction: one row, which whoever drives the saga takes up.

Committed with the caller's work, it is started; rolled back, it never was. There is no message, so none can be lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from watership import codec
from watership.errors import ConfigurationError
from watership.machine.plan import Plan
from watership.saga.storage.protocol import StartRow
from watership.saga.storage.queries import PostgresQueries, SqliteQueries
from watership.saga.storage.schema import start_table
from watership.saga.storage.trouble import Trouble, explained, trouble_of

Session = AsyncSession | AsyncConnection

_CLOCKS = {"postgresql": PostgresQueries.now_sql, "sqlite": SqliteQueries.now_sql}
_start = start_table.c


async def write_start(
    session: Session, *, namespace: str, driver: str, plan: Plan, saga_id: uuid.UUID, context: bytes
) -> None:
    """Writes the row in the transaction that ``session`` is in. Raises `ConfigurationError` if it cannot be there."""
    if not isinstance(session, AsyncSession | AsyncConnection):
        raise ConfigurationError(
            f"`session` must be an AsyncSession or an AsyncConnection, it is a {type(session).__name__}"
        )
    connection = await session.connection() if isinstance(session, AsyncSession) else session
    dialect = connection.dialect.name
    needed = ("postgresql",) if driver == "orchestrator" else tuple(_CLOCKS)
    if dialect not in needed:
        raise ConfigurationError(
            f"a start in a transaction needs {' or '.join(needed)} here, and this session speaks {dialect}"
        )
    values = {
        "namespace": namespace,
        "driver": driver,
        "saga_id": saga_id,
        "saga": plan.saga,
        "plan_hash": plan.hash,
        "plan": codec.dumps(plan.to_data()).decode(),
        "context": context.decode(),
    }
    now: sa.ColumnElement[int] = sa.literal_column(_CLOCKS[dialect], sa.BigInteger)
    try:
        await connection.execute(sa.insert(start_table).inline().values(**values, at_ms=now))
    except Exception as error:
        if trouble_of(error) is Trouble.NOT_MIGRATED:
            told = explained(error, connection.engine.url)
            assert told is not None, "a database that is not migrated is told in words"
            raise told from error
        raise  # the caller's transaction, the caller's error


def take_starts(namespace: str, driver: str, names: Sequence[str], *, limit: int, hold_ms: int, now: Any) -> Any:
    """A statement that takes rows up, oldest first: nobody else sees them for ``hold_ms``. Returns what `row_of` reads."""
    some = (
        sa.select(_start.start_id)
        .where(_start.namespace == namespace, _start.driver == driver)
        .where(_start.look_at_ms <= now, _start.saga.in_(names))
        .order_by(_start.look_at_ms, _start.start_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = sa.update(start_table).where(_start.start_id.in_(some)).values(look_at_ms=now + hold_ms)
    return taken.returning(_start.start_id, _start.saga_id, _start.saga, _start.context)


def start_done(start_id: int) -> sa.Delete:
    """A statement that removes a row: its saga exists, or never will."""
    return sa.delete(start_table).where(_start.start_id == start_id)


def row_of(row: Any) -> StartRow:
    """A row that `take_starts` returned."""
    return StartRow(row.start_id, uuid.UUID(bytes=row.saga_id.bytes), row.saga, row.context)
