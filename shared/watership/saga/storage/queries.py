# ruff: noqa: S608  # put together from constants of this file; values go as parameters
"""The statements. A batch of writes is one statement or two, whatever its size. It decides nothing.

Postgres takes arrays (``unnest``), SQLite takes JSON (``json_each``): each is what its database reads fastest. On
Postgres a batch is one data-modifying statement, so it needs no BEGIN and no COMMIT, and what the statement leaves out
(a lease that was lost) leaves out its log entries too. All times come from the database's clock (law 9).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from watership import codec
from watership.machine.state import MACHINE_VERSION, SagaState
from watership.saga.storage.protocol import Lease, LogEntry
from watership.saga.storage.rows import changes_to_json, context_to_json, current_step, ended, seq_before, state_to_json

EMBEDDED = "embedded"

# A batch's columns and their Postgres types. The first block is what a create and a commit have in common.
_ROW = {
    "saga_id": "uuid",
    "plan_hash": "text",
    "status": "text",
    "seq": "int",
    "context": "text",
    "state": "text",
    "step": "text",
    "parked_reason": "text",
    "paused": "boolean",
    "due_at_ms": "bigint",
    "ended": "boolean",
}
_CREATE = {**_ROW, "name": "text", "input_hash": "text", "lease_ms": "bigint"}
_COMMIT = {**_ROW, "epoch": "bigint", "seq_before": "int", "freed": "boolean"}
_LOG = {"saga_id": "uuid", "seq": "int", "at_ms": "bigint", "cause": "text", "changes": "text"}
_LEASE = {"saga_id": "uuid", "epoch": "bigint"}

_PARTS_CREATED = """(
    saga_id, namespace, driver, name, plan_hash, status, seq, context, state, step, input_hash, machine_version,
    parked_reason, paused, due_at_ms, wake_at_ms, lease_until_ms, epoch, created_at_ms, updated_at_ms
) SELECT
    u.saga_id, :namespace, 'embedded', u.name, u.plan_hash, u.status, u.seq, u.context, u.state, u.step, u.input_hash,
    :machine_version, u.parked_reason, u.paused, u.due_at_ms,
    CASE WHEN u.ended THEN NULL ELSE clock.now_ms + u.lease_ms END, clock.now_ms + u.lease_ms, 1,
    clock.now_ms, clock.now_ms"""

# A pruned saga's id is as taken as a living one's (law 11).
_NOT_PRUNED = "NOT EXISTS (SELECT 1 FROM watership_tombstone AS t WHERE t.saga_id = u.saga_id)"

# `wake_at_ms` is indexed: it keeps its value while the saga runs, so that the update stays heap-only.
_PARTS_COMMITTED = """
    plan_hash = u.plan_hash, status = u.status, seq = u.seq, context = u.context, state = u.state, step = u.step,
    parked_reason = u.parked_reason, paused = u.paused, due_at_ms = u.due_at_ms, machine_version = :machine_version,
    wake_at_ms = CASE WHEN u.ended THEN NULL ELSE COALESCE(s.wake_at_ms, {now}) END,
    lease_until_ms = CASE WHEN u.freed THEN 0 ELSE s.lease_until_ms END, updated_at_ms = {now}"""

# Both databases would rather go through the index on the namespace, and so through every saga, than through the key:
# each hides the namespace from its planner in its own way. Postgres plans the statement once, on whatever size the
# table has then; `abs` (true of every epoch) makes it expect few rows, for which the key is right at any size.
_HELD_SQLITE = "s.saga_id = u.saga_id AND s.epoch = u.epoch AND +s.namespace = :namespace AND s.driver = 'embedded'"
_HELD_POSTGRES = """s.saga_id = u.saga_id AND s.epoch = u.epoch AND abs(u.epoch) = u.epoch
    AND s.namespace IS NOT DISTINCT FROM CAST(:namespace AS text) AND s.driver = 'embedded'"""


@dataclasses.dataclass(slots=True, eq=False)
class Write:
    """One saga's part of a batch. ``lease`` None: it is a create. The JSON is made by the caller, not by the batch."""

    saga_id: uuid.UUID
    row: tuple[Any, ...]
    log: list[tuple[int, int, str, str]]
    lease: Lease | None
    in_doubt: bool = False  # a connection was lost while it was written: it may have been


