"""Signals that came before their saga, when the saga is at hand: they go first.

A reaper judges them sooner or later. Until it does, no later signal may overtake one, and no wait may end for want of it:
so whatever judges a signal, or lets time pass for a saga that waits, judges what is kept for that saga before it.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

from watership import codec
from watership.machine.state import Phase, Status
from watership.messages import Signal
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.ports import SagaBatch
from watership_orchestrator.records import StoredSaga, WaitingSignal


def arrival_of(kept: WaitingSignal) -> Arrival:
    """The signal as if it had just arrived. Raises `json.JSONDecodeError` on data that nobody of ours wrote."""
    signal = Signal(saga_id=kept.saga_id, name=kept.name, signal_id=kept.signal_id, data=codec.loads(kept.data))
    return Arrival(kept.saga_id, signal, row=kept.row)


async def put_first(
    batch: SagaBatch, by_saga: dict[uuid.UUID, list[Arrival]], stored: Mapping[uuid.UUID, StoredSaga]
) -> tuple[set[uuid.UUID], set[int]]:
    """Adds what is kept for the sagas of a batch, oldest first. Gives the sagas that must be put off, since somebody
    else is judging a signal of theirs; and what was added, by id().
    """
    places = {
        saga_id: place for saga_id, group in by_saga.items() if (place := _place(group, stored.get(saga_id))) >= 0
    }
    kept: dict[uuid.UUID, list[Arrival]] = defaultdict(list)
    for signal in await batch.early_signals(places) if places else ():
        try:
            kept[signal.saga_id].append(arrival_of(signal))
        except json.JSONDecodeError:
            continue  # the reaper says so
    rows = [arrival.row for group in kept.values() for arrival in group if arrival.row is not None]
    held = await batch.hold(rows) if rows else set()
    put_off: set[uuid.UUID] = set()
    added: set[int] = set()
    for saga_id, early in kept.items():
        if any(arrival.row not in held for arrival in early):
            put_off.add(saga_id)
            continue
        group, place = by_saga[saga_id], places[saga_id]
        here = {arrival.row: arrival for arrival in group}
        first = [here.get(arrival.row, arrival) for arrival in early]  # a row's own arrival may be here already
        added.update(id(arrival) for arrival in first if arrival not in group)
        by_saga[saga_id] = [*group[:place], *first, *(arrival for arrival in group[place:] if arrival not in first)]
    return put_off, added


def _place(group: Sequence[Arrival], saga: StoredSaga | None) -> int:
    """The first arrival that must not come before a signal that is kept; -1: there is none."""
    for place, arrival in enumerate(group):
        if isinstance(arrival.message, Signal) or (arrival.message is None and _waits(saga)):
            return place
    return -1


def _waits(saga: StoredSaga | None) -> bool:
    if saga is None or saga.state.status is not Status.RUNNING:
        return False
    return any(action.phase is Phase.WAITING for _, _, action in saga.state.active_actions())
