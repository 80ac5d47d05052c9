"""A database server in memory, as far as the orchestrator's statements need one: row locks, transactions, CHECK.

It reads what is committed and what the same transaction wrote (READ COMMITTED). A statement that meets a row which
another transaction has locked waits for its end, and fails like Postgres when that takes too long; one that passes locked
rows over (SKIP LOCKED) does not wait. Rows hold text as the tables do, so that what is written as JSON is read as JSON.
It must never know what a saga's state means.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc

from watership.saga.storage.protocol import Tombstone
from watership_orchestrator.arrivals import Waiting
from watership_orchestrator.records import DeadLetter, WaitingSignal, WaitingStart

LOCK_TIMEOUT_S = 2.0
TERMINAL = ("COMPLETED", "COMPENSATED", "FAILED")

Row = dict[str, Any]


class ServerSays(Exception):
    """An error as a driver raises it: with the server's SQLSTATE."""

    def __init__(self, sqlstate: str, words: str) -> None:
        self.sqlstate = sqlstate
        super().__init__(words)


def contended(words: str, sqlstate: str = "40001") -> Exception:
    """Rolled back in favour of another transaction: the same again will do."""
    return sa.exc.OperationalError("a statement in memory", {}, ServerSays(sqlstate, words))


def connection_lost(words: str = "the connection is gone") -> Exception:
    """Nobody knows what became of the transaction."""
    return ConnectionResetError(words)


@dataclasses.dataclass(frozen=True, slots=True)
class LogRow:
    """A row of the log table."""

    saga_id: uuid.UUID
    seq: int
    at_ms: int
    cause: str
    changes: str


@dataclasses.dataclass(frozen=True, slots=True)
class LedgerRow:
    """A row of the ledger table."""

    namespace: str
    saga_id: uuid.UUID
    at_ms: int
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class PlanRecord:
    """A row of the plan table."""

    saga: str
    plan: str
    registered_at_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class HandlerRecord:
    """A row of the handler table."""

    source: str
    queue: str
    worker: str
    seen_at_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class WaitingRow:
    """A row that waits to be judged. ``look_at_ms`` None: it is judged, and stays to be seen."""

    namespace: str
    item: WaitingStart | WaitingSignal | DeadLetter
    at_ms: int
    look_at_ms: int | None
    judged: str | None = None
    judged_at_ms: int | None = None


