"""Sagas in this process's memory: for tests, for trying things out, and for sagas that may end with the process."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from watership import codec
from watership.errors import SagaNotFound
from watership.machine.apply import fold
from watership.machine.changes import change_from_list, change_to_list
from watership.machine.plan import Plan
from watership.machine.state import SagaState, Status
from watership.saga.storage.protocol import (
    EarlySignal,
    HeldElsewhere,
    Lease,
    LeaseKeeper,
    LedgerLine,
    LogEntry,
    SagaLogEntry,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    StartRow,
    Tombstone,
)
from watership.saga.storage.rows import current_step, ended, history_lines, lease_lost, log_moved, seq_before


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclasses.dataclass(slots=True)
class _Row:
    """The saga's log, and what is asked of its row without reading it: the rest is the log, folded (law 8)."""

    name: str
    seq: int
    status: Status
    parked_reason: str | None
    paused: bool
    input_hash: str
    created_at_ms: int
    updated_at_ms: int
    epoch: int
    lease_until_ms: int
    wake_at_ms: int | None
    log: list[LogEntry]

    def state(self, saga_id: uuid.UUID) -> SagaState:
        """The row's state, which shares nothing with the log that could be changed."""
        state = fold(str(saga_id), (entry.changes for entry in self.log))
        state.context = codec.copied(state.context)
        return state


