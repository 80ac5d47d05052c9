"""Replies to sagas that this process wrote last: decided on what it remembers, and written by one statement.

Nothing is read and nothing is locked beforehand: the row is written only if it is still as it was left. So at rest, a
reply costs one round trip where the transaction that reads it costs four. It is an attempt: whatever is not so, or not a
plain step onward, is left to that transaction.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence

from watership.messages import StepReply
from watership_orchestrator.arrivals import Arrival, Plans
from watership_orchestrator.database import is_passing
from watership_orchestrator.decided import BatchResult, Decided, by_saga, decided
from watership_orchestrator.judged import Judgement
from watership_orchestrator.judgement import judge
from watership_orchestrator.ports import PlanShelf, SagaStore
from watership_orchestrator.records import Advance, Advanced, ChangedRow
from watership_orchestrator.remembered import DatabaseTime, Left, Remembered

log = logging.getLogger("watership.orchestrator")


class Advancer:
    """What one `Decider` remembers, and what it decides on that."""

    def __init__(self, store: SagaStore, plans: PlanShelf, now_s: Callable[[], float]) -> None:
        self._store = store
        self._plans = plans
        self._now_s = now_s
        self._time = DatabaseTime()
        self._sagas = Remembered()

    def now_ms(self) -> int | None:
        """What the database's clock says, if ours agree; None: it was never read."""
        return self._time.now_ms(self._now_s())

    def saw_time(self, now_ms: int) -> None:
        """The database's clock was just read."""
        self._time.was(now_ms, self._now_s())

    def forget(self, saga_ids: Iterable[uuid.UUID]) -> None:
        """Their rows are written by others."""
        for saga_id in saga_ids:
            self._sagas.forget(saga_id)

    def saw_written(self, judgements: Sequence[Judgement], version: int) -> None:
        """A transaction that wrote what these moved is committed."""
        for judgement in judgements:
            if judgement.moved:
                self._sagas.keep(judgement, version)

    def saw_trouble(self) -> None:
        """A transaction failed: whoever answers next may not be the same database."""
        self._sagas.forget_all()

    async def decide(self, arrivals: Sequence[Arrival]) -> tuple[Decided | None, Sequence[Arrival]]:
        """What is decided and committed, if anything; and the arrivals that are left. Raises nothing of the database's."""
        began_s = self._now_s()
        now_ms = self._time.now_ms(began_s)
        groups = by_saga(arrivals)
        known = {saga_id: left for saga_id, group in groups.items() if (left := self._left(saga_id, group)) is not None}
        if now_ms is None or not known:
            return None, arrivals
        try:
            plans = await self._plans.get({left.saga.state.plan_hash or "" for left in known.values()}, ())
        except Exception as error:  # noqa: BLE001 - whatever it is, the transaction will meet it too, and tell it
            self.saw_trouble()
            log.debug("the plans of %d sagas are not at hand: %r", len(known), error)
            return None, arrivals
        judged = {}
        for saga_id, left in known.items():
            judgement = _judged(left, groups[saga_id], plans, now_ms)
            if judgement is not None:
                judged[saga_id] = judgement
        written = await self._write(judged, known, groups, now_ms) if judged else frozenset()
        if not written:
            return None, arrivals
        judgements = [judgement for saga_id, judgement in judged.items() if saga_id in written]
        left_over = [arrival for arrival in arrivals if arrival.saga_id not in written]
        return decided(judgements, plans, began_s, BatchResult()), left_over

    def _left(self, saga_id: uuid.UUID, group: Sequence[Arrival]) -> Left | None:
        is_plain = all(isinstance(arrival.message, StepReply) and arrival.row is None for arrival in group)
        return self._sagas.find(saga_id) if is_plain else None

    async def _write(
        self,
        judged: dict[uuid.UUID, Judgement],
        known: dict[uuid.UUID, Left],
        groups: dict[uuid.UUID, list[Arrival]],
        now_ms: int,
    ) -> frozenset[uuid.UUID]:
        """The sagas that were still as they were left, and are written."""
        steps = [
            Advance(
                ChangedRow(saga_id, j.state, j.owed_reason(), looked=False, writes_context=j.writes_context),
                known[saga_id].version,
                j.entries,
            )
            for saga_id, j in judged.items()
            if j.state is not None
        ]
        asked_s = self._now_s()  # it reads the clock first: what comes after, such as its commit, is not its age
        try:
            done = await self._store.advance(steps, now_ms)
        except Exception as error:  # noqa: BLE001 - told apart by the transaction: what is at fault here is so there
            self.saw_trouble()
            for saga_id in judged:
                for arrival in groups[saga_id]:
                    arrival.in_doubt = arrival.in_doubt or is_passing(error)
            level = logging.DEBUG if is_passing(error) else logging.WARNING
            log.log(
                level,
                "%d sagas are read, since they could not be written as they were remembered: %r",
                len(judged),
                error,
            )
            return frozenset()
        self._time.was(done.now_ms, asked_s)
        self._learn(done, judged)
        return done.sagas

    def _learn(self, done: Advanced, judged: dict[uuid.UUID, Judgement]) -> None:
        for saga_id, judgement in judged.items():
            if saga_id in done.sagas:
                self._sagas.keep(judgement, done.version)
            else:
                self._sagas.forget(saga_id)


def _judged(left: Left, group: Sequence[Arrival], plans: Plans, now_ms: int) -> Judgement | None:
    """What the arrivals do to a saga, if all that it writes is the saga's row and its log."""
    try:
        it = judge(left.saga.saga_id, left.saga, group, plans, now_ms)
    except Exception:  # noqa: BLE001 - it needs its log, or is at fault: with the row at hand, that is told
        return None
    is_more = it.ledger or it.rejections or it.refusals or it.early or it.known_to
    return it if it.moved and not is_more else None
