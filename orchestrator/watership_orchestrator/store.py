"""The orchestrator's statements on Postgres: set-wise, the same number for one saga as for hundreds.

It decides nothing. A `Batch` is one transaction: lock, write, commit; rows locked elsewhere are passed over.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from watership.machine.state import MACHINE_VERSION, SagaState
from watership.saga.storage.protocol import LogEntry
from watership.saga.storage.rows import (
    changes_from_json,
    changes_to_json,
    context_to_json,
    current_step,
    state_from_row,
    state_to_json,
)

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint".replace("::", r"\:\:")
_ROW = (
    "saga_id, name, plan_hash, status, seq, context, state, input_hash, machine_version, parked_reason, paused, "
    "owed, owed_reason, reply_to, traceparent, due_at_ms, wake_at_ms, namespace, driver"
)

# The clock is read for each row as it is returned, so after its lock (law 9). Ids in order: no deadlock. By the key
# alone: told the namespace, the planner may go through that index instead, and read every saga there is.
_LOCK = sa.text(
    f"SELECT {_ROW}, {_NOW_MS} AS now_ms FROM watership_saga "  # noqa: S608 - names of our own
    "WHERE saga_id = ANY(CAST(:ids AS uuid[])) ORDER BY saga_id FOR UPDATE SKIP LOCKED"
)
_EXISTING = sa.text("SELECT saga_id, namespace, driver FROM watership_saga WHERE saga_id = ANY(CAST(:ids AS uuid[]))")
_CLOCK = sa.text(f"SELECT {_NOW_MS}")
_DUE = sa.text(
    "SELECT saga_id FROM watership_saga WHERE namespace = :namespace AND driver = 'orchestrator' "  # noqa: S608
    f"AND wake_at_ms <= {_NOW_MS} AND machine_version <= CAST(:version AS int) ORDER BY wake_at_ms LIMIT :limit FOR UPDATE SKIP LOCKED"
)
_INSERT = sa.text(
    "INSERT INTO watership_saga (saga_id, namespace, driver, name, plan_hash, status, seq, context, state, step, "
    "input_hash, machine_version, parked_reason, reply_to, traceparent, due_at_ms, wake_at_ms, created_at_ms, "
    "updated_at_ms) "
    "SELECT u.saga_id, CAST(:namespace AS text), 'orchestrator', u.name, u.plan_hash, u.status, u.seq, u.context, u.state, u.step, "
    "u.input_hash, CAST(:version AS int), u.parked_reason, u.reply_to, u.traceparent, u.due_at_ms, u.due_at_ms, "
    "CAST(:now_ms AS bigint), CAST(:now_ms AS bigint) "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:name AS text[]), CAST(:plan_hash AS text[]), CAST(:status AS text[]), "
    "CAST(:seq AS int[]), CAST(:context AS text[]), CAST(:state AS text[]), CAST(:step AS text[]), "
    "CAST(:input_hash AS text[]), CAST(:parked_reason AS text[]), CAST(:reply_to AS text[]), "
    "CAST(:traceparent AS text[]), CAST(:due_at_ms AS bigint[])) "
    "AS u(saga_id, name, plan_hash, status, seq, context, state, step, input_hash, parked_reason, reply_to, "
    "traceparent, due_at_ms) ORDER BY u.saga_id ON CONFLICT (saga_id) DO NOTHING RETURNING saga_id"
)
# wake_at_ms is indexed: it is left as it is unless the saga must be looked at earlier, or somebody just looked
# (`looked`), or nothing is to be waited for any more. So an update on the hot path stays heap-only.
_UPDATE = sa.text(
    "UPDATE watership_saga s SET plan_hash = u.plan_hash, status = u.status, seq = u.seq, context = u.context, "
    "state = u.state, step = u.step, parked_reason = u.parked_reason, machine_version = CAST(:version AS int), "
    "owed = u.owed_reason IS NOT NULL, owed_reason = u.owed_reason, "
    "due_at_ms = u.due_at_ms, updated_at_ms = CAST(:now_ms AS bigint), wake_at_ms = CASE "
    "WHEN u.owed_reason IS NOT NULL THEN CAST(:now_ms AS bigint) + CAST(:owed_look_ms AS bigint) "
    "WHEN u.due_at_ms IS NULL THEN NULL "
    "WHEN u.looked THEN u.due_at_ms "
    "ELSE LEAST(COALESCE(s.wake_at_ms, u.due_at_ms), u.due_at_ms) END "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:plan_hash AS text[]), CAST(:status AS text[]), CAST(:seq AS int[]), "
    "CAST(:context AS text[]), CAST(:state AS text[]), CAST(:step AS text[]), CAST(:parked_reason AS text[]), "
    "CAST(:owed_reason AS text[]), CAST(:due_at_ms AS bigint[]), CAST(:looked AS bool[])) "
    "AS u(saga_id, plan_hash, status, seq, context, state, step, parked_reason, owed_reason, due_at_ms, looked) "
    "WHERE s.saga_id = u.saga_id"
)
_LOG = sa.text(
    "INSERT INTO watership_log (saga_id, seq, at_ms, cause, changes) "
    "SELECT * FROM unnest(CAST(:saga_id AS uuid[]), CAST(:seq AS int[]), CAST(:at_ms AS bigint[]), "
    "CAST(:cause AS text[]), CAST(:changes AS text[]))"
)
_LEDGER = sa.text(
    "INSERT INTO watership_ledger (namespace, saga_id, at_ms, reason, message) "
    "SELECT CAST(:namespace AS text), u.saga_id, CAST(:now_ms AS bigint), u.reason, u.message "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:reason AS text[]), CAST(:message AS text[])) "
    "AS u(saga_id, reason, message)"
)
_HISTORY = sa.text(
    "SELECT saga_id, seq, at_ms, cause, changes FROM watership_log WHERE saga_id = ANY(CAST(:ids AS uuid[])) "
    "ORDER BY saga_id, seq"
)
# Only if the saga has not moved since: a reply that came in the meantime says that the command was sent.
_OWE = sa.text(
    "UPDATE watership_saga s SET owed = true, owed_reason = u.reason, "
    "wake_at_ms = LEAST(COALESCE(s.wake_at_ms, u.wake_at_ms), u.wake_at_ms) "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:seq AS int[]), CAST(:reason AS text[]), CAST(:wake_at_ms AS bigint[])) "
    "AS u(saga_id, seq, reason, wake_at_ms) WHERE s.saga_id = u.saga_id AND s.seq = u.seq RETURNING s.saga_id"
)
_SETTLE = sa.text(
    "UPDATE watership_saga s SET owed = false, owed_reason = NULL, wake_at_ms = s.due_at_ms "
    "FROM unnest(CAST(:saga_id AS uuid[]), CAST(:seq AS int[])) AS u(saga_id, seq) "
    "WHERE s.saga_id = u.saga_id AND s.seq = u.seq AND s.owed"
)
_LOOKED = sa.text(
    f"UPDATE watership_saga SET wake_at_ms = CASE WHEN owed THEN {_NOW_MS} + CAST(:owed_look_ms AS bigint) "  # noqa: S608
    "ELSE due_at_ms END WHERE saga_id = ANY(CAST(:ids AS uuid[]))"
)
_BACK_OFF = sa.text(
    f"UPDATE watership_saga SET wake_at_ms = {_NOW_MS} + CAST(:back_off_ms AS bigint) "  # noqa: S608 - no input
    "WHERE saga_id = ANY(CAST(:ids AS uuid[])) AND wake_at_ms IS NOT NULL"
)

OWED_LOOK_MS = 10_000


@dataclasses.dataclass(slots=True)
class StoredSaga:
    """A locked row: its state, and what the row has beside it."""

    saga_id: uuid.UUID
    state: SagaState
    input_hash: str
    machine_version: int
    owed: bool
    owed_reason: str | None
    reply_to: str | None
    traceparent: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class NewRow:
    """A saga to be made."""

    saga_id: uuid.UUID
    state: SagaState
    input_hash: str
    reply_to: str | None
    traceparent: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class ChangedRow:
    """A saga that moved. ``owed_reason``: what it sends has no message that would bring it. ``looked``: by the reaper."""

    saga_id: uuid.UUID
    state: SagaState
    owed_reason: str | None
    looked: bool


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerLine:
    """A message that moved nothing, and why."""

    saga_id: uuid.UUID
    reason: str
    message: str


class Batch:
    """One transaction over many sagas."""

    def __init__(self, connection: AsyncConnection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace
        self.now_ms = 0

    async def _run(self, statement: sa.TextClause, **values: Any) -> sa.CursorResult[Any]:
        return await self._connection.execute(statement, values)

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        """Locks what is free among ``ids``, and reads the clock after that."""
        found = (await self._run(_LOCK, ids=sorted(ids))).mappings().all()
        rows = [row for row in found if row["namespace"] == self._namespace and row["driver"] == "orchestrator"]
        if rows:
            self.now_ms = max(row["now_ms"] for row in rows)
        else:
            self.now_ms = (await self._run(_CLOCK)).scalar_one()
        return {row["saga_id"]: stored_saga(dict(row)) for row in rows}

    async def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of ``ids`` are taken; True: by a saga of ours, so it is locked elsewhere."""
        if not ids:
            return {}
        rows = (await self._run(_EXISTING, ids=sorted(ids))).all()
        return {row.saga_id: row.namespace == self._namespace and row.driver == "orchestrator" for row in rows}

    async def due(self, limit: int) -> list[uuid.UUID]:
        """What must be looked at now, oldest first; what somebody is at is passed over."""
        rows = await self._run(_DUE, namespace=self._namespace, limit=limit, version=MACHINE_VERSION)
        return [uuid.UUID(bytes=saga_id.bytes) for saga_id in rows.scalars()]  # asyncpg's own class is not JSON

    async def insert(self, rows: Sequence[NewRow]) -> set[uuid.UUID]:
        """Makes sagas; the ids that were still free."""
        if not rows:
            return set()
        values = _columns(rows)
        values.update(
            name=[row.state.name for row in rows],
            input_hash=[row.input_hash for row in rows],
            reply_to=[row.reply_to for row in rows],
            traceparent=[row.traceparent for row in rows],
            namespace=self._namespace,
            version=MACHINE_VERSION,
            now_ms=self.now_ms,
        )
        return set((await self._run(_INSERT, **values)).scalars())

    async def update(self, rows: Sequence[ChangedRow]) -> None:
        """Writes sagas that moved; their rows are locked."""
        if not rows:
            return
        values = _columns(rows)
        values.update(
            owed_reason=[row.owed_reason for row in rows],
            looked=[row.looked for row in rows],
            version=MACHINE_VERSION,
            now_ms=self.now_ms,
            owed_look_ms=OWED_LOOK_MS,
        )
        await self._run(_UPDATE, **values)

    async def log(self, entries: Sequence[tuple[uuid.UUID, LogEntry]]) -> None:
        """Appends to the log."""
        if entries:
            await self._run(
                _LOG,
                saga_id=[saga_id for saga_id, _ in entries],
                seq=[entry.seq for _, entry in entries],
                at_ms=[entry.at_ms for _, entry in entries],
                cause=[entry.cause for _, entry in entries],
                changes=[changes_to_json(entry.changes) for _, entry in entries],
            )

    async def ledger(self, lines: Sequence[LedgerLine]) -> None:
        """Keeps what moved nothing."""
        if lines:
            await self._run(
                _LEDGER,
                namespace=self._namespace,
                now_ms=self.now_ms,
                saga_id=[line.saga_id for line in lines],
                reason=[line.reason for line in lines],
                message=[line.message for line in lines],
            )

    async def history(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[LogEntry]]:
        """The whole logs of a few sagas."""
        found: dict[uuid.UUID, list[LogEntry]] = {saga_id: [] for saga_id in ids}
        for row in await self._run(_HISTORY, ids=sorted(ids)):
            entry = LogEntry(row.seq, row.at_ms, row.cause, changes_from_json(row.changes))
            found[row.saga_id].append(entry)
        return found

    async def looked(self, ids: Collection[uuid.UUID]) -> None:
        """The reaper looked, and nothing was due: the next look is at the true deadline."""
        if ids:
            await self._run(_LOOKED, ids=sorted(ids), owed_look_ms=OWED_LOOK_MS)