class Transaction:
    """What one connection has written and not yet committed, and the rows that it has locked."""

    def __init__(self, database: MemoryDatabase, client: object) -> None:
        self.client = client
        self.version = database.next_version()
        self.began_at_ms = database.now_ms()
        self.off_by_ms = 0  # it writes what was decided for a time that may be as far from the clock's
        self.rows: dict[uuid.UUID, Row] = {}
        self.log: list[LogRow] = []
        self.ledger: list[LedgerRow] = []
        self.tables: dict[str, dict[Any, Any]] = {}  # plans and handlers; None: deleted
        self.over = False
        self._database = database
        self.held: set[Waiting] = set()
        self._locked: dict[uuid.UUID, None] = {}
        self._waiters: list[asyncio.Future[None]] = []

    # --- locks

    def try_lock(self, ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """SKIP LOCKED: those among ``ids`` that are there and free, or ours already; now they are ours."""
        self._require_open()
        locks = self._database.locks
        got = [key for key in ids if self.read(key) is not None and locks.setdefault(key, self) is self]
        self._locked.update(dict.fromkeys(got))
        return got

    def hold(self, rows: Iterable[Waiting]) -> set[Waiting]:
        """SKIP LOCKED, of rows that wait to be judged."""
        self._require_open()
        others = {row for one in self._database.open if one is not self for row in one.held}
        waiting = self._database.waiting
        free = {row for row in rows if row not in others and row in waiting and waiting[row].look_at_ms is not None}
        self.held |= free
        return free

    def waiting(self, row: Waiting) -> WaitingRow | None:
        """A row that waits to be judged; None: it is gone."""
        self._require_open()
        return self._database.waiting.get(row)

    async def wait_lock(self, key: uuid.UUID) -> None:
        """Locks one row, or one key that is to be inserted. Raises like Postgres after `LOCK_TIMEOUT_S`."""
        self._require_open()
        locks = self._database.locks
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                while locks.setdefault(key, self) is not self:
                    await locks[key].ended()
        except TimeoutError as error:
            raise contended("canceling statement due to lock timeout", "55P03") from error
        if self.over and locks.get(key) is self:
            del locks[key]
        self._require_open()
        self._locked[key] = None

    async def ended(self) -> None:
        """Waits until this transaction is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    # --- reading and writing

    def read(self, key: uuid.UUID) -> Row | None:
        """A row as this transaction sees it."""
        return self.rows.get(key) or self._database.sagas.get(key)

    def write(self, key: uuid.UUID, values: Mapping[str, Any]) -> None:
        """Inserts or updates a row; it must be locked. Raises IntegrityError where the CHECK of the table says no."""
        self._require_open()
        assert self._database.locks.get(key) is self, "a row is locked before it is written"
        row = {**(self.read(key) or {}), **values}
        if not _somebody_will_look(row):
            says = ServerSays("23514", f"saga {key} violates check constraint watership_saga_nothing_is_stuck")
            raise sa.exc.IntegrityError("a statement in memory", {}, says)
        self.rows[key] = row

    def append(self, entry: LogRow) -> None:
        """Appends to the log. Raises IntegrityError if it has this number already."""
        self._require_open()
        known = self._database.logs.get(entry.saga_id, ())
        if any(other.seq == entry.seq for other in known) or any(
            (other.saga_id, other.seq) == (entry.saga_id, entry.seq) for other in self.log
        ):
            says = ServerSays("23505", f"duplicate key: entry {entry.seq} of saga {entry.saga_id}")
            raise sa.exc.IntegrityError("a statement in memory", {}, says)
        self.log.append(entry)

    def keep(self, table: str, key: object, value: object | None) -> None:
        """Puts a row into another table; None deletes it."""
        self._require_open()
        self.tables.setdefault(table, {})[key] = value

    # --- its end

    def commit(self) -> None:
        """All of it, at once. Raises if the server gave the transaction up."""
        self._require_open()
        database = self._database
        database.sagas.update(self.rows)
        database.versions.update(dict.fromkeys(self.rows, self.version))
        for entry in self.log:
            database.logs.setdefault(entry.saga_id, []).append(entry)
        database.ledger.extend(self.ledger)
        for name, rows in self.tables.items():
            table = database.table(name)
            for key, value in rows.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value
        self._end()
        if self.rows or self.log or self.ledger:
            database.on_commit(self)

    def roll_back(self) -> None:
        """Nothing of it."""
        if not self.over:
            self._end()

    def _end(self) -> None:
        self.over = True
        self._database.open.pop(self, None)
        for key in self._locked:
            if self._database.locks.get(key) is self:
                del self._database.locks[key]
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _require_open(self) -> None:
        if self.over:
            raise connection_lost("the server closed the connection and rolled its transaction back")


class MemoryDatabase:
    """What the stores of one system share. ``now_ms`` is its clock, the only one that deadlines are told by (law 9)."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.sagas: dict[uuid.UUID, Row] = {}
        self.versions: dict[uuid.UUID, int] = {}  # of each row: the number of the transaction that wrote it last
        self.next_version = itertools.count(1).__next__
        self.logs: dict[uuid.UUID, list[LogRow]] = {}
        self.ledger: list[LedgerRow] = []
        self.plans: dict[tuple[str, str], PlanRecord] = {}  # by namespace and hash
        self.handlers: dict[tuple[str, str], HandlerRecord] = {}  # by namespace and step
        self.waiting: dict[Waiting, WaitingRow] = {}
        self.tombstones: dict[uuid.UUID, Tombstone] = {}
        self.locks: dict[uuid.UUID, Transaction] = {}
        self.open: dict[Transaction, None] = {}
        self.on_commit: Callable[[Transaction], None] = lambda _: None

    def begin(self, client: object) -> Transaction:
        """A new transaction of this client."""
        transaction = Transaction(self, client)
        self.open[transaction] = None
        return transaction

    def disconnect(self, client: object) -> None:
        """A client is gone, or was idle in its transaction for too long: what it has not committed is rolled back."""
        for transaction in [one for one in self.open if one.client is client]:
            transaction.roll_back()

    def table(self, name: str) -> dict[Any, Any]:
        """The rows of a table that is not of sagas."""
        tables: dict[str, dict[Any, Any]] = {
            "plans": self.plans,
            "handlers": self.handlers,
            "waiting": self.waiting,
        }
        return tables[name]

    def due(self, namespace: str, free_for: Transaction, limit: int, version: int) -> list[uuid.UUID]:
        """Orchestrated sagas at which somebody must look now, oldest first; those that are locked are passed over."""
        now_ms = self.now_ms()
        found = sorted(
            (row["wake_at_ms"], key)
            for key, row in self.sagas.items()
            if row["wake_at_ms"] is not None
            and row["wake_at_ms"] <= now_ms
            and row["namespace"] == namespace
            and row["driver"] == "orchestrator"
            and row["machine_version"] <= version
            and self.locks.get(key, free_for) is free_for
        )
        return free_for.try_lock([key for _, key in found[:limit]])

    def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Row]:
        """The committed rows among ``ids``."""
        return {key: self.sagas[key] for key in sorted(ids) if key in self.sagas}


def _somebody_will_look(row: Mapping[str, Any]) -> bool:
    """`schema.NOTHING_IS_STUCK`, in Python."""
    return (
        row["parked_reason"] is not None
        or row["paused"]
        or row["wake_at_ms"] is not None
        or (row["status"] in TERMINAL and not row["owed"])
    )
