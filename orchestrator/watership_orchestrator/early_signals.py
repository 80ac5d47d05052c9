"""Signals that came before their saga: judged once it runs, as if they had just arrived."""

from __future__ import annotations

import json

from watership_orchestrator.arrivals import Arrival, Waiting
from watership_orchestrator.engine import Engine
from watership_orchestrator.kept_signals import arrival_of
from watership_orchestrator.ports import SagaStore


class EarlySignals:
    """The early signals of one namespace."""

    def __init__(self, store: SagaStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine

    async def judge_once(self, limit: int) -> int:
        """Judges those whose saga runs by now, oldest first; how many that was."""
        arrivals: list[Arrival] = []
        unreadable: dict[Waiting, str] = {}
        found = await self._store.signals(limit)
        for kept in found:
            try:
                arrivals.append(arrival_of(kept))
            except json.JSONDecodeError as error:  # nobody of ours wrote it
                unreadable[kept.row] = f"it cannot be read: {error}"
        if unreadable:
            await self._store.rows_done(unreadable)
        if arrivals:
            result = await self._engine.process(arrivals)
            put_off = [*result.redeliver, *result.newer]  # a newer orchestrator's
            if len(found) == limit:  # locked elsewhere: the next look finds them, but there must be room for others
                put_off = [*put_off, *result.again]
            later = [arrival.row for arrival in put_off if arrival.row is not None]
            if later:  # of those that are judged, it changes nothing
                await self._store.put_off_rows(later)
        return len(found)
