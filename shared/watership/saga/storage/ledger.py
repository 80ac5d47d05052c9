"""The ledger's statements, alike on every database: what came late, twice, or for nobody. It decides nothing."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from watership.saga.storage.protocol import LedgerLine
from watership.saga.storage.schema import ledger_table

_columns = ledger_table.c


def insert_line(namespace: str, saga_id: uuid.UUID, reason: str, message: str, now: Any) -> sa.Insert:
    """Adds a line. ``now``: the database's clock, as an expression."""
    values = {"namespace": namespace, "saga_id": saga_id, "reason": reason, "message": message}
    return sa.insert(ledger_table).values(**values, at_ms=now)


def select_lines(namespace: str, saga_id: uuid.UUID | None, limit: int) -> sa.Select[tuple[uuid.UUID, int, str, str]]:
    """The newest lines first."""
    query = sa.select(_columns.saga_id, _columns.at_ms, _columns.reason, _columns.message)
    query = query.where(_columns.namespace == namespace)
    if saga_id is not None:
        query = query.where(_columns.saga_id == saga_id)
    return query.order_by(_columns.ledger_id.desc()).limit(limit)


def line_of(row: Any) -> LedgerLine:
    """A selected row."""
    return LedgerLine(uuid.UUID(bytes=row.saga_id.bytes), row.at_ms, row.reason, row.message)