@dataclasses.dataclass(slots=True)
class Written:
    """What a batch came to. ``created``: the end of the lease and the clock, by saga."""

    created: dict[uuid.UUID, tuple[int, int]] = dataclasses.field(default_factory=dict)
    committed: set[uuid.UUID] = dataclasses.field(default_factory=set)


def create_write(saga_id: uuid.UUID, state: SagaState, entry: LogEntry, *, input_hash: str, lease_ms: int) -> Write:
    """A new saga, as a batch takes it."""
    row = (*_row_of(state), state.name, input_hash, lease_ms)
    return Write(saga_id, row, [_entry_row(entry)], None)


def commit_write(lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> Write:
    """A transition, as a batch takes it. Raises `ValueError` if the entries do not lead to the state."""
    row = (*_row_of(state), lease.epoch, seq_before(state, entries), release)
    return Write(lease.saga_id, row, [_entry_row(entry) for entry in entries], lease)


def _row_of(state: SagaState) -> tuple[Any, ...]:
    return (
        state.plan_hash,
        state.status.value,
        state.seq,
        context_to_json(state),
        state_to_json(state),
        current_step(state),
        state.parked_reason,
        state.paused,
        state.due_at_ms,
        ended(state),
    )


def _entry_row(entry: LogEntry) -> tuple[int, int, str, str]:
    return entry.seq, entry.at_ms, entry.cause, changes_to_json(entry.changes)


class PostgresQueries:
    """The statements in Postgres' words."""

    now_sql = "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)"

    insert = staticmethod(postgresql.insert)

    def __init__(self, namespace: str) -> None:
        self.now = sa.literal_column(self.now_sql, sa.BigInteger)
        # A volatile function keeps an index from being used; read once, before the rows are, it does not.
        self.now_once = sa.select(self.now).scalar_subquery()
        self._fixed = {"namespace": namespace, "machine_version": MACHINE_VERSION}
        logged = f"""INSERT INTO watership_log (saga_id, seq, at_ms, cause, changes)
            SELECT l.saga_id, l.seq, l.at_ms, l.cause, l.changes FROM {_unnest(_LOG, "l", "log_")} JOIN written USING (saga_id)"""
        self._create = sa.text(
            f"""WITH clock AS MATERIALIZED (SELECT {self.now_sql} AS now_ms), written AS (
                INSERT INTO watership_saga {_PARTS_CREATED} FROM {_unnest(_CREATE, "u")} CROSS JOIN clock
                WHERE {_NOT_PRUNED} ON CONFLICT (saga_id) DO NOTHING RETURNING saga_id, lease_until_ms, created_at_ms
            ), logged AS ({logged}) SELECT saga_id, lease_until_ms, created_at_ms FROM written"""
        )
        self._commit = sa.text(
            f"""WITH written AS (
                UPDATE watership_saga AS s SET {_PARTS_COMMITTED.format(now=self.now_sql)} FROM {_unnest(_COMMIT, "u")}
                WHERE {_HELD_POSTGRES} AND s.seq = u.seq_before RETURNING s.saga_id
            ), logged AS ({logged}) SELECT saga_id FROM written"""
        )
        self._renew = sa.text(
            f"""UPDATE watership_saga AS s SET lease_until_ms = {self.now_sql} + CAST(:lease_ms AS bigint)
                FROM {_unnest(_LEASE, "u")} WHERE {_HELD_POSTGRES} AND s.lease_until_ms > 0"""
        )

    async def write(self, connection: AsyncConnection, writes: Sequence[Write]) -> Written:
        """Writes a batch; what it did not write is missing in the answer. A saga is in a batch once."""
        written = Written()
        creates = [write for write in writes if write.lease is None]
        if creates:
            rows = await connection.execute(self._create, self._arguments(_CREATE, creates))
            written.created = {saga_id: (until, now) for saga_id, until, now in rows}
        commits = [write for write in writes if write.lease is not None]
        if commits:
            rows = await connection.execute(self._commit, self._arguments(_COMMIT, commits))
            written.committed = {saga_id for (saga_id,) in rows}
        return written

    async def renew(self, connection: AsyncConnection, leases: Sequence[Lease], lease_ms: int) -> None:
        """Extends the leases that still hold. One that was given up (0) is not taken back."""
        ids, epochs = [lease.saga_id for lease in leases], [lease.epoch for lease in leases]
        arguments = {"saga_id": ids, "epoch": epochs, "lease_ms": lease_ms, "namespace": self._fixed["namespace"]}
        await connection.execute(self._renew, arguments)

    def _arguments(self, columns: dict[str, str], writes: Sequence[Write]) -> dict[str, Any]:
        rows = zip(*((write.saga_id, *write.row) for write in writes), strict=True)
        log = [(write.saga_id, *entry) for write in writes for entry in write.log]
        log_columns = zip(*log, strict=True) if log else ((),) * len(_LOG)
        return {
            **self._fixed,
            **dict(zip(columns, map(list, rows), strict=True)),
            **dict(zip((f"log_{name}" for name in _LOG), map(list, log_columns), strict=True)),
        }


class SqliteQueries:
    """The statements in SQLite's words. Batches need a transaction around them: they are two statements each."""

    now_sql = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

    insert = staticmethod(sqlite.insert)

    def __init__(self, namespace: str) -> None:
        self.now = sa.literal_column(self.now_sql, sa.BigInteger)
        self.now_once = sa.select(self.now).scalar_subquery()
        self._fixed = {"namespace": namespace, "machine_version": MACHINE_VERSION}
        self._create = sa.text(
            f"""INSERT INTO watership_saga {_PARTS_CREATED} FROM {_json_each(_CREATE, "u")}
                CROSS JOIN (SELECT {self.now_sql} AS now_ms) AS clock
                WHERE {_NOT_PRUNED} ON CONFLICT (saga_id) DO NOTHING RETURNING saga_id, lease_until_ms, created_at_ms"""
        )
        self._commit = sa.text(
            f"""UPDATE watership_saga AS s SET {_PARTS_COMMITTED.format(now=self.now_sql)} FROM {_json_each(_COMMIT, "u")}
                WHERE {_HELD_SQLITE} AND s.seq = u.seq_before RETURNING saga_id"""
        )
        self._log = sa.text(
            f"""INSERT INTO watership_log (saga_id, seq, at_ms, cause, changes)
                SELECT u.saga_id, u.seq, u.at_ms, u.cause, u.changes FROM {_json_each(_LOG, "u")}"""
        )
        self._renew = sa.text(
            f"""UPDATE watership_saga AS s SET lease_until_ms = {self.now_sql} + :lease_ms
                FROM {_json_each(_LEASE, "u")} WHERE {_HELD_SQLITE} AND s.lease_until_ms > 0"""
        )

    async def write(self, connection: AsyncConnection, writes: Sequence[Write]) -> Written:
        """Writes a batch; what it did not write is missing in the answer. A saga is in a batch once."""
        written = Written()
        creates = [write for write in writes if write.lease is None]
        if creates:
            rows = await connection.execute(self._create, self._arguments(creates))
            written.created = {uuid.UUID(hex=saga_id): (until, now) for saga_id, until, now in rows}
        commits = [write for write in writes if write.lease is not None]
        if commits:
            rows = await connection.execute(self._commit, self._arguments(commits))
            written.committed = {uuid.UUID(hex=saga_id) for (saga_id,) in rows}
        log = [
            (write.saga_id.hex, *entry)
            for write in writes
            if write.saga_id in written.created or write.saga_id in written.committed
            for entry in write.log
        ]
        if log:
            await connection.execute(self._log, {"batch": codec.dumps(log).decode()})
        return written

    async def renew(self, connection: AsyncConnection, leases: Sequence[Lease], lease_ms: int) -> None:
        """Extends the leases that still hold. One that was given up (0) is not taken back."""
        batch = codec.dumps([(lease.saga_id.hex, lease.epoch) for lease in leases]).decode()
        arguments = {"batch": batch, "lease_ms": lease_ms, "namespace": self._fixed["namespace"]}
        await connection.execute(self._renew, arguments)

    def _arguments(self, writes: Sequence[Write]) -> dict[str, Any]:
        batch = codec.dumps([(write.saga_id.hex, *write.row) for write in writes]).decode()
        return {**self._fixed, "batch": batch}


Queries = PostgresQueries | SqliteQueries


def _unnest(columns: dict[str, str], alias: str, prefix: str = "") -> str:
    arrays = ", ".join(f"CAST(:{prefix}{name} AS {kind}[])" for name, kind in columns.items())
    return f"unnest({arrays}) AS {alias}({', '.join(columns)})"


def _json_each(columns: dict[str, str], alias: str) -> str:
    parts = ", ".join(f"json_extract(value, '$[{place}]') AS {name}" for place, name in enumerate(columns))
    return f"(SELECT {parts} FROM json_each(:batch)) AS {alias}"
