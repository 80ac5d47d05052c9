"""The statements about early signals, those that came before their embedded saga."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from watership import codec
from watership.machine.state import MACHINE_VERSION
from watership.saga.storage.protocol import EarlySignal
from watership.saga.storage.queries import EMBEDDED, Queries
from watership.saga.storage.schema import saga_table, signal_table

_signal = signal_table.c


def keep_signal(queries: Queries, namespace: str, signal: EarlySignal) -> sa.Insert:
    """Keeps one; harmless if it is there."""
    values = {
        "namespace": namespace,
        "driver": EMBEDDED,
        "saga_id": signal.saga_id,
        "signal_id": signal.signal_id,
        "name": signal.name,
        "data": codec.dumps(signal.data).decode(),
    }
    return queries.insert(signal_table).values(**values, at_ms=queries.now).on_conflict_do_nothing()


def forget_signal(namespace: str, signal: EarlySignal) -> sa.Delete:
    """Removes one."""
    one = (_signal.saga_id == signal.saga_id, _signal.signal_id == signal.signal_id)
    return sa.delete(signal_table).where(_signal.namespace == namespace, _signal.driver == EMBEDDED, *one)


def early_signals(
    namespace: str, saga_id: uuid.UUID | None, names: Sequence[str] | None, limit: int
) -> sa.Select[*tuple[Any, ...]]:
    """Those whose saga exists, and is not a newer version's; or those of one saga, or of some names; oldest first."""
    saga = saga_table.c
    there = [saga.saga_id == _signal.saga_id, saga.namespace == _signal.namespace]
    there.append(saga.machine_version <= MACHINE_VERSION)
    if names is not None:
        there.append(saga.name.in_(names))
    statement = (
        sa.select(_signal.saga_id, _signal.signal_id, _signal.name, _signal.data)
        .where(_signal.namespace == namespace, _signal.driver == EMBEDDED, sa.exists().where(*there))
        .order_by(_signal.at_ms)
        .limit(limit)
    )
    return statement if saga_id is None else statement.where(_signal.saga_id == saga_id)


def signal_of(row: Any) -> EarlySignal:
    """A row of `early_signals`."""
    saga_id, signal_id, name, data = row
    return EarlySignal(saga_id, signal_id, name, codec.loads(data))
