"""The log, the ledger, plans and handlers in the orchestrator's database: on Postgres and on its twin in memory."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from sqlalchemy.exc import IntegrityError

from watership import codec
from watership.machine.changes import Parked
from watership.machine.plan import Plan
from watership.machine.state import SagaState, Status
from watership.messages import AdminRequest, AdminVerb, HandlerOnWire, RegisterWorker
from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.records import LedgerLine, WaitingSignal

from tests.support.engine_ground import (
    LATER_MS,
    PLAN,
    Ground,
    entry,
    ground,
    new_row,
    now_ms,
    postgres_url,
    saga,
)

__all__ = ["ground", "postgres_url"]  # fixtures


# --- rows that wait to be judged


async def test_a_signal_that_somebody_is_judging_is_not_found(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    early = WaitingSignal(saga_id, "s1", "approval", "true")
    async with ground.store.batch() as batch:
        await batch.keep_signals([early])
    (found,) = await ground.store.signals(10)
    async with ground.store.batch() as batch:
        assert await batch.hold([found.row]) == {found.row}
        assert await ground.store.signals(10) == [], "else who looks until nothing is left would never end"
    assert await ground.store.signals(10) == [found]


# --- log and ledger


async def test_the_log_is_read_as_it_was_written(ground: Ground) -> None:
    state = saga(1)
    (saga_id,) = await ground.make(state)
    parked = LogEntry(2, 5, "time", (Parked("why"),))
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        await batch.write([], [(saga_id, parked)])
        seen = await batch.history([saga_id, uuid.UUID(int=9)])
    assert [each.seq for each in seen[saga_id]] == [1, 2], "its own writes too"
    assert seen[saga_id][0].changes == entry(state, 0).changes
    assert seen[saga_id][1] == parked
    assert seen[uuid.UUID(int=9)] == []


async def test_a_log_has_each_number_once(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    with pytest.raises(IntegrityError):
        async with ground.store.batch() as batch:
            await batch.write([], [(saga_id, LogEntry(1, 5, "again", (Parked("why"),)))])


async def test_the_ledger_keeps_what_moved_nothing(ground: Ground) -> None:
    saga_id = uuid.UUID(int=7)
    async with ground.store.batch() as batch:
        await batch.lock([])
        await batch.ledger([LedgerLine(saga_id, "there is no such saga", "{}")])
    assert await ground.ledger() == [(saga_id, "there is no such saga", "{}")]


# --- plans and handlers


def announcement(worker: str, *plans: Plan, source: str = "shop:A", leaving: bool = False) -> RegisterWorker:
    handlers = (HandlerOnWire(step="A", queue="a", source=source),)
    return RegisterWorker(
        worker=worker, plans=tuple(plan.to_data() for plan in plans), handlers=handlers, leaving=leaving
    )


async def test_a_plan_is_found_by_its_hash_and_the_newest_by_its_name(ground: Ground) -> None:
    newer = dataclasses.replace(PLAN, nodes=PLAN.nodes[:1])
    assert await ground.backing.plans.register(announcement("w1", PLAN)) == []
    await ground.make_older(PLAN)
    assert await ground.backing.plans.register(announcement("w2", newer)) == []
    await ground.make_older(PLAN)
    await ground.make_older(newer)
    assert await ground.backing.plans.register(announcement("w1", PLAN)) == []
    found = await ground.new_backing("test").plans.get([PLAN.hash, "unknown"], ["Order", "Unknown"])
    assert found.by_hash[PLAN.hash] == PLAN
    assert "unknown" not in found.by_hash
    assert found.newest == {"Order": newer}, "an old worker that restarts does not take over"
    assert found.trouble_with(PLAN, {"n": 1}) is None
    assert found.trouble_with(PLAN, {}) == 'it: "n" is a required property'


async def test_a_broken_plan_is_refused_and_the_others_are_kept(ground: Ground) -> None:
    broken = RegisterWorker(worker="w1", plans=({"v": 1}, PLAN.to_data()))
    (sentence,) = await ground.backing.plans.register(broken)
    assert "a plan of worker w1" in sentence
    assert (await ground.backing.plans.get([PLAN.hash], [])).by_hash[PLAN.hash] == PLAN


async def test_a_saga_that_waited_for_its_plan_is_due_when_it_comes(ground: Ground) -> None:
    waits = SagaState(str(uuid.UUID(int=1)), "Order", Status.PENDING, None, 1, {"n": 1})
    waits = dataclasses.replace(waits, plan_due_at_ms=now_ms() + LATER_MS)
    other = dataclasses.replace(waits, saga_id=str(uuid.UUID(int=2)), name="Other")
    async with ground.store.batch() as batch:
        await batch.lock([])
        await batch.insert([new_row(waits), new_row(other)])
    await ground.backing.plans.register(announcement("w1", PLAN))
    async with ground.store.batch() as batch:
        assert await batch.due(10) == [uuid.UUID(int=1)]


async def test_a_steps_name_belongs_to_one_handler_until_its_worker_leaves(ground: Ground) -> None:
    plans = ground.backing.plans
    assert await plans.register(announcement("w1")) == []
    assert await plans.register(announcement("w2")) == [], "the same handler in another process"
    (refused,) = await plans.register(announcement("w3", source="other:A"))
    assert "step A is served by shop:A already (w2, " in refused
    assert await plans.register(announcement("w2", leaving=True)) == []
    assert await plans.register(announcement("w3", source="other:A")) == []


# --- what operators read


async def test_operators_see_rows_and_logs(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    reader = ground.backing.reader
    shown = (await reader.read(AdminRequest(verb=AdminVerb.SHOW, saga_id=saga_id))).data
    assert (shown["saga_id"], shown["status"], shown["seq"]) == (str(saga_id), "RUNNING", 1)
    assert [change["k"] for change in shown["log"][0]["changes"]] == ["created", "dispatched"]
    assert codec.dumps(shown)
    listed = (await reader.read(AdminRequest(verb=AdminVerb.LIST))).data
    assert [each["saga_id"] for each in listed] == [str(saga_id)]
    missing = await reader.read(AdminRequest(verb=AdminVerb.SHOW, saga_id=uuid.UUID(int=9)))
    assert missing.code == "saga_not_found"


async def test_the_schema_is_checked(ground: Ground) -> None:
    await ground.backing.check()