class Store:
    """Batches on one engine, for one namespace."""

    def __init__(self, engine: AsyncEngine, namespace: str) -> None:
        self.engine = engine
        self.namespace = namespace

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """One transaction: committed at the end of the block, rolled back on an exception."""
        async with self.engine.begin() as connection:
            yield Batch(connection, self.namespace)

    async def owe(self, lines: Sequence[tuple[uuid.UUID, int, str]], *, wake_in_ms: int) -> set[uuid.UUID]:
        """Marks sagas (id, seq, reason) whose messages the broker has not confirmed; those that have not moved since."""
        async with self.engine.begin() as connection:
            now_ms = (await connection.execute(_CLOCK)).scalar_one()
            values = {
                "saga_id": [line[0] for line in lines],
                "seq": [line[1] for line in lines],
                "reason": [line[2] for line in lines],
                "wake_at_ms": [now_ms + wake_in_ms] * len(lines),
            }
            return set((await connection.execute(_OWE, values)).scalars())

    async def settle(self, lines: Sequence[tuple[uuid.UUID, int]]) -> None:
        """What these sagas (id, seq) owed is confirmed."""
        async with self.engine.begin() as connection:
            values = {"saga_id": [line[0] for line in lines], "seq": [line[1] for line in lines]}
            await connection.execute(_SETTLE, values)

    async def back_off(self, ids: Collection[uuid.UUID], *, back_off_ms: int) -> None:
        """Looks at these again only later: what they need fails, and must starve no other."""
        async with self.engine.begin() as connection:
            await connection.execute(_BACK_OFF, {"ids": sorted(ids), "back_off_ms": back_off_ms})


def stored_saga(row: Mapping[str, Any]) -> StoredSaga:
    """A saga from its row. ``row`` has the columns of `saga_table` by name."""
    return StoredSaga(
        saga_id=row["saga_id"],
        state=state_from_row(row),
        input_hash=row["input_hash"],
        machine_version=row["machine_version"],
        owed=row["owed"],
        owed_reason=row["owed_reason"],
        reply_to=row["reply_to"],
        traceparent=row["traceparent"],
    )


def _columns(rows: Sequence[NewRow] | Sequence[ChangedRow]) -> dict[str, Any]:
    states = [row.state for row in rows]
    return {
        "saga_id": [row.saga_id for row in rows],
        "plan_hash": [state.plan_hash for state in states],
        "status": [state.status.value for state in states],
        "seq": [state.seq for state in states],
        "context": [context_to_json(state) for state in states],
        "state": [state_to_json(state) for state in states],
        "step": [current_step(state) for state in states],
        "parked_reason": [state.parked_reason for state in states],
        "due_at_ms": [state.due_at_ms for state in states],
    }
