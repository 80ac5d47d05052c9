"""A batch of arrivals in one transaction: lock, judge, write, commit. What it sends is the engine's business.

What is remembered well enough is decided before that, by its `Advancer`.

What cannot be judged fails alone, and is looked at again later and later; it holds up no other.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from watership.chance import SYSTEM_CHANCE
from watership.errors import SagaConflict, StoreUnavailable
from watership.messages import StartSaga
from watership.saga.storage.protocol import Tombstone
from watership_orchestrator.advancing import Advancer
from watership_orchestrator.arrivals import Arrival, Plans, Rejection, Waiting
from watership_orchestrator.database import is_passing, is_too_long
from watership_orchestrator.decided import BatchResult, Decided, by_saga, decided
from watership_orchestrator.judgement import Judgement, NeedsHistory, judge
from watership_orchestrator.kept_signals import put_first
from watership_orchestrator.ports import PlanShelf, SagaBatch, SagaStore
from watership_orchestrator.records import ChangedRow, LedgerLine, NewRow, StoredSaga

log = logging.getLogger("watership.orchestrator")

POISON_LOOK_MIN_MS = 10_000
POISON_LOOK_MAX_MS = 3_600_000
RETRIES_MAX = 8
TAKEN_IDS_MAX = 10_000


@dataclasses.dataclass(slots=True)
class _Work:
    """One transaction's arrivals by saga; what cannot be judged, and why; what came of rows."""

    by_saga: dict[uuid.UUID, list[Arrival]]
    result: BatchResult = dataclasses.field(default_factory=BatchResult)
    poison: dict[uuid.UUID, tuple[list[Arrival], Exception]] = dataclasses.field(default_factory=dict)
    told: dict[Waiting, str] = dataclasses.field(default_factory=dict)
    version: int = 0  # what its rows are marked with, once it is committed
    added: set[int] = dataclasses.field(default_factory=set)  # arrivals that the batch found itself, by id()

    def is_poison(self, saga_id: uuid.UUID, error: Exception) -> None:
        """Takes a saga out of the transaction."""
        self.poison[saga_id] = (self.by_saga.pop(saga_id), error)


