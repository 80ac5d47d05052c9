"""The orchestrator's statements on Postgres: set-wise, the same number for one saga as for hundreds.

It decides nothing. A `Batch` is one transaction: lock, write, commit; rows locked elsewhere are passed over.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.machine.state import MACHINE_VERSION
from watership.saga.storage.protocol import LogEntry, Tombstone
from watership.saga.storage.rows import (
    changes_from_json,
    changes_to_json,
    context_to_json,
    current_step,
    state_from_row,
    state_to_json,
)
from watership_orchestrator import statements as sql
from watership_orchestrator import waiting
from watership_orchestrator.arrivals import Waiting
from watership_orchestrator.direct import Asked, Connections
from watership_orchestrator.owed import OWED_LOOK_MS, look_at_ms
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

CLOCK_OFF_BY_MS = 250  # no deadline is so near; and a clock that is not read for a minute drifts by a few milliseconds
ANY_MS = 1 << 62
XIDS = 1 << 32  # a row names the transaction that wrote it by so much of its number


class Batch:
    """One transaction over many sagas."""

    def __init__(self, connection: Asked, namespace: str, machine_version: int) -> None:
        self._connection = connection
        self._namespace = namespace
        self._version = machine_version
        self.now_ms = 0
        self.version = 0
        self._off_by_ms = ANY_MS
        self.broken: dict[uuid.UUID, Exception] = {}  # rows that `lock` locked and that cannot be read, and why
        self.newer: set[uuid.UUID] = set()  # rows of a newer machine: locked, not read, and to be left alone (law 8)

    async def _run(self, statement: sa.TextClause, **values: Any) -> sa.Result[Any]:
        return await self._connection.execute(statement, values)

    def suppose(self, now_ms: int) -> None:
        """In the place of `lock`, where there is nothing to lock: what the clock says, as it is known. `insert` checks it."""
        self.now_ms, self._off_by_ms = now_ms, CLOCK_OFF_BY_MS

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        """Locks what is free among ``ids``, and reads the clock after that.

        What cannot be read is in `broken`, what a newer machine has written in `newer`.
        """
        found = await self._run(sql.LOCK, ids=sorted(ids))
        columns = tuple(found.keys())  # once: a row's own mapping finds them again for each row
        found_sagas: dict[uuid.UUID, StoredSaga] = {}
        for values in found:
            row = dict(zip(columns, values, strict=True))
            self.now_ms = max(self.now_ms, row["now_ms"])
            if row["namespace"] != self._namespace or row["driver"] != "orchestrator":
                continue
            if row["machine_version"] > self._version:
                self.newer.add(row["saga_id"])
                continue
            try:
                found_sagas[row["saga_id"]] = stored_saga(row)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this row's alone
                self.broken[row["saga_id"]] = error
        return found_sagas

    async def existing(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of ``ids`` are taken; True: by a saga of ours, so it is locked elsewhere."""
        if not ids:
            return {}
        rows = (await self._run(sql.EXISTING, ids=sorted(ids))).all()
        return {row.saga_id: row.namespace == self._namespace and row.driver == "orchestrator" for row in rows}

    async def due(self, limit: int) -> list[uuid.UUID]:
        """What must be looked at now, oldest first; what somebody is at is passed over."""
        rows = await self._run(sql.DUE, namespace=self._namespace, limit=limit, version=self._version)
        return [uuid.UUID(bytes=saga_id.bytes) for saga_id in rows.scalars()]  # asyncpg's own class is not JSON

    async def insert(self, rows: Sequence[NewRow]) -> set[uuid.UUID]:
        """Makes sagas; the ids that were still free: no saga has them, and no pruned one had, as far as this could see.

        None at all, if the clock is not at what was supposed.
        """
        if not rows:
            return set()
        values = _columns(rows)
        values.update(
            name=[row.state.name for row in rows],
            input_hash=[row.input_hash for row in rows],
            reply_to=[row.reply_to for row in rows],
            progress=[row.progress for row in rows],
            traceparent=[row.traceparent for row in rows],
            owed_reason=[row.owed_reason for row in rows],
            namespace=self._namespace,
            version=self._version,
            now_ms=self.now_ms,
            owed_look_ms=OWED_LOOK_MS,
            off_by_ms=self._off_by_ms,
        )
        return set((await self._run(sql.INSERT, **values)).scalars())

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
        if not rows and not entries:
            return set()
        values = _moves(rows, entries, self.now_ms, self._version)
        found = (await self._run(sql.WRITE, **values, made=sorted(made))).all()
        self.version = found[0].version % XIDS
        return {row.saga_id for row in found if row.saga_id is not None}

    async def ledger(self, lines: Sequence[LedgerLine]) -> None:
        """Keeps what moved nothing."""
        if lines:
            await self._run(
                sql.LEDGER,
                namespace=self._namespace,
                now_ms=self.now_ms,
                saga_id=[line.saga_id for line in lines],
                reason=[line.reason for line in lines],
                message=[line.message for line in lines],
            )

    async def history(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, list[LogEntry]]:
        """The whole logs of a few sagas."""
        found: dict[uuid.UUID, list[LogEntry]] = {saga_id: [] for saga_id in ids}
        for row in await self._run(sql.HISTORY, ids=sorted(ids)):
            entry = LogEntry(row.seq, row.at_ms, row.cause, changes_from_json(row.changes))
            found[row.saga_id].append(entry)
        return found

    async def back_off(self, ids: Collection[uuid.UUID], *, at_least_ms: int, at_most_ms: int) -> None:
        """Looks at these again only later, each failure twice as much later: what fails must starve no other."""
        if ids:
            await self._run(sql.BACK_OFF, ids=sorted(ids), at_least_ms=at_least_ms, at_most_ms=at_most_ms)

    async def back_off_rows(self, rows: Collection[Waiting]) -> None:
        """The same for rows that wait to be judged."""
        await waiting.back_off(self._connection, self._namespace, rows)

    async def tombstones(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Tombstone]:
        """What sagas among ``ids`` left when they were pruned, whosever they were."""
        if not ids:
            return {}
        found = await waiting.tombstones(self._connection, self._namespace, ids)
        return {tombstone.saga_id: tombstone for tombstone in found}

    async def hold(self, rows: Collection[Waiting]) -> set[Waiting]:
        """Locks the rows that still wait to be judged; what somebody else judges, or has judged, is left out."""
        return await waiting.hold(self._connection, self._namespace, rows)

    async def done(self, told: Mapping[Waiting, str]) -> None:
        """These rows, which are held, are judged: they go with this transaction, a dead letter with these words."""
        await waiting.done(self._connection, self._namespace, told)

    async def keep_signals(self, signals: Sequence[WaitingSignal]) -> None:
        """Keeps signals for sagas that do not exist (yet): once each, whatever how often they come."""
        if signals:
            await waiting.keep_signals(self._connection, self._namespace, signals)

    async def early_signals(self, ids: Collection[uuid.UUID]) -> list[WaitingSignal]:
        """What is kept for these sagas, oldest first. It locks nothing."""
        return await waiting.signals_of(self._connection, self._namespace, ids)

    async def looked(self, ids: Collection[uuid.UUID]) -> None:
        """The reaper looked, and nothing was due: the next look is at the true deadline."""
        if ids:
            await self._run(sql.LOOKED, ids=sorted(ids), owed_look_ms=OWED_LOOK_MS)


