"""How a batch is decided when the database does not take it as it is."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

import pytest
import sqlalchemy.exc

from watership.machine.state import Status
from watership.messages import RegisterWorker, StartSaga
from watership.testing.memory_database import MemoryDatabase, connection_lost
from watership.testing.memory_plans import MemoryBacking
from watership.testing.memory_store import MemoryBatch, MemoryStore
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.deciding import Decider
from watership_orchestrator.records import Advance, Advanced, StoredSaga

from tests.support.judging import PLAN, SAGA_ID, reply, sent, start


class Cancelled(Exception):
    """As the driver says it: canceling statement due to statement timeout."""

    sqlstate = "57014"


class SlowBatch(MemoryBatch):
    """No statement on more than two sagas comes to its end in time."""

    async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
        if len(ids) > 2:
            raise sqlalchemy.exc.DBAPIError("SELECT", None, Cancelled())
        return await super().lock(ids)


class SlowStore(MemoryStore):
    def batch(self) -> MemoryBatch:
        return SlowBatch(self._database, self._namespace, self._line, self.machine_version)


async def test_a_batch_that_takes_the_database_too_long_is_halved() -> None:
    database = MemoryDatabase(lambda: 1_000_000)
    backing = MemoryBacking(database, "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    store = SlowStore(database, "test")
    ids = [uuid.UUID(int=number) for number in range(1, 8)]
    starts = [Arrival(saga_id, StartSaga(saga="OrderSaga", saga_id=saga_id, context={"n": 1})) for saga_id in ids]
    decided = await Decider(store, backing.plans).decide(starts)
    assert [judgement.saga_id for judgement in decided.judgements] == ids
    assert database.sagas.keys() == set(ids)


class LostStore(MemoryStore):
    """The answer to what is advanced is lost on the way: after the commit, or before it (``commits`` False)."""

    commits = True
    asked = 0

    async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
        self.asked += 1
        if self.commits:
            await super().advance(steps, now_ms)
        raise connection_lost()


@pytest.mark.parametrize("commits", [True, False])
async def test_when_the_answer_to_an_advance_is_lost_its_messages_are_sent_whatever_became_of_it(commits: bool) -> None:
    database = MemoryDatabase(lambda: 1_000_000)
    backing = MemoryBacking(database, "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    store = LostStore(database, "test")
    store.commits = commits
    decider = Decider(store, backing.plans)
    await decider.decide([Arrival(SAGA_ID, start())])
    arrival = Arrival(SAGA_ID, reply("A"))
    decided = await decider.decide([arrival])
    assert store.asked == 1
    assert [sent(judgement) for judgement in decided.judgements] == [["act B 1"]]
    assert arrival.in_doubt
    assert [row.cause for row in database.logs[SAGA_ID]][:2] == ["start", "reply:A:act:1:A-act-1"]
    assert [sent(it) for it in (await decider.decide([Arrival(SAGA_ID, reply("B"))])).judgements] == [["act C 1"]]


async def test_a_reply_is_decided_without_reading_until_somebody_else_writes_the_saga() -> None:
    database = MemoryDatabase(lambda: 1_000_000)
    backing = MemoryBacking(database, "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    read: list[int] = []

    class Reading(MemoryBatch):
        async def lock(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, StoredSaga]:
            read.append(len(ids))
            return await super().lock(ids)

    class ReadingStore(MemoryStore):
        def batch(self) -> MemoryBatch:
            return Reading(self._database, self._namespace, self._line, self.machine_version)

    one, other = [Decider(ReadingStore(database, "test"), backing.plans) for _ in range(2)]
    await one.decide([Arrival(SAGA_ID, start())])
    again = await one.decide([Arrival(SAGA_ID, start())])
    assert (read, again.judgements, len(again.result.again)) == ([1], [], 1), (
        "it is there: so it is looked at, next time"
    )
    known = await one.decide(again.result.again)
    assert (read, [it.moved for it in known.judgements], known.result.again) == ([1, 1], [False], [])
    read.pop()
    await one.decide([Arrival(SAGA_ID, reply("A"))])
    assert read == [1], "the first start, since the time was not known"
    await other.decide([Arrival(SAGA_ID, reply("B"))])
    assert read == [1, 1], "it never wrote it"
    decided = await one.decide([Arrival(SAGA_ID, reply("C"))])
    assert read == [1, 1, 1], "what it remembers is not so any more"
    assert [judgement.state.status for judgement in decided.judgements if judgement.state] == [Status.COMPLETED]
    assert [row.seq for row in database.logs[SAGA_ID]] == [1, 2, 3, 4]