class Decider:
    """Decides for one namespace. Any number of them run side by side; row locks keep them apart."""

    def __init__(
        self,
        store: SagaStore,
        plans: PlanShelf,
        *,
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random = SYSTEM_CHANCE,
    ) -> None:
        self._store = store
        self._plans = plans
        self._now_s = now_s
        self._chance = chance
        self._advancer = Advancer(store, plans, now_s)
        self._taken_ids: set[uuid.UUID] = set()  # of starts that come again at once: they must be looked for

    async def advance(self, arrivals: Sequence[Arrival]) -> tuple[Decided | None, Sequence[Arrival]]:
        """Commits what can be decided without being read, if anything; and the arrivals that are left for `decide`."""
        return await self._advancer.decide(arrivals)

    def saw_trouble(self) -> None:
        """The database failed elsewhere: whoever answers next may be another."""
        self._advancer.saw_trouble()

    def forget(self, saga_ids: Iterable[uuid.UUID]) -> None:
        """Somebody writes these rows: what is remembered of them is not so any more."""
        self._advancer.forget(saga_ids)

    async def decide(self, arrivals: Sequence[Arrival]) -> Decided:
        """Commits the batch in one transaction; if that does not go through, in halves, so that what is poisonous fails alone.

        Raises `StoreUnavailable`.
        """
        for attempt in range(1, RETRIES_MAX + 1):
            began_s = self._now_s()
            try:
                async with self._store.batch() as batch:
                    work, judgements, plans = await self._judge_and_write(batch, arrivals)
                self._advancer.saw_written(judgements, work.version)
                return decided(judgements, plans, began_s, work.result, work.poison)
            except Exception as error:  # told apart here: the database's state, or this batch's own fault
                self._advancer.saw_trouble()
                groups = list(by_saga(arrivals).values())
                if len(groups) > 1 and (is_too_long(error) or not is_passing(error)):
                    break
                if not is_passing(error):
                    work = await self._alone(arrivals, error)
                    return decided([], await self._plans.get((), ()), began_s, work.result, work.poison)
                for arrival in arrivals:
                    arrival.in_doubt = True
                if attempt == RETRIES_MAX:
                    raise unavailable(error) from error
                await asyncio.sleep(self._chance.uniform(0, 0.05 * 2**attempt))
        half = len(groups) // 2
        first = await self.decide([arrival for group in groups[:half] for arrival in group])
        first.take_in(await self.decide([arrival for group in groups[half:] for arrival in group]))
        return first

    async def due(self, limit: int) -> tuple[int, Decided | None]:
        """What must be looked at now, oldest first, decided in the transaction that found it; and how many that was."""
        arrivals: list[Arrival] = []
        began_s = self._now_s()
        try:
            async with self._store.batch() as batch:
                arrivals = [Arrival(saga_id, None) for saga_id in await batch.due(limit)]
                if not arrivals:
                    return 0, None
                work, judgements, plans = await self._judge_and_write(batch, arrivals)
            return len(arrivals), decided(judgements, plans, began_s, work.result, work.poison)
        except Exception as error:
            if not arrivals:
                if not is_passing(error):
                    raise
                raise unavailable(error) from error
        return len(arrivals), await self.decide(arrivals)  # again, and with more patience

    async def _alone(self, arrivals: Sequence[Arrival], error: Exception) -> _Work:
        """One saga's arrivals, with which no transaction goes through: backed off in one without them."""
        work = _Work(by_saga(arrivals))
        for saga_id in list(work.by_saga):
            work.is_poison(saga_id, error)
        try:
            async with self._store.batch() as batch:
                await self._back_off(batch, work.poison)
        except Exception as trouble:
            if not is_passing(trouble):
                raise
            raise unavailable(trouble) from error
        return work

    @staticmethod
    async def _back_off(batch: SagaBatch, poison: dict[uuid.UUID, tuple[list[Arrival], Exception]]) -> None:
        """What cannot be judged starves no other."""
        if poison:
            await batch.back_off(poison, at_least_ms=POISON_LOOK_MIN_MS, at_most_ms=POISON_LOOK_MAX_MS)
            rows = [arrival.row for group, _ in poison.values() for arrival in group if arrival.row is not None]
            await batch.back_off_rows(rows)

    # --- within the transaction

    async def _judge_and_write(
        self, batch: SagaBatch, arrivals: Sequence[Arrival]
    ) -> tuple[_Work, list[Judgement], Plans]:
        rows = [arrival.row for arrival in arrivals if arrival.row is not None]
        if rows:
            held = await batch.hold(rows)
            arrivals = [arrival for arrival in arrivals if arrival.row is None or arrival.row in held]
        work = _Work(by_saga(arrivals))
        groups, result = work.by_saga, work.result
        stored, unseen = await self._read(batch, groups)
        for saga_id, error in batch.broken.items():
            work.is_poison(saga_id, error)
        for saga_id in batch.newer:
            result.newer.extend(groups.pop(saga_id))
        tombstones = await self._unknown(batch, work, stored)
        put_off, work.added = await put_first(batch, groups, stored)
        for saga_id in put_off:
            result.again.extend(groups.pop(saga_id))
        plans = await self._plans_for(stored.values(), arrivals)
        judgements = await self._judge_all(batch, work, stored, plans, tombstones)
        judgements = self._only_made(judgements, work, unseen)
        judgements = await self._write(batch, judgements, work, plans)
        work.told.update(
            (arrival.row, judgement.told[id(arrival)])
            for judgement in judgements
            for arrival in groups[judgement.saga_id]
            if arrival.row is not None and id(arrival) in judgement.told
        )
        if work.told:
            await batch.done(work.told)
        await self._back_off(batch, work.poison)
        work.version = batch.version
        return work, judgements, plans

    async def _read(
        self, batch: SagaBatch, groups: dict[uuid.UUID, list[Arrival]]
    ) -> tuple[dict[uuid.UUID, StoredSaga], set[uuid.UUID]]:
        """The sagas, locked; and those that were not looked for, since they are started: their insert tells whether they
        are there already.
        """
        now_ms = self._advancer.now_ms()
        unseen = {
            saga_id
            for saga_id, group in groups.items()
            if now_ms is not None and len(group) == 1 and group[0].starts_anew and saga_id not in self._taken_ids
        }
        ids = groups.keys() - unseen
        if not ids and now_ms is not None:
            batch.suppose(now_ms)
            return {}, unseen
        stored = await batch.lock(ids)
        self._advancer.saw_time(batch.now_ms)
        self._taken_ids.difference_update(ids)
        return stored, unseen

    def _only_made(self, judgements: list[Judgement], work: _Work, unseen: set[uuid.UUID]) -> list[Judgement]:
        """Without the starts that make no saga, though none was looked for: of one that is there, that would not be so."""
        made = {judgement.saga_id for judgement in judgements if judgement.is_new and judgement.state is not None}
        unmade = unseen - made
        for saga_id in unmade:
            work.poison.pop(saga_id, None)
            self._look_for(saga_id)
            work.result.again.extend(work.by_saga.pop(saga_id, ()))
        return [judgement for judgement in judgements if judgement.saga_id not in unmade]

    def _look_for(self, saga_id: uuid.UUID) -> None:
        if len(self._taken_ids) >= TAKEN_IDS_MAX:  # those of messages that somebody else has judged
            self._taken_ids.clear()
        self._taken_ids.add(saga_id)

    async def _unknown(
        self, batch: SagaBatch, work: _Work, stored: dict[uuid.UUID, StoredSaga]
    ) -> dict[uuid.UUID, Tombstone]:
        """What pruned sagas left. Sagas that exist, and that somebody else has locked, are put off to another batch."""
        unknown = [
            saga_id
            for saga_id, group in work.by_saga.items()
            if saga_id not in stored and not isinstance(group[0].message, StartSaga)
        ]
        existing = await batch.existing(unknown)
        for saga_id in [saga_id for saga_id, ours in existing.items() if ours]:
            work.result.again.extend(work.by_saga.pop(saga_id))
        found = await batch.tombstones([saga_id for saga_id in unknown if saga_id not in existing])
        return {saga_id: tombstone for saga_id, tombstone in found.items() if tombstone.ours}

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
        work: _Work,
        stored: dict[uuid.UUID, StoredSaga],
        plans: Plans,
        tombstones: dict[uuid.UUID, Tombstone],
    ) -> list[Judgement]:
        judgements: list[Judgement] = []
        with_history = []
        for saga_id, group in list(work.by_saga.items()):
            try:
                saga, tombstone = stored.get(saga_id), tombstones.get(saga_id)
                judgements.append(judge(saga_id, saga, group, plans, batch.now_ms, tombstone=tombstone))
            except NeedsHistory:
                with_history.append(saga_id)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this saga's alone
                work.is_poison(saga_id, error)
        logs = await batch.history(with_history) if with_history else {}
        for saga_id in with_history:
            try:
                group = work.by_saga[saga_id]
                judgements.append(judge(saga_id, stored.get(saga_id), group, plans, batch.now_ms, logs[saga_id]))
            except Exception as error:  # noqa: BLE001 - as above
                work.is_poison(saga_id, error)
        return judgements

    async def _write(self, batch: SagaBatch, judgements: list[Judgement], work: _Work, plans: Plans) -> list[Judgement]:
        """Writes what moved; the judgements that stand. A new saga that somebody else made first is judged again."""
        made = await batch.insert(
            [
                NewRow(j.saga_id, j.state, j.input_hash, j.reply_to, j.traceparent, j.owed_reason(), j.progress)
                for j in judgements
                if j.is_new and j.state is not None
            ]
        )
        standing = [j for j in judgements if not j.is_new or j.saga_id in made]
        unmade = await batch.write(
            [
                ChangedRow(j.saga_id, j.state, j.owed_reason(), j.looked, j.writes_context)
                for j in standing
                if j.moved and not j.is_new and j.state is not None
            ],
            [(j.saga_id, entry) for j in standing for entry in j.entries],
            made,
        )
        taken = {j.saga_id for j in judgements if j.is_new and (j.saga_id not in made or j.saga_id in unmade)}
        if taken:
            standing = [j for j in standing if j.saga_id not in unmade]
            standing.extend(await self._taken(batch, taken, work, plans))
        await batch.keep_signals([signal for j in standing for signal in j.early])
        await batch.ledger([LedgerLine(j.saga_id, reason, text) for j in standing for reason, text in j.ledger])
        await batch.looked([j.saga_id for j in standing if j.looked and not j.moved and j.state is not None])
        return standing

    async def _taken(self, batch: SagaBatch, taken: set[uuid.UUID], work: _Work, plans: Plans) -> list[Judgement]:
        """New sagas whose ids are not free: somebody else was first, just now or long ago, here or elsewhere."""
        existing = await batch.existing(taken)
        tombstones = await batch.tombstones(taken - existing.keys())
        pruned: list[Judgement] = []
        for saga_id in taken:
            group, tombstone = work.by_saga[saga_id], tombstones.get(saga_id)
            if tombstone is not None and tombstone.ours:
                pruned.append(judge(saga_id, None, group, plans, batch.now_ms, tombstone=tombstone))
            elif tombstone is None and existing.get(saga_id, True):
                self._look_for(saga_id)
                work.result.again.extend(arrival for arrival in group if id(arrival) not in work.added)
            else:
                await self._refuse_foreign(batch, group, work)
        return pruned

    async def _refuse_foreign(self, batch: SagaBatch, group: list[Arrival], work: _Work) -> None:
        reason = f"the id {group[0].saga_id} is taken by a saga of another namespace, or by one that runs embedded"
        work.result.rejections.extend(
            Rejection(arrival, SagaConflict.code, reason) for arrival in group if arrival.row is None
        )
        of_rows = [arrival for arrival in group if arrival.row is not None]
        work.told.update((arrival.row, f"refused: {reason}") for arrival in of_rows if arrival.row is not None)
        bodies = [arrival.message.to_body().decode() for arrival in of_rows if arrival.message is not None]
        await batch.ledger([LedgerLine(group[0].saga_id, reason, body) for body in bodies])


def unavailable(error: Exception) -> StoreUnavailable:
    """The database's trouble in words."""
    return StoreUnavailable(f"the database does not answer: {type(error).__name__}: {error}")
