"""The orchestrator's store on a `MemoryDatabase`: the twin of the one on Postgres.

They keep one contract with them (`tests/contract/test_engine_store.py`), statement by statement.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from watership.machine.state import MACHINE_VERSION, SagaState
from watership.saga.storage.protocol import LogEntry, Tombstone
from watership.saga.storage.rows import (
    changes_from_json,
    changes_to_json,
    context_to_json,
    current_step,
    state_to_json,
)
from watership.testing.memory_database import LedgerRow, LogRow, MemoryDatabase, Row, Transaction, WaitingRow
from watership.testing.memory_line import Line, StraightLine
from watership.testing.memory_rows import MemoryRows, backed_off
from watership_orchestrator.arrivals import Shelf, Waiting
from watership_orchestrator.owed import OWED_LOOK_MS, look_at_ms
from watership_orchestrator.records import Advance, Advanced, ChangedRow, LedgerLine, NewRow, StoredSaga, WaitingSignal
from watership_orchestrator.store import CLOCK_OFF_BY_MS, stored_saga


class MemoryBatch(AbstractAsyncContextManager["MemoryBatch"]):
    """One transaction over many sagas. See `watership_orchestrator.store.Batch`."""

    def __init__(self, database: MemoryDatabase, namespace: str, line: Line, machine_version: int) -> None:
        self._database = database
        self._namespace = namespace
        self._line = line
        self._version = machine_version
        self.now_ms = 0
        self.version = 0
        self.broken: dict[uuid.UUID, Exception] = {}
        self.newer: set[uuid.UUID] = set()

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

    def suppose(self, now_ms: int) -> None:
        """See `Batch.suppose`."""
        self.now_ms, self._transaction.off_by_ms = now_ms, CLOCK_OFF_BY_MS

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        """See `Batch.lock`."""
        await self._line.point("lock")
        ours = self._transaction.try_lock(sorted(ids))
        self.now_ms = self._database.now_ms()
        found: dict[uuid.UUID, StoredSaga] = {}
        for row in [row for key in ours if (row := self._transaction.read(key)) is not None]:
            if self._is_ours(row) and row["machine_version"] > self._version:
                self.newer.add(row["saga_id"])
            elif self._is_ours(row):
                try:
                    found[row["saga_id"]] = stored_saga(row)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this row's alone
                    self.broken[row["saga_id"]] = error
        return found

    async def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """See `Batch.existing`."""
        if not ids:
            return {}
        await self._line.point("existing")
        return {key: self._is_ours(row) for key, row in self._database.existing(ids).items()}

    async def due(self, limit: int) -> list[uuid.UUID]:
        """See `Batch.due`."""
        await self._line.point("due")
        return self._database.due(self._namespace, self._transaction, limit, self._version)

    async def tombstones(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Tombstone]:
        """See `Batch.tombstones`."""
        return {key: self._database.tombstones[key] for key in ids if key in self._database.tombstones}

    async def hold(self, rows: Collection[Waiting]) -> set[Waiting]:
        """See `Batch.hold`."""
        await self._line.point("hold")
        return self._transaction.hold(rows)

    async def done(self, told: Mapping[Waiting, str]) -> None:
        """See `Batch.done`."""
        await self._line.point("done")
        now_ms = self._database.now_ms()
        for row, words in told.items():
            waits = self._transaction.waiting(row)
            assert waits is not None, "it is held"
            kept = dataclasses.replace(waits, look_at_ms=None, judged=words, judged_at_ms=now_ms)
            self._transaction.keep("waiting", row, kept if row.shelf is Shelf.DEAD else None)

    async def back_off(self, ids: Collection[uuid.UUID], *, at_least_ms: int, at_most_ms: int) -> None:
        """See `Batch.back_off`."""
        if not ids:
            return
        await self._line.point("back off")
        now_ms = self._database.now_ms()
        for key in sorted(ids):
            row = self._transaction.read(key)
            if row is None or row["wake_at_ms"] is None:
                continue
            await self._transaction.wait_lock(key)
            since_ms = row["due_at_ms"] if row["due_at_ms"] is not None else row["updated_at_ms"]
            wake_at_ms = now_ms + min(max(now_ms - since_ms, at_least_ms), at_most_ms)
            self._transaction.write(key, {"wake_at_ms": wake_at_ms})

    async def back_off_rows(self, rows: Collection[Waiting]) -> None:
        """See `Batch.back_off_rows`."""
        for row in rows:
            waits = self._transaction.waiting(row)
            if waits is not None:
                self._transaction.keep("waiting", row, backed_off(waits, self._database.now_ms()))

    async def keep_signals(self, signals: Sequence[WaitingSignal]) -> None:
        """See `Batch.keep_signals`."""
        if signals:
            await self._line.point("keep signals")
            now_ms = self._database.now_ms()
            for signal in signals:
                if signal.row not in self._database.waiting:
                    item = dataclasses.replace(signal, at_ms=now_ms)
                    self._transaction.keep("waiting", signal.row, WaitingRow(self._namespace, item, now_ms, now_ms))

    async def early_signals(self, ids: Collection[uuid.UUID]) -> list[WaitingSignal]:
        """See `Batch.early_signals`."""
        await self._line.point("early signals")
        rows = [row for row in self._database.waiting.values() if row.namespace == self._namespace]
        found = [row.item for row in rows if isinstance(row.item, WaitingSignal) and row.item.saga_id in ids]
        return sorted(found, key=lambda signal: (signal.at_ms, signal.signal_id))

    async def insert(self, rows: Sequence[NewRow]) -> set[uuid.UUID]:
        """See `Batch.insert`."""
        if not rows:
            return set()
        await self._line.point("insert")
        made: set[uuid.UUID] = set()
        off_by_ms = self._transaction.off_by_ms
        if off_by_ms and abs(self._database.now_ms() - self.now_ms) > off_by_ms:
            return made
        for new in sorted(rows, key=lambda new: new.saga_id):
            await self._transaction.wait_lock(new.saga_id)  # somebody may be inserting it right now
            if self._transaction.read(new.saga_id) is None and new.saga_id not in self._database.tombstones:
                self._transaction.write(new.saga_id, self._inserted(new))
                made.add(new.saga_id)
        return made

    async def write(
        self,
        rows: Sequence[ChangedRow],
        entries: Sequence[tuple[uuid.UUID, LogEntry]],
        made: Collection[uuid.UUID] = (),
    ) -> set[uuid.UUID]:
        """See `Batch.write`. Nothing is to be unmade: `insert` looks for tombstones after it has waited."""
        if not rows and not entries:
            return set()
        await self._line.point("write")
        self.version = self._transaction.version
        for changed in rows:
            await self._transaction.wait_lock(changed.saga_id)
            row = self._transaction.read(changed.saga_id)
            if row is not None:
                self._transaction.write(changed.saga_id, _updated(row, changed, self.now_ms, self._version))
        _append(self._transaction, entries)
        return set()

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
            **_columns(new.state, self._version),
            "saga_id": new.saga_id,
            "namespace": self._namespace,
            "driver": "orchestrator",
            "name": new.state.name,
            "input_hash": new.input_hash,
            "paused": False,
            "owed": new.owed_reason is not None,
            "owed_reason": new.owed_reason,
            "reply_to": new.reply_to,
            "progress": new.progress,
            "traceparent": new.traceparent,
            "wake_at_ms": new.state.due_at_ms if new.owed_reason is None else self.now_ms + OWED_LOOK_MS,
            "created_at_ms": self.now_ms,
            "updated_at_ms": self.now_ms,
        }


def _updated(row: Row, changed: ChangedRow, now_ms: int, machine_version: int) -> Row:
    due_at_ms = changed.state.due_at_ms
    if changed.owed_reason is not None:
        wake_at_ms = look_at_ms(changed.owed_reason, due_at_ms, now_ms)
    elif due_at_ms is None or changed.looked:
        wake_at_ms = due_at_ms
    else:
        wake_at_ms = min(due_at_ms if row["wake_at_ms"] is None else row["wake_at_ms"], due_at_ms)
    columns = _columns(changed.state, machine_version)
    if not changed.writes_context:
        del columns["context"]
    return {
        **columns,
        "owed": changed.owed_reason is not None,
        "owed_reason": changed.owed_reason,
        "wake_at_ms": wake_at_ms,
        "updated_at_ms": now_ms,
    }


def _append(transaction: Transaction, entries: Sequence[tuple[uuid.UUID, LogEntry]]) -> None:
    for saga_id, entry in entries:
        changes = changes_to_json(entry.changes)
        transaction.append(LogRow(saga_id, entry.seq, entry.at_ms, entry.cause, changes))


def _columns(state: SagaState, machine_version: int) -> Row:
    return {
        "plan_hash": state.plan_hash,
        "status": state.status.value,
        "seq": state.seq,
        "context": context_to_json(state),
        "state": state_to_json(state),
        "step": current_step(state),
        "parked_reason": state.parked_reason,
        "machine_version": machine_version,
        "due_at_ms": state.due_at_ms,
    }


class MemoryStore(MemoryRows):
    """Batches on one database, for one namespace. See `watership_orchestrator.store.Store`."""

    def __init__(
        self,
        database: MemoryDatabase,
        namespace: str,
        line: Line | None = None,
        *,
        machine_version: int = MACHINE_VERSION,
    ) -> None:
        self._database = database
        self._namespace = namespace
        self._line = line or StraightLine()
        self.machine_version = machine_version

    def batch(self) -> MemoryBatch:
        """See `Store.batch`."""
        return MemoryBatch(self._database, self._namespace, self._line, self.machine_version)

    async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
        """See `Store.advance`."""
        await self._line.point("advance")
        transaction = self._database.begin(self._line)
        transaction.off_by_ms = CLOCK_OFF_BY_MS
        try:
            clock_ms, versions = self._database.now_ms(), self._database.versions
            same = [step for step in steps if versions.get(step.row.saga_id) == step.version]
            assert all(
                self._database.sagas[step.row.saga_id]["seq"] == step.row.state.seq - len(step.entries) for step in same
            ), "a row's version tells its seq, too: only where the database was replaced by another it may not"
            if abs(clock_ms - now_ms) > CLOCK_OFF_BY_MS:
                same = []
            free = set(transaction.try_lock(sorted(step.row.saga_id for step in same)))
            for step in same:
                row = transaction.read(step.row.saga_id)
                if step.row.saga_id in free and row is not None:
                    changed = _updated(row, step.row, now_ms, self.machine_version)
                    transaction.write(step.row.saga_id, changed)
                    _append(transaction, [(step.row.saga_id, entry) for entry in step.entries])
            await self._line.point("commit")
            transaction.commit()
        finally:
            transaction.roll_back()
        await self._line.point("committed")
        return Advanced(frozenset(free), transaction.version, clock_ms)

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
