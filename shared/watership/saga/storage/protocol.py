"""What a store of sagas must do for sagas that run in this process. Every store passes `tests/contract`.

A store keeps a row for each saga and an append-only log of decided changes; folding the log gives the row (law 8).
It decides nothing. Its clock is the only one that deadlines and leases are computed by (law 9).

**Leases.** Whoever drives a saga holds its lease. Each acquisition raises the row's ``epoch``; every write names the
epoch under which it was decided and is refused with `LeaseLost` once it is not the row's any more. So a driver that
was stopped and woke up again can write nothing (fencing), and two never drive one saga side by side.
"""

from __future__ import annotations

import dataclasses
import enum
import uuid
from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import Any, Protocol

from watership.machine.changes import Change
from watership.machine.plan import Plan
from watership.machine.state import SagaState, Status
from watership.values import value

LEASE_MS = 5_000


@value
class LogEntry:
    """One transition as the log holds it. ``cause`` names the message or moment that it followed from."""

    seq: int
    at_ms: int
    cause: str
    changes: tuple[Change, ...]


@dataclasses.dataclass(slots=True)
class SagaRecord:
    """A saga's row. ``input_hash`` tells a repeated start from a conflicting one."""

    saga_id: uuid.UUID
    state: SagaState
    input_hash: str
    created_at_ms: int
    updated_at_ms: int


@value
class Lease:
    """The right to drive one saga until ``until_ms`` by the store's clock; ``now_ms`` is when it was given."""

    saga_id: uuid.UUID
    epoch: int
    until_ms: int
    now_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class HeldElsewhere:
    """Somebody else drives the saga. Try again in ``retry_in_ms`` at the latest."""

    retry_in_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class EarlySignal:
    """A signal that came before its saga. ``data`` is JSON data."""

    saga_id: uuid.UUID
    signal_id: str
    name: str
    data: Any


@dataclasses.dataclass(frozen=True, slots=True)
class SagaSummary:
    """One line of a listing. ``step`` is where the saga stands: the step that is awaited or failed, if any."""

    saga_id: uuid.UUID
    name: str
    status: Status
    step: str | None
    parked_reason: str | None
    created_at: datetime
    updated_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerLine:
    """What came for a saga and moved nothing, or came late: why, and what it was (JSON)."""

    saga_id: uuid.UUID
    at_ms: int
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class StartRow:
    """A start that was written in somebody's own transaction. ``context`` should be JSON: a foreign client may err."""

    start_id: int
    saga_id: uuid.UUID
    saga: str
    context: str


@dataclasses.dataclass(frozen=True, slots=True)
class Tombstone:
    """What a pruned saga left. ``ours``: it was one of this store's sagas, not another namespace's."""

    saga_id: uuid.UUID
    name: str
    input_hash: str
    status: str
    ours: bool = True

    @property
    def words(self) -> str:
        """What whoever asks for the saga is told."""
        return f"saga {self.name} {self.saga_id} ended {self.status} and was pruned: its steps and its context are gone"


class SagaStatus(enum.StrEnum):
    """A saga's status as the storages' read side tells it."""

    PENDING = "pending"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    FAILED = "failed"


class SagaStepStatus(enum.StrEnum):
    """What a line of a saga's history says of an action."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, slots=True)
class SagaLogEntry:
    """One line of a saga's history: one thing that befell one step. ``action``: act or compensate."""

    saga_id: uuid.UUID
    step_name: str
    action: str
    status: SagaStepStatus
    timestamp: datetime
    details: str | None = None


