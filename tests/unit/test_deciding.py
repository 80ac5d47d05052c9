"""How a batch is decided when the database does not take it as it is."""

from __future__ import annotations

import dataclasses
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
from watership_orchestrator.decided import Decided
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


async def decide(decider: Decider, *arrivals: Arrival) -> Decided:
    """As the engine does: what can be decided without being read, then the rest."""
    first, left_over = await decider.advance(arrivals)
    if first is None:
        return await decider.decide(arrivals)
    if left_over:
        first.take_in(await decider.decide(left_over))
    return first


@pytest.mark.parametrize("commits", [True, False])
async def test_when_the_answer_to_an_advance_is_lost_its_messages_are_sent_whatever_became_of_it(commits: bool) -> None:
    database = MemoryDatabase(lambda: 1_000_000)
    backing = MemoryBacking(database, "test")
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    store = LostStore(database, "test")
    store.commits = commits
    decider = Decider(store, backing.plans)
    await decide(decider, Arrival(SAGA_ID, start()))
    arrival = Arrival(SAGA_ID, reply("A"))
    decided = await decide(decider, arrival)
    assert store.asked == 1
    assert [sent(judgement) for judgement in decided.judgements] == [["act B 1"]]
    assert arrival.in_doubt
    assert [row.cause for row in database.logs[SAGA_ID]][:2] == ["start", "reply:A:act:1:A-act-1"]
    assert [sent(it) for it in (await decide(decider, Arrival(SAGA_ID, reply("B")))).judgements] == [["act C 1"]]


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
    await decide(one, Arrival(SAGA_ID, start()))
    again = await decide(one, Arrival(SAGA_ID, start()))
    assert (read, again.judgements, len(again.result.again)) == ([1], [], 1), (
        "it is there: so it is looked at, next time"
    )
    known = await decide(one, *again.result.again)
    assert (read, [it.moved for it in known.judgements], known.result.again) == ([1, 1], [False], [])
    read.pop()
    await decide(one, Arrival(SAGA_ID, reply("A")))
    assert read == [1], "the first start, since the time was not known"
    await decide(other, Arrival(SAGA_ID, reply("B")))
    assert read == [1, 1], "it never wrote it"
    decided = await decide(one, Arrival(SAGA_ID, reply("C")))
    assert read == [1, 1, 1], "what it remembers is not so any more"
    assert [judgement.state.status for judgement in decided.judgements if judgement.state] == [Status.COMPLETED]
    assert [row.seq for row in database.logs[SAGA_ID]] == [1, 2, 3, 4]


class Clocks:
    """The database's, and ours: what passes by one passes by the other, but for what a test does to them."""

    def __init__(self) -> None:
        self.ms, self.s = 1_000_000, 0.0

    def pass_s(self, seconds: float) -> None:
        self.ms, self.s = self.ms + int(seconds * 1000), self.s + seconds


async def ground(clocks: Clocks, store: type[MemoryStore] = MemoryStore) -> tuple[MemoryBacking, Decider]:
    database = MemoryDatabase(lambda: clocks.ms)
    backing = MemoryBacking(database, "test", now_s=lambda: clocks.s)
    await backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    return backing, Decider(store(database, "test"), backing.plans, now_s=lambda: clocks.s)


async def test_a_start_that_comes_twice_is_known_though_the_newest_plan_would_refuse_it() -> None:
    clocks = Clocks()
    backing, decider = await ground(clocks)
    await decide(decider, Arrival(SAGA_ID, start(), reply_to="client"))
    clocks.pass_s(5)
    newer = dataclasses.replace(PLAN, context_schema={"type": "object", "required": ["m"]})
    await backing.plans.register(RegisterWorker(worker="w", plans=(newer.to_data(),)))
    again = await decide(decider, Arrival(SAGA_ID, start(), reply_to="client"))
    assert (again.result.rejections, again.judgements) == ([], [])
    known = await decide(decider, *again.result.again)
    assert known.judgements[0].known_to == ["client"]
    other = Arrival(uuid.UUID(int=9), StartSaga(saga="OrderSaga", saga_id=uuid.UUID(int=9), context={"n": 1}))
    refused = await decide(decider, *(await decide(decider, other)).result.again)
    assert [one.code for one in refused.result.rejections] == ["invalid_payload"], "and one that is new is refused"


async def test_a_start_is_not_put_off_because_the_clocks_drifted_while_nothing_came() -> None:
    clocks = Clocks()
    _, decider = await ground(clocks)
    other = uuid.UUID(int=9)
    await decide(decider, Arrival(other, StartSaga(saga="OrderSaga", saga_id=other, context={"n": 1})))
    clocks.pass_s(7_200)
    clocks.ms += 300
    assert len((await decide(decider, Arrival(SAGA_ID, start()))).judgements) == 1


async def test_a_slow_commit_does_not_put_our_idea_of_the_time_off() -> None:
    clocks, wrote = Clocks(), []

    class Slow(MemoryStore):
        async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
            done = await super().advance(steps, now_ms)
            wrote.append(len(done.sagas))
            clocks.pass_s(0.4)
            return done

    _, decider = await ground(clocks, Slow)
    await decide(decider, Arrival(SAGA_ID, start()))
    for name in "ABC":
        await decide(decider, Arrival(SAGA_ID, reply(name)))
    assert wrote == [1, 1, 1]


async def test_when_the_database_failed_every_saga_is_read_again() -> None:
    clocks, wrote = Clocks(), []

    class Failing(MemoryStore):
        fails = False

        def batch(self) -> MemoryBatch:
            if Failing.fails:
                Failing.fails = False
                raise connection_lost()
            return super().batch()

        async def advance(self, steps: Sequence[Advance], now_ms: int) -> Advanced:
            wrote.append(len(steps))
            return await super().advance(steps, now_ms)

    _, decider = await ground(clocks, Failing)
    await decide(decider, Arrival(SAGA_ID, start()))
    Failing.fails = True
    other = uuid.UUID(int=9)
    await decide(decider, Arrival(other, StartSaga(saga="OrderSaga", saga_id=other, context={"n": 1})))
    done = await decide(decider, Arrival(SAGA_ID, reply("A")))
    assert (wrote, [sent(it) for it in done.judgements]) == ([], [["act B 1"]])
    await decide(decider, Arrival(SAGA_ID, reply("B")))
    decider.saw_trouble()
    await decide(decider, Arrival(SAGA_ID, reply("C")))
    assert wrote == [1]


async def test_what_is_remembered_of_a_saga_is_what_its_row_says() -> None:
    clocks = Clocks()
    backing, decider = await ground(clocks)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    first = Arrival(SAGA_ID, start(progress=False), reply_to="client", traceparent=trace)
    await decide(decider, first)
    for name in "AB":
        (it,) = (await decide(decider, Arrival(SAGA_ID, reply(name)))).judgements
        async with backing.store.batch() as batch:
            row = (await batch.lock([SAGA_ID]))[SAGA_ID]
        assert (it.reply_to, it.progress, it.traceparent) == ("client", False, trace)
        assert (it.reply_to, it.progress, it.traceparent) == (row.reply_to, row.progress, row.traceparent)
        assert (it.input_hash, it.state, it.owed_reason()) == (row.input_hash, row.state, row.owed_reason)
        assert row.input_hash
