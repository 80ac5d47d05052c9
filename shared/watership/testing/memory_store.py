"""The orchestrator's store, plans and reader on a `MemoryDatabase`: the twins of those on Postgres.

They keep one contract with them (`tests/contract/test_engine_store.py`), statement by statement. A `Line` stands between
a process and its database: at each statement it may wait, fail, or never come back.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy.exc import SQLAlchemyError

from watership import codec
from watership.errors import StoreUnavailable
from watership.machine.changes import change_to_data
from watership.machine.plan import Plan
from watership.machine.state import MACHINE_VERSION, SagaState
from watership.messages import AdminAnswer, AdminRequest, AdminVerb, HandlerOnWire
from watership.saga.storage.protocol import LogEntry
from watership.saga.storage.rows import (
    changes_from_json,
    changes_to_json,
    context_to_json,
    current_step,
    state_to_json,
)
from watership.saga.storage.views import saga_view, summary_view
from watership.testing.memory_database import HandlerRecord, LedgerRow, LogRow, MemoryDatabase, PlanRecord, Row
from watership_orchestrator.plans import HANDLER_ALIVE_MS, PlanCache, PlanRow, taken
from watership_orchestrator.store import OWED_LOOK_MS, ChangedRow, LedgerLine, NewRow, StoredSaga, stored_saga


class Line(Protocol):
    """A process's connection to the database."""

    async def point(self, what: str) -> None:
        """Called before each statement and around each commit: may wait, raise, or never return."""


class StraightLine:
    """A connection on which nothing goes wrong."""

    async def point(self, what: str) -> None:
        """Nothing happens."""


class MemoryBatch(AbstractAsyncContextManager["MemoryBatch"]):
    """One transaction over many sagas. See `watership_orchestrator.store.Batch`."""

    def __init__(self, database: MemoryDatabase, namespace: str, line: Line) -> None:
        self._database = database
        self._namespace = namespace
        self._line = line
        self.now_ms = 0

    async def __aenter__(self) -> Self:
        await self._line.point("begin")
        self._transaction = self._database.begin(self._line)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._transaction.roll_back()
            return
        try:
            await self._line.point("commit")
            self._transaction.commit()
        finally:
            self._transaction.roll_back()
        await self._line.point("committed")

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        """See `Batch.lock`."""
        await self._line.point("lock")
        ours = self._transaction.try_lock(sorted(ids))
        self.now_ms = self._database.now_ms()
        rows = [row for key in ours if (row := self._transaction.read(key)) is not None]
        return {row["saga_id"]: stored_saga(row) for row in rows if self._is_ours(row)}

    async def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """See `Batch.existing`."""
        if not ids:
            return {}
        await self._line.point("existing")
        return {key: self._is_ours(row) for key, row in self._database.existing(ids).items()}

    async def due(self, limit: int) -> list[uuid.UUID]:
        """See `Batch.due`."""
        await self._line.point("due")
        return self._database.due(self._namespace, self._transaction, limit, MACHINE_VERSION)

    async def insert(self, rows: Sequence[NewRow]) -> set[uuid.UUID]:
        """See `Batch.insert`."""
        if not rows:
            return set()
        await self._line.point("insert")
        made: set[uuid.UUID] = set()
        for new in sorted(rows, key=lambda new: new.saga_id):
            await self._transaction.wait_lock(new.saga_id)  # somebody may be inserting it right now
            if self._transaction.read(new.saga_id) is None:
                self._transaction.write(new.saga_id, self._inserted(new))
                made.add(new.saga_id)
        return made

    async def update(self, rows: Sequence[ChangedRow]) -> None:
        """See `Batch.update`."""
        if not rows:
            return
        await self._line.point("update")
        for changed in rows:
            await self._transaction.wait_lock(changed.saga_id)
            row = self._transaction.read(changed.saga_id)
            if row is not None:
                self._transaction.write(changed.saga_id, self._updated(row, changed))

    async def log(self, entries: Sequence[tuple[uuid.UUID, LogEntry]]) -> None:
        """See `Batch.log`."""
        if entries:
            await self._line.point("log")
            for saga_id, entry in entries:
                changes = changes_to_json(entry.changes)
                self._transaction.append(LogRow(saga_id, entry.seq, entry.at_ms, entry.cause, changes))

    async def ledger(self, lines: Sequence[LedgerLine]) -> None:
        """See `Batch.ledger`."""
        if lines:
            await self._line.point("ledger")
            self._transaction.ledger.extend(
                LedgerRow(self._namespace, line.saga_id, self.now_ms, line.reason, line.message) for line in lines
            )

    async def history(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[LogEntry]]:
        """See `Batch.history`."""
        await self._line.point("history")
        return {
            key: [
                LogEntry(row.seq, row.at_ms, row.cause, changes_from_json(row.changes))
                for row in [*self._database.logs.get(key, ()), *(e for e in self._transaction.log if e.saga_id == key)]
            ]
            for key in ids
        }

    async def looked(self, ids: Collection[uuid.UUID]) -> None:
        """See `Batch.looked`."""
        if not ids:
            return
        await self._line.point("looked")
        for key in sorted(ids):
            await self._transaction.wait_lock(key)
            row = self._transaction.read(key)
            if row is not None:
                wake_at_ms = self._database.now_ms() + OWED_LOOK_MS if row["owed"] else row["due_at_ms"]
                self._transaction.write(key, {"wake_at_ms": wake_at_ms})

    def _is_ours(self, row: Row) -> bool:
        return bool(row["namespace"] == self._namespace and row["driver"] == "orchestrator")

    def _inserted(self, new: NewRow) -> Row:
        return {
            **_columns(new.state),
            "saga_id": new.saga_id,
            "namespace": self._namespace,
            "driver": "orchestrator",
            "name": new.state.name,
            "input_hash": new.input_hash,
            "paused": False,
            "owed": False,
            "owed_reason": None,
            "reply_to": new.reply_to,
            "traceparent": new.traceparent,
            "wake_at_ms": new.state.due_at_ms,
            "created_at_ms": self.now_ms,
            "updated_at_ms": self.now_ms,
        }

    def _updated(self, row: Row, changed: ChangedRow) -> Row:
        due_at_ms = changed.state.due_at_ms
        if changed.owed_reason is not None:
            wake_at_ms: int | None = self.now_ms + OWED_LOOK_MS
        elif due_at_ms is None or changed.looked:
            wake_at_ms = due_at_ms
        else:
            wake_at_ms = min(due_at_ms if row["wake_at_ms"] is None else row["wake_at_ms"], due_at_ms)
        return {
            **_columns(changed.state),
            "owed": changed.owed_reason is not None,
            "owed_reason": changed.owed_reason,
            "wake_at_ms": wake_at_ms,
            "updated_at_ms": self.now_ms,
        }


