"""What the orchestrator's services stand on, as protocols: Postgres in production, memory in a simulation.

Both keep one contract (`tests/contract/test_engine_store.py`). Nothing here knows SQL.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from watership.machine.plan import Plan
from watership.messages import AdminAnswer, AdminRequest, RegisterWorker
from watership.saga.storage.protocol import LogEntry, Tombstone
from watership_orchestrator.arrivals import Plans, Waiting
from watership_orchestrator.records import (
    Advance,
    Advanced,
    ChangedRow,
    DeadLetter,
    LedgerLine,
    NewRow,
    StoredSaga,
    WaitingSignal,
    WaitingStart,
)


class SagaBatch(Protocol):
    """One transaction over many sagas. See `watership_orchestrator.store.Batch`."""

    @property
    def now_ms(self) -> int:
        """The database's clock, read after the rows were locked (law 9)."""

    @property
    def version(self) -> int:
        """What the rows that it wrote are marked with, once it is committed; 0: it has written none."""

    @property
    def broken(self) -> Mapping[uuid.UUID, Exception]:
        """Rows that `lock` locked and that cannot be read, and why."""

    @property
    def newer(self) -> Collection[uuid.UUID]:
        """Rows that `lock` locked, and that a newer machine has written: they are not read, and left alone (law 8)."""

    def suppose(self, now_ms: int) -> None:
        """In the place of `lock`, where there is nothing to lock: what the clock says, as it is known. `insert` checks it."""

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        """Locks what is free among ``ids``, and reads the clock after that."""

    async def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of ``ids`` are taken; True: by a saga of ours, so it is locked elsewhere."""

    async def due(self, limit: int) -> list[uuid.UUID]:
        """What must be looked at now, oldest first; what somebody is at is passed over."""

    async def tombstones(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Tombstone]:
        """What sagas among ``ids`` left when they were pruned, whosever they were."""

    async def hold(self, rows: Collection[Waiting]) -> set[Waiting]:
        """Locks the rows that still wait to be judged; what somebody else judges, or has judged, is left out."""

    async def done(self, told: Mapping[Waiting, str]) -> None:
        """These rows, which are held, are judged: they go with this transaction, a dead letter with these words."""

    async def insert(self, rows: Sequence[NewRow]) -> set[uuid.UUID]:
        """Makes sagas; the ids that were still free: no saga has them, and no pruned one had, as far as this could see."""

    async def write(
        self,
        rows: Sequence[ChangedRow],
        entries: Sequence[tuple[uuid.UUID, LogEntry]],
        made: Collection[uuid.UUID] = (),
    ) -> set[uuid.UUID]:
        """Writes sagas that moved, whose rows are locked, and appends to the logs.

        ``made``: those that this transaction made. Of them, it unmakes and gives those whose ids had been a pruned saga's
        after all: nothing is logged for these.
        """

    async def ledger(self, lines: Sequence[LedgerLine]) -> None:
        """Keeps what moved nothing."""

    async def history(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[LogEntry]]:
        """The whole logs of a few sagas."""

    async def back_off(self, ids: Collection[uuid.UUID], *, at_least_ms: int, at_most_ms: int) -> None:
        """Looks at these again only later, each failure twice as much later: what fails must starve no other."""

    async def back_off_rows(self, rows: Collection[Waiting]) -> None:
        """The same for rows that wait to be judged."""

    async def keep_signals(self, signals: Sequence[WaitingSignal]) -> None:
        """Keeps signals for sagas that do not run (yet): once each, whatever how often they come."""

    async def early_signals(self, ids: Collection[uuid.UUID]) -> list[WaitingSignal]:
        """What is kept for these sagas, oldest first. It locks nothing."""

    async def looked(self, ids: Collection[uuid.UUID]) -> None:
        """The reaper looked, and nothing was due: the next look is at the true deadline."""


class SagaStore(Protocol):
    """Batches for one namespace. See `watership_orchestrator.store.Store`."""

    @property
    def machine_version(self) -> int:
        """What its rows are marked with; a saga of a higher one is left to a newer orchestrator (law 8)."""

    def batch(self) -> AbstractAsyncContextManager[SagaBatch]:
        """One transaction: committed at the end of the block, rolled back on an exception."""

    async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
        """Writes what was decided for ``now_ms`` on rows that nobody has locked, where they are still as they were then.

        Committed on return. What is locked, or was written since, is left out; all of it if the database's clock is not at
        ``now_ms``.
        """

    async def owe(self, lines: Sequence[tuple[uuid.UUID, int, str]], *, wake_in_ms: int) -> set[uuid.UUID]:
        """Marks sagas (id, seq, reason) whose messages the broker has not confirmed; those that have not moved since."""

    async def settle(self, lines: Sequence[tuple[uuid.UUID, int]]) -> None:
        """What these sagas (id, seq) owed is confirmed."""

    async def starts(self, limit: int) -> list[WaitingStart]:
        """Starts that clients wrote in transactions of their own, oldest first; what is backed off is left out."""

    async def signals(self, limit: int) -> list[WaitingSignal]:
        """Signals that came early and whose saga runs by now, oldest first."""

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Dead letters that shall be judged, oldest first."""

    async def dead_letter(self, letter_id: int) -> DeadLetter | None:
        """One that shall be judged; None: there is none of this number, or it is judged."""

    async def keep_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps what the broker gave up on. On return it is committed."""

    async def hand_on_dead_letter(self, letter_id: int, *, actor: str, reason: str, judged: str | None) -> bool:
        """An operator has it judged again (``judged`` None), or puts it aside with these words. False: no such letter."""

    async def rows_done(self, told: Mapping[Waiting, str]) -> None:
        """Rows on which nothing is to be judged after all, and why."""

    async def put_off_rows(self, rows: Collection[Waiting]) -> None:
        """Looks at these rows again in a moment: nothing is wrong with them, their sagas were locked elsewhere."""


class PlanShelf(Protocol):
    """The plans and handlers that workers registered. See `watership_orchestrator.plans.PlanBook`."""

    async def get(self, hashes: Iterable[str], names: Iterable[str]) -> Plans:
        """The plans that a batch needs."""

    async def register(self, message: RegisterWorker) -> list[str]:
        """Keeps the plans and handlers that a worker announced; what it refused, a sentence each."""

    def checked(self, data: Any) -> Plan:
        """A plan from its JSON data, with a schema that can be used. Raises `DefinitionError` or ``ValueError``."""

    async def keep(self, plans: Sequence[Plan]) -> None:
        """Keeps plans that came with starts; sagas that wait for one of them are looked at at once."""


class SagaReader(Protocol):
    """The admin queue's verbs that move no saga. See `watership_orchestrator.admin.Admin`."""

    async def read(self, request: AdminRequest) -> AdminAnswer:
        """Answers one of them."""


class Backing(Protocol):
    """All that a service keeps and finds in its database."""

    @property
    def store(self) -> SagaStore:
        """The sagas' rows and logs."""

    @property
    def plans(self) -> PlanShelf:
        """The plans and handlers."""

    @property
    def reader(self) -> SagaReader:
        """What operators ask."""

    async def check(self) -> None:
        """Raises `ConfigurationError` if the schema is not this version's, `StoreUnavailable` if nobody answers."""

    async def close(self) -> None:
        """Gives the connections back."""
