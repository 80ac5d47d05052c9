"""The shell: a batch of arrivals -> one transaction -> publish -> what became of each. The judgement is elsewhere.

The order is the law (1): commit, then publish, then acknowledge. An unacknowledged message is the outbox of its
transition; a transition without a message is owed in its row from the commit on, until the broker has confirmed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from watership.bus.protocol import Bus, Fate, Message
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE
from watership.errors import SagaConflict, StoreUnavailable
from watership.machine.state import MACHINE_VERSION
from watership.messages import AdminRequest, StartSaga
from watership_orchestrator.database import is_passing
from watership_orchestrator.judgement import Arrival, Judgement, NeedsHistory, Plans, Rejection, judge
from watership_orchestrator.outbox import Outgoing, messages_of, rejection_message
from watership_orchestrator.owed import is_in_doubt, returned_reason
from watership_orchestrator.ports import PlanShelf, SagaBatch, SagaStore
from watership_orchestrator.store import ChangedRow, LedgerLine, NewRow, StoredSaga

log = logging.getLogger("watership.orchestrator")

PUBLISH_WINDOW_S = 5.0
OWED_RETRY_MS = 5_000
POISON_LOOK_MS = 60_000
RETRIES_MAX = 8


@dataclasses.dataclass(slots=True)
class BatchResult:
    """What became of a batch. ``again``: to be judged in a later batch, since their sagas were locked elsewhere.

    ``redeliver``: committed, but not published in time: the broker must bring them again.
    """

    again: list[Arrival] = dataclasses.field(default_factory=list)
    redeliver: list[Arrival] = dataclasses.field(default_factory=list)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    refusals: dict[int, str] = dataclasses.field(default_factory=dict)
    states: dict[uuid.UUID, Judgement] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class _Committed:
    judgements: list[Judgement]
    plans: Plans
    result: BatchResult
    began_s: float  # by the monotonic clock


class Engine:
    """Decides and sends for one namespace. Any number of them run side by side; row locks keep them apart."""

    def __init__(
        self,
        store: SagaStore,
        bus: Bus,
        plans: PlanShelf,
        topology: Topology,
        *,
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random = SYSTEM_CHANCE,
    ) -> None:
        self._store = store
        self._bus = bus
        self._plans = plans
        self._topology = topology
        self._now_s = now_s
        self._chance = chance

    async def process(self, arrivals: Sequence[Arrival]) -> BatchResult:
        """Judges, commits, publishes. On return, each arrival that the result does not name may be acknowledged."""
        generation = self._bus.generation
        try:
            committed = await self._commit_or_split(arrivals)
        except StoreUnavailable:
            for arrival in arrivals:  # some of it may have been committed, and nobody was told
                arrival.in_doubt = True
            raise
        result = committed.result
        late = self._now_s() - committed.began_s > PUBLISH_WINDOW_S or self._bus.generation != generation
        if late:  # law 3: a process that was stopped publishes nothing old
            log.warning(
                "a batch of %d was committed too long ago, or its channel is gone: it comes again", len(arrivals)
            )
            return _all_again(arrivals)
        try:
            moved = await self._publish(committed)
        except Exception as error:
            if not is_passing(error):
                raise
            # What is owed could not be marked: the messages must come again, or the reaper must look.
            log.warning("the database does not answer (%s): a batch of %d comes again", error, len(arrivals))
            return _all_again(arrivals)
        # A saga that moved since does not owe in its row: its message stays the outbox of what was not confirmed.
        result.redeliver.extend(arrival for arrival in arrivals if arrival.saga_id in moved and arrival.message)
        # Only the broker can bring a message again as redelivered: what is in doubt must not lose that.
        result.redeliver.extend(arrival for arrival in result.again if arrival.in_doubt)
        result.again = [arrival for arrival in result.again if not arrival.in_doubt]
        return result

    async def look(self, limit: int) -> int:
        """The reaper's batch: what is due or owed, oldest first. How many it looked at."""
        try:
            async with self._store.batch() as batch:
                ids = await batch.due(limit)
        except Exception as error:
            if not is_passing(error):
                raise
            raise _unavailable(error) from error
        if not ids:
            return 0
        result = await self.process([Arrival(saga_id, None) for saga_id in ids])
        return len(ids) - len(result.again)

    # --- deciding

    async def _commit_or_split(self, arrivals: Sequence[Arrival]) -> _Committed:
        """Commits the batch; if it cannot, each saga alone, so that a poisonous one fails alone."""
        for attempt in range(1, RETRIES_MAX + 1):
            try:
                return await self._commit(arrivals)
            except Exception as error:  # told apart here: the database's state, or this batch's own fault
                if not is_passing(error):
                    if len({arrival.saga_id for arrival in arrivals}) == 1:
                        return await self._poisonous(arrivals, error)
                    break
                for arrival in arrivals:
                    arrival.in_doubt = True
                if attempt == RETRIES_MAX:
                    raise _unavailable(error) from error
                await asyncio.sleep(self._chance.uniform(0, 0.05 * 2**attempt))
        return await self._commit_each(arrivals)

    async def _commit_each(self, arrivals: Sequence[Arrival]) -> _Committed:
        whole: _Committed | None = None
        for group in _by_saga(arrivals).values():
            one = await self._commit_or_split(group)
            if whole is None:
                whole = one
                continue
            whole.began_s = min(whole.began_s, one.began_s)
            whole.judgements.extend(one.judgements)
            whole.result.again.extend(one.result.again)
            whole.result.redeliver.extend(one.result.redeliver)
            whole.result.rejections.extend(one.result.rejections)
            whole.result.refusals.update(one.result.refusals)
            whole.result.states.update(one.result.states)
        assert whole is not None, "a batch is never empty"
        return whole

    async def _poisonous(self, arrivals: Sequence[Arrival], error: Exception) -> _Committed:
        saga_id = arrivals[0].saga_id
        log.error("saga %s: what arrived for it cannot be judged", saga_id, exc_info=error)
        try:
            await self._store.back_off([saga_id], back_off_ms=POISON_LOOK_MS)
        except Exception as unavailable:
            if not is_passing(unavailable):
                raise
            raise _unavailable(unavailable) from error
        result = BatchResult()
        for arrival in arrivals:
            reason = f"saga {saga_id}: {type(error).__name__}: {error}"
            if isinstance(arrival.message, AdminRequest):
                result.refusals[id(arrival)] = reason
            elif arrival.message is not None:
                result.rejections.append(Rejection(arrival, "poisonous", reason))
        return _Committed([], await self._plans.get((), ()), result, self._now_s())

    async def _commit(self, arrivals: Sequence[Arrival]) -> _Committed:
        by_saga, began_s = _by_saga(arrivals), self._now_s()
        result = BatchResult()
        async with self._store.batch() as batch:
            stored = await batch.lock(by_saga)
            for saga_id in await self._elsewhere(batch, by_saga, stored):
                result.again.extend(by_saga.pop(saga_id))
            for saga_id in [key for key, saga in stored.items() if saga.machine_version > MACHINE_VERSION]:
                result.redeliver.extend(by_saga.pop(saga_id))  # a newer orchestrator's: left to one
            plans = await self._plans_for(stored.values(), arrivals)
            judgements = await self._judge_all(batch, by_saga, stored, plans)
            judgements = await self._write(batch, judgements, by_saga, result)
        for judgement in judgements:
            result.rejections.extend(judgement.rejections)
            result.refusals.update(judgement.refusals)
            result.states[judgement.saga_id] = judgement
            if judgement.moved and judgement.state is not None and judgement.state.parked_reason is not None:
                log.warning("saga %s is parked: %s", judgement.saga_id, judgement.state.parked_reason)
        return _Committed(judgements, plans, result, began_s)

    async def _elsewhere(
        self,
        batch: SagaBatch,
        by_saga: dict[uuid.UUID, list[Arrival]],
        stored: dict[uuid.UUID, StoredSaga],
    ) -> set[uuid.UUID]:
        """Sagas that exist, and that somebody else has locked."""
        unknown = [
            saga_id
            for saga_id, group in by_saga.items()
            if saga_id not in stored and not isinstance(group[0].message, StartSaga)
        ]
        return {saga_id for saga_id, ours in (await batch.existing(unknown)).items() if ours}

    async def _plans_for(self, stored: Iterable[StoredSaga], arrivals: Sequence[Arrival]) -> Plans:
        hashes, names = set(), set()
        for saga in stored:
            if saga.state.plan_hash is not None:
                hashes.add(saga.state.plan_hash)
            else:
                names.add(saga.state.name)
        for arrival in arrivals:
            if isinstance(arrival.message, StartSaga):
                if arrival.message.plan is not None:
                    hashes.add(arrival.message.plan)
                else:
                    names.add(arrival.message.saga)
        return await self._plans.get(hashes, names)

    async def _judge_all(
        self,
        batch: SagaBatch,
        by_saga: dict[uuid.UUID, list[Arrival]],
        stored: dict[uuid.UUID, StoredSaga],
        plans: Plans,
    ) -> list[Judgement]:
        judgements, with_history = [], []
        for saga_id, group in by_saga.items():
            try:
                judgements.append(judge(saga_id, stored.get(saga_id), group, plans, batch.now_ms))
            except NeedsHistory:
                with_history.append(saga_id)
        if with_history:
            logs = await batch.history(with_history)
            judgements.extend(
                judge(saga_id, stored.get(saga_id), by_saga[saga_id], plans, batch.now_ms, logs[saga_id])
                for saga_id in with_history
            )
        return judgements

    async def _write(
        self,
        batch: SagaBatch,
        judgements: list[Judgement],
        by_saga: dict[uuid.UUID, list[Arrival]],
        result: BatchResult,
    ) -> list[Judgement]:
        """Writes what moved; the judgements that stand. A new saga that somebody else made first is judged again."""
        made = await batch.insert(
            [
                NewRow(j.saga_id, j.state, j.input_hash, j.reply_to, j.traceparent)
                for j in judgements
                if j.is_new and j.state is not None
            ]
        )
        taken = [j.saga_id for j in judgements if j.is_new and j.saga_id not in made]
        for saga_id, ours in (await batch.existing(taken)).items():
            if ours:
                result.again.extend(by_saga[saga_id])
            else:
                result.rejections.extend(_taken(arrival) for arrival in by_saga[saga_id])
        standing = [j for j in judgements if j.saga_id not in taken]
        await batch.update(
            [
                ChangedRow(j.saga_id, j.state, owed_reason=j.owed_reason(), looked=j.looked)
                for j in standing
                if j.moved and not j.is_new and j.state is not None
            ]
        )
        await batch.log([(j.saga_id, entry) for j in standing for entry in j.entries])
        await batch.ledger([LedgerLine(j.saga_id, reason, text) for j in standing for reason, text in j.ledger])
        await batch.looked([j.saga_id for j in standing if j.looked and not j.moved and j.state is not None])
        return standing

    # --- sending

    async def _publish(self, committed: _Committed) -> set[uuid.UUID]:
        """Sends; the sagas that owe something and moved before that could be marked."""
        outgoing: list[Outgoing] = []
        for judgement in committed.judgements:
            plan = committed.plans.of(judgement.state) if judgement.state is not None else None
            outgoing.extend(messages_of(judgement, plan, self._topology))
        rejections = committed.result.rejections
        answers = {index: rejection_message(rejection) for index, rejection in enumerate(rejections)}
        told = {index: message for index, message in answers.items() if message is not None}
        messages: list[Message] = [item.message for item in outgoing]
        messages.extend(told.values())
        fates = await self._bus.publish(messages) if messages else []
        untold = {index for index, fate in zip(told, fates[len(outgoing) :], strict=True) if fate is not Fate.CONFIRMED}
        committed.result.redeliver.extend(rejections[index].arrival for index in untold)
        return await self._settle(committed.judgements, list(zip(outgoing, fates, strict=False)))

    async def _settle(self, judgements: list[Judgement], sent: list[tuple[Outgoing, Fate]]) -> set[uuid.UUID]:
        """Marks what is not confirmed as owed, and what was owed and is confirmed now as settled.

        Gives those that could not be marked, because they have moved.
        """
        seqs = {j.saga_id: j.state.seq for j in judgements if j.state is not None}
        owing: dict[uuid.UUID, str] = {}
        for item, fate in sent:
            if item.required and fate is not Fate.CONFIRMED and not is_in_doubt(owing.get(item.saga_id)):
                owing[item.saga_id] = _owed_reason(item, fate)
        moved: set[uuid.UUID] = set()
        if owing:
            lines = [(saga_id, seqs[saga_id], reason) for saga_id, reason in owing.items()]
            moved = set(owing) - await self._store.owe(lines, wake_in_ms=OWED_RETRY_MS)
        settled = [
            (j.saga_id, seqs[j.saga_id])
            for j in judgements
            if j.looked and (j.moved or j.owed_before is not None) and j.saga_id in seqs and j.saga_id not in owing
        ]
        if settled:
            await self._store.settle(settled)
        return moved


def _all_again(arrivals: Sequence[Arrival]) -> BatchResult:
    """Nothing was sent: every message must come again, to be known, and to send what followed from it."""
    return BatchResult(redeliver=[arrival for arrival in arrivals if arrival.message is not None])


def _owed_reason(item: Outgoing, fate: Fate) -> str:
    key = item.message.routing_key
    if fate is Fate.RETURNED and item.command is not None:
        return returned_reason(item.command, f"no worker has ever served its step, no queue is bound to {key}")
    return f"{fate}: the broker did not confirm {key}"


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the database does not answer: {type(error).__name__}: {error}")


def _taken(arrival: Arrival) -> Rejection:
    reason = f"the id {arrival.saga_id} is taken by a saga of another namespace, or by one that runs embedded"
    return Rejection(arrival, SagaConflict.code, reason)


def _by_saga(arrivals: Iterable[Arrival]) -> dict[uuid.UUID, list[Arrival]]:
    grouped: dict[uuid.UUID, list[Arrival]] = {}
    for arrival in arrivals:
        grouped.setdefault(arrival.saga_id, []).append(arrival)
    return grouped