def _columns(state: SagaState) -> Row:
    return {
        "plan_hash": state.plan_hash,
        "status": state.status.value,
        "seq": state.seq,
        "context": context_to_json(state),
        "state": state_to_json(state),
        "step": current_step(state),
        "parked_reason": state.parked_reason,
        "machine_version": MACHINE_VERSION,
        "due_at_ms": state.due_at_ms,
    }


class MemoryStore:
    """Batches on one database, for one namespace. See `watership_orchestrator.store.Store`."""

    def __init__(self, database: MemoryDatabase, namespace: str, line: Line | None = None) -> None:
        self._database = database
        self._namespace = namespace
        self._line = line or StraightLine()

    def batch(self) -> MemoryBatch:
        """See `Store.batch`."""
        return MemoryBatch(self._database, self._namespace, self._line)

    async def owe(self, lines: Sequence[tuple[uuid.UUID, int, str]], *, wake_in_ms: int) -> set[uuid.UUID]:
        """See `Store.owe`."""
        now_ms = self._database.now_ms()
        reasons = {key: (seq, reason) for key, seq, reason in lines}

        def owed(key: uuid.UUID, row: Row) -> Row | None:
            seq, reason = reasons[key]
            if row["seq"] != seq:
                return None
            wake_at_ms = min(
                now_ms + wake_in_ms, now_ms + wake_in_ms if row["wake_at_ms"] is None else row["wake_at_ms"]
            )
            return {"owed": True, "owed_reason": reason, "wake_at_ms": wake_at_ms}

        return await self._update("owe", reasons, owed)

    async def settle(self, lines: Sequence[tuple[uuid.UUID, int]]) -> None:
        """See `Store.settle`."""
        seqs = dict(lines)

        def settled(key: uuid.UUID, row: Row) -> Row | None:
            if row["seq"] != seqs[key] or not row["owed"]:
                return None
            return {"owed": False, "owed_reason": None, "wake_at_ms": row["due_at_ms"]}

        await self._update("settle", seqs, settled)

    async def back_off(self, ids: Collection[uuid.UUID], *, back_off_ms: int) -> None:
        """See `Store.back_off`."""

        def backed_off(_: uuid.UUID, row: Row) -> Row | None:
            return {"wake_at_ms": self._database.now_ms() + back_off_ms} if row["wake_at_ms"] is not None else None

        await self._update("back off", ids, backed_off)

    async def _update(
        self, what: str, ids: Collection[uuid.UUID], change: Callable[[uuid.UUID, Row], Row | None]
    ) -> set[uuid.UUID]:
        """One UPDATE in a transaction of its own, RETURNING the ids.

        It waits for rows that others have locked, then looks at them afresh.
        """
        await self._line.point(what)
        transaction = self._database.begin(self._line)
        try:
            for key in sorted(ids):
                row = transaction.read(key)
                if row is None or change(key, row) is None:
                    continue  # what does not match is not locked, so nobody waits for it
                await transaction.wait_lock(key)
                row = transaction.read(key)
                values = change(key, row) if row is not None else None
                if values is not None:
                    transaction.write(key, values)
            await self._line.point("commit")
            transaction.commit()
        finally:
            transaction.roll_back()
        await self._line.point("committed")
        return set(transaction.rows)


