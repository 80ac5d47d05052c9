"""Rows that wait to be judged, on a `MemoryDatabase`: starts, early signals, dead letters."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from watership.testing.memory_database import MemoryDatabase, WaitingRow
from watership.testing.memory_line import Line
from watership_orchestrator.arrivals import Shelf, Waiting
from watership_orchestrator.records import DeadLetter, WaitingSignal, WaitingStart
from watership_orchestrator.waiting import BACK_OFF_MAX_MS, BACK_OFF_MIN_MS


def backed_off(row: WaitingRow, now_ms: int, *, at_most_ms: int = BACK_OFF_MAX_MS) -> WaitingRow:
    """The row, to be looked at again only later, each failure twice as much later."""
    later_ms = now_ms + min(max(now_ms - row.at_ms, BACK_OFF_MIN_MS), at_most_ms)
    return dataclasses.replace(row, look_at_ms=later_ms)


class MemoryRows:
    """The part of the store that has these rows. See `watership_orchestrator.store.Store`."""

    _database: MemoryDatabase
    _namespace: str
    _line: Line

    async def starts(self, limit: int) -> list[WaitingStart]:
        """See `Store.starts`."""
        await self._line.point("starts")
        return [row.item for row in self._to_look_at() if isinstance(row.item, WaitingStart)][:limit]

    async def signals(self, limit: int) -> list[WaitingSignal]:
        """See `Store.signals`."""
        await self._line.point("signals")
        found = [row.item for row in self._to_look_at() if isinstance(row.item, WaitingSignal)]
        return [signal for signal in found if self._runs(signal)][:limit]

    def _runs(self, signal: WaitingSignal) -> bool:
        row = self._database.sagas.get(signal.saga_id)
        return row is not None and row["namespace"] == self._namespace and row["status"] != "PENDING"

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """See `Store.dead_letters`."""
        await self._line.point("dead letters")
        return [row.item for row in self._to_look_at() if isinstance(row.item, DeadLetter)][:limit]

    async def dead_letter(self, letter_id: int) -> DeadLetter | None:
        """See `Store.dead_letter`."""
        await self._line.point("dead letter")
        row = self._database.waiting.get(Waiting(Shelf.DEAD, letter_id))
        return row.item if row is not None and row.look_at_ms is not None and isinstance(row.item, DeadLetter) else None

    async def keep_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """See `Store.keep_dead_letters`."""
        await self._line.point("keep dead letters")
        now_ms = self._database.now_ms()
        for letter in letters:
            number = 1 + max((row.key for row in self._database.waiting if isinstance(row.key, int)), default=0)
            kept = WaitingRow(
                self._namespace,
                dataclasses.replace(letter, id=number),
                now_ms,
                now_ms if letter.judge else None,
                letter.judged,
                now_ms if letter.judged is not None else None,
            )
            self._database.waiting[Waiting(Shelf.DEAD, number)] = kept
        await self._line.point("committed")

    async def hand_on_dead_letter(self, letter_id: int, *, actor: str, reason: str, judged: str | None) -> bool:
        """See `Store.hand_on_dead_letter`."""
        await self._line.point("hand on a dead letter")
        key, now_ms = Waiting(Shelf.DEAD, letter_id), self._database.now_ms()
        row = self._database.waiting.get(key)
        if row is None or row.look_at_ms is not None or not isinstance(row.item, DeadLetter):
            return False
        item = dataclasses.replace(row.item, actor=actor, actor_reason=reason, judge=True)
        look_at_ms, judged_at_ms = (now_ms, None) if judged is None else (None, now_ms)
        self._database.waiting[key] = WaitingRow(row.namespace, item, row.at_ms, look_at_ms, judged, judged_at_ms)
        return True

    async def rows_done(self, told: Mapping[Waiting, str]) -> None:
        """See `Store.rows_done`."""
        await self._line.point("rows done")
        for key, words in told.items():
            row = self._database.waiting.pop(key, None)
            if row is not None and key.shelf is Shelf.DEAD:
                now_ms = self._database.now_ms()
                self._database.waiting[key] = dataclasses.replace(
                    row, look_at_ms=None, judged=words, judged_at_ms=now_ms
                )

    async def put_off_rows(self, rows: Collection[Waiting]) -> None:
        """See `Store.put_off_rows`."""
        await self._line.point("put off rows")
        now_ms = self._database.now_ms()
        for key in rows:
            row = self._database.waiting.get(key)
            if row is not None and row.look_at_ms is not None:
                self._database.waiting[key] = backed_off(row, now_ms, at_most_ms=BACK_OFF_MIN_MS)

    def _to_look_at(self) -> list[WaitingRow]:
        now_ms = self._database.now_ms()
        held = {key for transaction in self._database.open for key in transaction.held}  # SKIP LOCKED
        rows = [
            row
            for key, row in self._database.waiting.items()
            if row.namespace == self._namespace
            and row.look_at_ms is not None
            and row.look_at_ms <= now_ms
            and key not in held
        ]
        return sorted(rows, key=lambda row: (row.look_at_ms or 0, row.at_ms))