class MemorySagaStorage:
    """Keeps sagas in memory. Nothing is written anywhere: they end with the process.

    ``now_ms`` is its clock: milliseconds since the epoch. It must be used from one event loop.
    """

    def __init__(self, *, now_ms: Callable[[], int] = _clock_ms) -> None:
        self._now_ms = now_ms
        self._identity = object()
        # By the saga's number, and as bytes once it has ended: so nothing of what has ended is walked by any garbage
        # collection, which was a tenth of a saga's cost.
        self._rows: dict[int, _Row | bytes] = {}
        # Those that somebody may have to look at: what has ended costs `due` nothing.
        self._open: dict[int, _Row] = {}
        self._plans: dict[str, Plan] = {}
        self._signals: dict[tuple[uuid.UUID, str], EarlySignal] = {}
        self._ledger: list[LedgerLine] = []

    @property
    def key(self) -> Hashable:
        """This very object: no other storage sees these sagas."""
        return self._identity

    async def create(
        self, saga_id: uuid.UUID, state: SagaState, entry: LogEntry, *, input_hash: str, lease_ms: int
    ) -> Lease | None:
        """See `SagaStorage.create`."""
        if saga_id.int in self._rows:
            return None
        now = self._now_ms()
        until = now + lease_ms
        row = _Row(state.name, state.seq, state.status, None, False, input_hash, now, now, 1, until, until, [entry])
        self._rows[saga_id.int] = self._open[saga_id.int] = row
        self._settle(saga_id, row, state, now)
        return Lease(saga_id, 1, until, now)

    async def load(self, saga_id: uuid.UUID) -> SagaRecord | None:
        """See `SagaStorage.load`."""
        row = self._find(saga_id)
        if row is None:
            return None
        return SagaRecord(saga_id, row.state(saga_id), row.input_hash, row.created_at_ms, row.updated_at_ms)

    async def acquire(self, saga_id: uuid.UUID, *, lease_ms: int) -> Lease | HeldElsewhere | None:
        """See `SagaStorage.acquire`."""
        row = self._find(saga_id)
        if row is None:
            return None
        now = self._now_ms()
        if row.lease_until_ms > now:
            return HeldElsewhere(row.lease_until_ms - now)
        row.epoch += 1
        row.lease_until_ms = now + lease_ms
        self._keep(saga_id, row)
        return Lease(saga_id, row.epoch, row.lease_until_ms, now)

    async def commit(self, lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> None:
        """See `SagaStorage.commit`."""
        row = self._held(lease)
        if row is None:
            raise lease_lost(lease)
        if row.seq != seq_before(state, entries):
            raise log_moved(lease, row.seq)
        now = self._now_ms()
        row.log.extend(entries)
        row.updated_at_ms = now
        if release:
            row.lease_until_ms = 0
        self._settle(lease.saga_id, row, state, now)

    async def renew(self, leases: Sequence[Lease], *, lease_ms: int) -> None:
        """See `SagaStorage.renew`."""
        for lease in leases:
            row = self._held(lease)
            if row is not None and row.lease_until_ms:
                row.lease_until_ms = self._now_ms() + lease_ms
                self._keep(lease.saga_id, row)

    async def release(self, lease: Lease, *, retry_in_ms: int | None = None) -> None:
        """See `SagaStorage.release`."""
        row = self._held(lease)
        if row is None:
            return
        row.lease_until_ms = 0
        if retry_in_ms is not None and row.wake_at_ms is not None:
            row.wake_at_ms = self._now_ms() + retry_in_ms
        self._keep(lease.saga_id, row)

    def keeper(self) -> LeaseKeeper | None:
        """None: no other process can take a lease from here."""
        return None

    async def due(self, *, names: Sequence[str], limit: int) -> list[uuid.UUID]:
        """See `SagaStorage.due`."""
        now = self._now_ms()
        found = [
            (row.wake_at_ms, number)
            for number, row in self._open.items()
            if row.wake_at_ms is not None
            and row.wake_at_ms <= now
            and row.lease_until_ms <= now
            and row.parked_reason is None
            and not row.paused
            and row.name in names
        ]
        return [uuid.UUID(int=number) for _, number in sorted(found)[:limit]]

    async def history(self, saga_id: uuid.UUID) -> list[LogEntry]:
        """See `SagaStorage.history`."""
        row = self._find(saga_id)
        return list(row.log) if row is not None else []

    async def keep_signal(self, signal: EarlySignal) -> None:
        """See `SagaStorage.keep_signal`."""
        self._signals.setdefault((signal.saga_id, signal.signal_id), signal)

    async def early_signals(
        self, *, saga_id: uuid.UUID | None = None, names: Sequence[str] | None = None, limit: int = 100
    ) -> list[EarlySignal]:
        """See `SagaStorage.early_signals`."""
        wanted = [one for one in self._signals.values() if saga_id in (None, one.saga_id)]
        rows = [(one, self._find(one.saga_id)) for one in wanted]
        found = [one for one, row in rows if row is not None and (names is None or row.name in names)]
        return found[:limit]

    async def forget_signal(self, signal: EarlySignal) -> None:
        """See `SagaStorage.forget_signal`."""
        self._signals.pop((signal.saga_id, signal.signal_id), None)

    async def save_plan(self, plan: Plan) -> None:
        """See `SagaStorage.save_plan`."""
        self._plans.setdefault(plan.hash, plan)

    async def load_plan(self, plan_hash: str) -> Plan | None:
        """See `SagaStorage.load_plan`."""
        return self._plans.get(plan_hash)

    async def list_sagas(
        self, *, limit: int, status: Status | None = None, parked: bool | None = None
    ) -> list[SagaSummary]:
        """See `SagaStorage.list_sagas`."""
        found: list[SagaSummary] = []
        for saga_id, row in self._newest():
            if len(found) == limit:
                break
            if status is not None and row.status is not status:
                continue
            if parked is None or parked is (row.parked_reason is not None):
                found.append(_summary(saga_id, row))
        return found

    async def take_starts(self, *, names: Sequence[str], limit: int, hold_ms: int) -> list[StartRow]:
        """None: no transaction reaches here."""
        return []

    async def start_done(self, start_id: int) -> None:
        """Nothing to do."""

    async def tombstone(self, saga_id: uuid.UUID) -> Tombstone | None:
        """None: nothing is pruned here."""
        return None

    async def keep_in_ledger(self, saga_id: uuid.UUID, reason: str, message: str) -> None:
        """See `SagaStorage.keep_in_ledger`."""
        self._ledger.append(LedgerLine(saga_id, self._now_ms(), reason, message))

    async def ledger(self, *, saga_id: uuid.UUID | None = None, limit: int) -> list[LedgerLine]:
        """See `SagaStorage.ledger`."""
        lines = [line for line in reversed(self._ledger) if saga_id is None or line.saga_id == saga_id]
        return lines[:limit]

    async def now_ms(self) -> int:
        """See `SagaStorage.now_ms`."""
        return self._now_ms()

    async def close(self) -> None:
        """Nothing is open. The sagas stay as long as this object."""

    async def load_saga_state(
        self, saga_id: uuid.UUID, *, read_for_update: bool = False
    ) -> tuple[SagaStatus, dict[str, Any], int]:
        """See `SagaStorage.load_saga_state`."""
        record = await self.load(saga_id)
        if record is None:
            raise SagaNotFound(f"there is no saga {saga_id}")
        state = record.state
        return SagaStatus(state.status.value.lower()), state.context, state.seq

    async def get_step_history(self, saga_id: uuid.UUID) -> list[SagaLogEntry]:
        """See `SagaStorage.get_step_history`."""
        row = self._find(saga_id)
        if row is None:
            raise SagaNotFound(f"there is no saga {saga_id}")
        return history_lines(saga_id, row.log)

    def _find(self, saga_id: uuid.UUID) -> _Row | None:
        row = self._rows.get(saga_id.int)
        return _unpacked(row) if isinstance(row, bytes) else row

    def _keep(self, saga_id: uuid.UUID, row: _Row) -> None:
        """Puts a row back that was changed: one that has ended is kept as bytes."""
        self._rows[saga_id.int] = row if saga_id.int in self._open else _packed(row)

    def _held(self, lease: Lease) -> _Row | None:
        row = self._open.get(lease.saga_id.int) or self._find(lease.saga_id)
        return row if row is not None and row.epoch == lease.epoch else None

    def _settle(self, saga_id: uuid.UUID, row: _Row, state: SagaState, now: int) -> None:
        """Keeps what is asked of the row, and the rule of `wake_at_ms`: none once the saga ended, some until then."""
        row.seq, row.status = state.seq, state.status
        row.parked_reason, row.paused = state.parked_reason, state.paused
        if ended(state):
            row.wake_at_ms = None
            self._open.pop(saga_id.int, None)
            self._keep(saga_id, row)
        elif row.wake_at_ms is None:
            row.wake_at_ms = now
            self._rows[saga_id.int] = self._open[saga_id.int] = row

    def _newest(self) -> Iterator[tuple[uuid.UUID, _Row]]:
        # Insertion order is creation order, unless a test's clock went backwards.
        for number, row in reversed(self._rows.items()):
            yield uuid.UUID(int=number), _unpacked(row) if isinstance(row, bytes) else row


_columns = attrgetter(*(field.name for field in dataclasses.fields(_Row) if field.name != "log"))


def _packed(row: _Row) -> bytes:
    log = [(entry.seq, entry.at_ms, entry.cause, list(map(change_to_list, entry.changes))) for entry in row.log]
    return codec.dumps((_columns(row), log))


def _unpacked(body: bytes) -> _Row:
    (name, seq, status, *others), log = codec.loads(body)
    entries = [
        LogEntry(seq, at_ms, cause, tuple(change_from_list(values) for values in changes))
        for seq, at_ms, cause, changes in log
    ]
    columns = (name, seq, Status(status), *others, entries)
    return _Row(*columns)


def _summary(saga_id: uuid.UUID, row: _Row) -> SagaSummary:
    return SagaSummary(
        saga_id,
        row.name,
        row.status,
        current_step(row.state(saga_id)),
        row.parked_reason,
        datetime.fromtimestamp(row.created_at_ms / 1000, tz=UTC),
        datetime.fromtimestamp(row.updated_at_ms / 1000, tz=UTC),
    )