class Store:
    """Batches on one engine, for one namespace. ``machine_version``: what its rows are marked with (law 8)."""

    def __init__(self, engine: AsyncEngine, namespace: str, *, machine_version: int = MACHINE_VERSION) -> None:
        self.engine = engine
        self._connections = Connections(engine)
        self.namespace = namespace
        self.machine_version = machine_version

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """One transaction: committed at the end of the block, rolled back on an exception."""
        async with self._connections.transaction() as connection:
            yield Batch(connection, self.namespace, self.machine_version)

    async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
        """Writes what was decided for ``now_ms`` on rows that nobody has locked, where they are still as they were then.

        A statement by itself: on return it is committed. What is locked, or was written since, is left out; all of it if the
        database's clock is not at ``now_ms``.
        """
        rows = [step.row for step in steps]
        entries = [(step.row.saga_id, entry) for step in steps for entry in step.entries]
        values = _moves(rows, entries, now_ms, self.machine_version)
        values.update(
            row_version=[step.version for step in steps],
            row_seq=[step.row.state.seq - len(step.entries) for step in steps],
            off_by_ms=CLOCK_OFF_BY_MS,
        )
        async with self._connections.statement() as connection:
            found = (await connection.execute(sql.ADVANCE, values)).all()
        sagas = frozenset(row.saga_id for row in found if row.saga_id is not None)
        return Advanced(sagas, (found[0].version or 0) % XIDS, found[0].now_ms)

    async def owe(self, lines: Sequence[tuple[uuid.UUID, int, str]], *, wake_in_ms: int) -> set[uuid.UUID]:
        """Marks sagas (id, seq, reason) whose messages the broker has not confirmed; those that have not moved since."""
        async with self.engine.begin() as connection:
            now_ms = (await connection.execute(sql.CLOCK)).scalar_one()
            values = {
                "saga_id": [line[0] for line in lines],
                "seq": [line[1] for line in lines],
                "reason": [line[2] for line in lines],
                "wake_at_ms": [now_ms + wake_in_ms] * len(lines),
            }
            return set((await connection.execute(sql.OWE, values)).scalars())

    async def settle(self, lines: Sequence[tuple[uuid.UUID, int]]) -> None:
        """What these sagas (id, seq) owed is confirmed."""
        async with self.engine.begin() as connection:
            values = {"saga_id": [line[0] for line in lines], "seq": [line[1] for line in lines]}
            await connection.execute(sql.SETTLE, values)

    # --- rows that wait to be judged

    async def starts(self, limit: int) -> list[WaitingStart]:
        """Starts that clients wrote in transactions of their own, oldest first; what is backed off is left out."""
        async with self.engine.begin() as connection:
            return await waiting.starts(connection, self.namespace, limit)

    async def signals(self, limit: int) -> list[WaitingSignal]:
        """Signals that came early and whose saga exists by now, oldest first."""
        async with self.engine.begin() as connection:
            return await waiting.signals(connection, self.namespace, limit)

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Dead letters that shall be judged, oldest first."""
        async with self.engine.begin() as connection:
            return await waiting.dead_letters(connection, self.namespace, limit)

    async def dead_letter(self, letter_id: int) -> DeadLetter | None:
        """One that shall be judged; None: there is none of this number, or it is judged."""
        async with self.engine.begin() as connection:
            return await waiting.dead_letter(connection, self.namespace, letter_id)

    async def put_off_rows(self, rows: Collection[Waiting]) -> None:
        """Looks at these rows again in a moment: nothing is wrong with them, their sagas were locked elsewhere."""
        async with self.engine.begin() as connection:
            await waiting.back_off(connection, self.namespace, rows, at_most_ms=waiting.BACK_OFF_MIN_MS)

    async def rows_done(self, told: Mapping[Waiting, str]) -> None:
        """Rows on which nothing is to be judged after all, and why."""
        async with self.engine.begin() as connection:
            await waiting.done(connection, self.namespace, told)

    async def keep_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps what the broker gave up on. On return it is committed."""
        async with self.engine.begin() as connection:
            await waiting.keep_dead_letters(connection, self.namespace, letters)

    async def hand_on_dead_letter(self, letter_id: int, *, actor: str, reason: str, judged: str | None) -> bool:
        """An operator has it judged again (``judged`` None), or puts it aside with these words. False: no such letter."""
        async with self.engine.begin() as connection:
            return await waiting.hand_on_dead_letter(
                connection, self.namespace, letter_id, actor=actor, reason=reason, judged=judged
            )