class SagaStorage(Protocol):
    """A store of sagas. All times are integer milliseconds since the epoch, by the store's own clock."""

    @property
    def key(self) -> Hashable:
        """Storages with the same key are the same store: they share one set of drivers within a process."""

    async def create(
        self, saga_id: uuid.UUID, state: SagaState, entry: LogEntry, *, input_hash: str, lease_ms: int
    ) -> Lease | None:
        """Writes a new saga with its first entry, and gives its lease (epoch 1). None: the id is taken, or a pruned one's.

        ``state`` is its caller's, who leads it on after that: what is kept of it here is a copy. Raises `SagaConflict` if the id
        is taken by a saga that this store does not show: another namespace's.
        """

    async def load(self, saga_id: uuid.UUID) -> SagaRecord | None:
        """The saga's row; None if there is none."""

    async def acquire(self, saga_id: uuid.UUID, *, lease_ms: int) -> Lease | HeldElsewhere | None:
        """Takes the lease if it is free or has run out; raises the epoch. None: no such saga."""

    async def commit(self, lease: Lease, state: SagaState, entries: Sequence[LogEntry], *, release: bool) -> None:
        """Writes the row and the entries that lead to it, in one transaction. Raises `LeaseLost`; then nothing is written.

        ``state`` is as in `create`; its ``seq`` is the number of the last entry. ``release``: gives the lease up in the same write. A lease that
        ran out and that nobody took still holds. Raises `ValueError` if the entries do not follow the log's newest.
        """

    async def renew(self, leases: Sequence[Lease], *, lease_ms: int) -> None:
        """Extends the leases that still hold; those that were lost are passed over."""

    async def release(self, lease: Lease, *, retry_in_ms: int | None = None) -> None:
        """Gives the lease up. ``retry_in_ms``: recovery shall not look at the saga before then (backing off)."""

    def keeper(self) -> LeaseKeeper | None:
        """What renews leases from a thread of its own; None: no other process can reach this store, so nothing does."""

    async def due(self, *, names: Sequence[str], limit: int) -> list[uuid.UUID]:
        """Sagas of these names that somebody should drive now, oldest first.

        Those whose moment has come, but for what is held, parked or paused. One that has ended has no moment, unless
        it is undoing a late act.
        """

    async def history(self, saga_id: uuid.UUID) -> list[LogEntry]:
        """The whole log of a saga, in order; empty if there is none."""

    async def keep_signal(self, signal: EarlySignal) -> None:
        """Keeps a signal whose saga does not exist yet; harmless if it is kept already."""

    async def early_signals(
        self, *, saga_id: uuid.UUID | None = None, names: Sequence[str] | None = None, limit: int = 100
    ) -> list[EarlySignal]:
        """Kept signals whose saga exists by now, or those of one saga, or of sagas of these names; oldest first.

        None of sagas that a newer version wrote: they wait for a process that can read them.
        """

    async def forget_signal(self, signal: EarlySignal) -> None:
        """It is in its saga's log, or was refused."""

    async def save_plan(self, plan: Plan) -> None:
        """Keeps a plan under its hash; harmless if it is there."""

    async def load_plan(self, plan_hash: str) -> Plan | None:
        """The plan of this hash."""

    async def list_sagas(
        self, *, limit: int, status: Status | None = None, parked: bool | None = None
    ) -> list[SagaSummary]:
        """The newest sagas first."""

    async def take_starts(self, *, names: Sequence[str], limit: int, hold_ms: int) -> list[StartRow]:
        """Starts of these sagas that were written in transactions, oldest first. Nobody else gets them for ``hold_ms``."""

    async def start_done(self, start_id: int) -> None:
        """The row's saga exists, or never will: the row goes."""

    async def tombstone(self, saga_id: uuid.UUID) -> Tombstone | None:
        """What the saga of this id left when it was pruned; None: no such saga was."""

    async def keep_in_ledger(self, saga_id: uuid.UUID, reason: str, message: str) -> None:
        """Keeps what moved nothing, or came late. ``message`` is JSON."""

    async def ledger(self, *, saga_id: uuid.UUID | None = None, limit: int) -> list[LedgerLine]:
        """The newest lines first: of one saga, or of all."""

    async def now_ms(self) -> int:
        """The store's clock."""

    async def close(self) -> None:
        """Closes what this store opened itself; nothing that the user gave it."""

    # The read side that programs of the seed library use.

    async def load_saga_state(
        self, saga_id: uuid.UUID, *, read_for_update: bool = False
    ) -> tuple[SagaStatus, dict[str, Any], int]:
        """Status, context and version (the log's sequence number). Raises `SagaNotFound`.

        ``read_for_update`` is accepted and changes nothing: writes are fenced by leases, not by readers' locks.
        """

    async def get_step_history(self, saga_id: uuid.UUID) -> list[SagaLogEntry]:
        """What befell each step, in the log's order. Raises `SagaNotFound`."""


class LeaseKeeper(Protocol):
    """Renews leases from a thread, so that a handler that blocks the event loop does not lose its saga's."""

    def hold(self, lease: Lease) -> None:
        """Renews this lease until `drop`."""

    def drop(self, lease: Lease) -> None:
        """Renews it no more."""

    def stop(self) -> None:
        """Ends the thread."""