class MemoryPlanBook(PlanCache):
    """Plans and handlers. See `watership_orchestrator.plans.PlanBook`."""

    def __init__(
        self,
        database: MemoryDatabase,
        namespace: str,
        line: Line | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now_s)
        self._database = database
        self._namespace = namespace
        self._line = line or StraightLine()

    async def _find(self, hashes: set[str], names: set[str]) -> Sequence[PlanRow]:
        await self._line.point("find plans")
        found = [
            (record.registered_at_ms, plan_hash, record)
            for (namespace, plan_hash), record in self._database.plans.items()
            if namespace == self._namespace and (plan_hash in hashes or record.saga in names)
        ]
        found.sort(key=lambda each: each[:2])
        return [PlanRow(plan_hash, record.saga, record.plan) for _, plan_hash, record in found]

    async def _release(self, worker: str) -> None:
        await self._line.point("release")
        transaction = self._database.begin(self._line)
        for key, record in self._database.handlers.items():
            if key[0] == self._namespace and record.worker == worker:
                transaction.keep("handlers", key, None)
        transaction.commit()
        await self._line.point("committed")

    async def _keep(self, worker: str, plans: Sequence[Plan], handlers: Sequence[HandlerOnWire]) -> list[str]:
        await self._line.point("keep plans")
        transaction = self._database.begin(self._line)
        now_ms = self._database.now_ms()
        refused: list[str] = []
        try:
            for plan in plans:
                if (self._namespace, plan.hash) not in self._database.plans:
                    record = PlanRecord(plan.saga, codec.dumps(plan.to_data()).decode(), now_ms)
                    transaction.keep("plans", (self._namespace, plan.hash), record)
            waiting = self._waiting_for({plan.saga for plan in plans}, now_ms)
            for key in waiting:
                await transaction.wait_lock(key)
                if key in self._waiting_for({plan.saga for plan in plans}, now_ms):
                    transaction.write(key, {"wake_at_ms": now_ms})
            for handler in handlers:
                known = self._database.handlers.get((self._namespace, handler.step))
                if known and known.source != handler.source and known.seen_at_ms >= now_ms - HANDLER_ALIVE_MS:
                    refused.append(taken(handler, known.source, known.worker, now_ms - known.seen_at_ms))
                    continue
                seen = HandlerRecord(handler.source, handler.queue, worker, now_ms)
                transaction.keep("handlers", (self._namespace, handler.step), seen)
            await self._line.point("commit")
            transaction.commit()
        finally:
            transaction.roll_back()
        await self._line.point("committed")
        return refused

    def _waiting_for(self, sagas: set[str], now_ms: int) -> list[uuid.UUID]:
        """Sagas that waited for one of these plans: they are looked at at once."""
        return [
            key
            for key, row in sorted(self._database.sagas.items())
            if row["namespace"] == self._namespace
            and row["driver"] == "orchestrator"
            and row["status"] == "PENDING"
            and row["name"] in sagas
            and row["wake_at_ms"] is not None
            and row["wake_at_ms"] > now_ms
        ]


class MemoryReader:
    """List and show. See `watership_orchestrator.admin.Admin`."""

    def __init__(self, database: MemoryDatabase, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def read(self, request: AdminRequest) -> AdminAnswer:
        """See `Admin.read`."""
        rows = [row for row in self._database.sagas.values() if row["namespace"] == self._namespace]
        if request.verb is AdminVerb.LIST:
            return AdminAnswer(data=[summary_view(row) for row in rows[-request.limit :]])
        for row in rows:
            if row["saga_id"] == request.saga_id:
                entries = self._database.logs.get(row["saga_id"], [])
                return AdminAnswer(data=saga_view(row, [_entry_view(entry) for entry in entries]))
        return AdminAnswer(code="saga_not_found", error=f"no saga has the id {request.saga_id}")


def _entry_view(entry: LogRow) -> dict[str, Any]:
    changes = [change_to_data(change) for change in changes_from_json(entry.changes)]
    return {"seq": entry.seq, "at_ms": entry.at_ms, "cause": entry.cause, "changes": changes}


class MemoryBacking:
    """All of it for one process. See `watership_orchestrator.ports.Backing`."""

    def __init__(
        self,
        database: MemoryDatabase,
        namespace: str,
        line: Line | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = line or StraightLine()
        self.store = MemoryStore(database, namespace, self._line)
        self.plans = MemoryPlanBook(database, namespace, self._line, now_s=now_s)
        self.reader = MemoryReader(database, namespace)

    async def check(self) -> None:
        """See `Backing.check`."""
        try:
            await self._line.point("check")
        except (OSError, SQLAlchemyError) as error:
            raise StoreUnavailable(f"the database does not answer: {error}") from error

    async def close(self) -> None:
        """See `Backing.close`."""