def stored_saga(row: Mapping[str, Any]) -> StoredSaga:
    """A saga from its row. ``row`` has the columns of `saga_table` by name."""
    return StoredSaga(
        saga_id=row["saga_id"],
        state=state_from_row(row),
        input_hash=row["input_hash"],
        owed=row["owed"],
        owed_reason=row["owed_reason"],
        reply_to=row["reply_to"],
        progress=row["progress"],
        traceparent=row["traceparent"],
    )


def _moves(
    rows: Sequence[ChangedRow], entries: Sequence[tuple[uuid.UUID, LogEntry]], now_ms: int, machine_version: int
) -> dict[str, Any]:
    values = _columns(rows)
    values.update(
        owed_reason=[row.owed_reason for row in rows],
        looked=[row.looked for row in rows],
        look_at_ms=[look_at_ms(row.owed_reason, row.state.due_at_ms, now_ms) for row in rows],
        version=machine_version,
        now_ms=now_ms,
        log_saga_id=[saga_id for saga_id, _ in entries],
        log_seq=[entry.seq for _, entry in entries],
        log_at_ms=[entry.at_ms for _, entry in entries],
        log_cause=[entry.cause for _, entry in entries],
        log_changes=[changes_to_json(entry.changes) for _, entry in entries],
    )
    return values


def _columns(rows: Sequence[NewRow] | Sequence[ChangedRow]) -> dict[str, Any]:
    states = [row.state for row in rows]
    return {
        "saga_id": [row.saga_id for row in rows],
        "plan_hash": [state.plan_hash for state in states],
        "status": [state.status.value for state in states],
        "seq": [state.seq for state in states],
        "context": [context_to_json(row.state) if row.writes_context else None for row in rows],
        "state": [state_to_json(state) for state in states],
        "step": [current_step(state) for state in states],
        "parked_reason": [state.parked_reason for state in states],
        "due_at_ms": [state.due_at_ms for state in states],
    }
