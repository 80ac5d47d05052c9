"""What every store of sagas does: the same tests on memory, SQLite and Postgres."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from watership.codec import input_hash
from watership.errors import LeaseLost, SagaNotFound
from watership.machine import events as e
from watership.machine.changes import Resent, Withdrawn
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, Status
from watership.saga.storage.protocol import HeldElsewhere, Lease, SagaStatus, SagaStepStatus, SagaStorage

from tests.support.stored_sagas import (
    CONTEXT,
    LEASE_MS,
    PLAN,
    StoredSaga,
    acquire_when_free,
    assert_stored,
    eventually,
)


async def due(storage: SagaStorage, *names: str, limit: int = 100) -> list[uuid.UUID]:
    return await storage.due(names=names or ("Order",), limit=limit)


# --- rows and logs ---------------------------------------------------------------------------------------------------


async def test_what_was_created_is_loaded(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await assert_stored(saga)
    record = await storage.load(saga.saga_id)
    assert record is not None
    assert record.saga_id == saga.saga_id
    assert record.state.context == CONTEXT
    assert record.input_hash == input_hash("Order", CONTEXT)
    assert saga.lease is not None
    assert record.created_at_ms == record.updated_at_ms == saga.lease.now_ms


async def test_an_id_is_taken_once(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    again = await storage.create(saga.saga_id, saga.state, saga.entries[0], input_hash="x", lease_ms=LEASE_MS)
    assert again is None
    await assert_stored(saga)


async def test_of_many_that_create_one_id_at_once_one_gets_it(storage: SagaStorage) -> None:
    saga = StoredSaga(storage)
    (entry,) = saga.decide(e.SagaStarted("Order", dict(CONTEXT), PLAN.hash))
    leases = await asyncio.gather(
        *(storage.create(saga.saga_id, saga.state, entry, input_hash="x", lease_ms=LEASE_MS) for _ in range(20))
    )
    assert [lease.epoch for lease in leases if lease is not None] == [1]
    assert await storage.history(saga.saga_id) == [entry]


async def test_an_unknown_saga(storage: SagaStorage) -> None:
    nobody = uuid.uuid4()
    assert await storage.load(nobody) is None
    assert await storage.acquire(nobody, lease_ms=LEASE_MS) is None
    assert await storage.history(nobody) == []
    with pytest.raises(SagaNotFound):
        await storage.load_saga_state(nobody)
    with pytest.raises(SagaNotFound):
        await storage.get_step_history(nobody)
    with pytest.raises(LeaseLost):
        await storage.commit(Lease(nobody, 1, 0, 0), StoredSaga(storage).state, [], release=True)


async def test_folding_the_log_gives_the_row_at_every_step(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await saga.act("Reserve")
    await assert_stored(saga)
    await saga.act("Charge")
    await saga.fail("Ship")
    await assert_stored(saga)
    await saga.undo("Charge")
    await assert_stored(saga)
    await saga.undo("Reserve")
    await assert_stored(saga)
    await saga.commit(e.StepReplied("Ship", Action.ACT, 1, "late", Outcome.DONE, patch={"late": True}))
    assert saga.state.status is Status.COMPENSATING
    await assert_stored(saga)


async def test_a_withdrawn_compensation_is_stored_as_it_stands(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await saga.act("Reserve")
    await saga.fail("Charge")
    await saga.commit_changes(
        Resent("Reserve", Action.COMPENSATE, 1, due_at_ms=5, doubtful=True), Withdrawn("Reserve", Action.COMPENSATE, 1)
    )
    await assert_stored(saga)


async def test_several_entries_in_one_commit(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    entries = saga.decide(e.StepReplied("Reserve", Action.ACT, 1, "r", Outcome.DONE))
    entries += saga.decide(e.StepReplied("Charge", Action.ACT, 1, "c", Outcome.DONE))
    assert saga.lease is not None
    await storage.commit(saga.lease, saga.state, entries, release=False)
    await assert_stored(saga)
    assert [entry.seq for entry in await storage.history(saga.saga_id)] == [1, 2, 3]


async def test_a_commit_without_entries_only_releases(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    assert saga.lease is not None
    await storage.commit(saga.lease, saga.state, [], release=True)
    await assert_stored(saga)
    assert isinstance(await storage.acquire(saga.saga_id, lease_ms=LEASE_MS), Lease)


async def test_entries_that_do_not_follow_the_log_are_refused(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    assert saga.lease is not None
    with pytest.raises(ValueError, match="do not lead to"):
        await storage.commit(saga.lease, saga.state, [saga.entries[0], saga.entries[0]], release=False)
    await saga.act("Reserve")
    with pytest.raises(ValueError, match="its log is at entry 2 already"):
        await storage.commit(saga.lease, saga.state, saga.entries[1:], release=False)
    await assert_stored(saga)


async def test_nobody_changes_a_stored_saga_from_outside(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await saga.act("Reserve")
    before = saga.state.copy()
    saga.state.context["nested"] = "mine"
    saga.state.step("Reserve").act.attempt = 99
    loaded = await storage.load(saga.saga_id)
    assert loaded is not None
    assert loaded.state == before
    loaded.state.context["nested"]["of"].append("theirs")
    loaded.state.context["items"].clear()
    _, context, _ = await storage.load_saga_state(saga.saga_id)
    assert (context["nested"], context["items"]) == ({"of": ["Reserve"]}, ["a", "b"])


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_held_saga_is_not_acquired_until_its_lease_ran_out(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create(lease_ms=150)
    held = await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)
    assert isinstance(held, HeldElsewhere)
    assert 1 <= held.retry_in_ms <= 150
    lease = await acquire_when_free(storage, saga.saga_id)
    assert lease.epoch == 2
    assert lease.until_ms == lease.now_ms + LEASE_MS
    held = await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)
    assert isinstance(held, HeldElsewhere)
    assert held.retry_in_ms > LEASE_MS / 2


async def test_of_many_that_acquire_at_once_one_gets_it(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    assert saga.lease is not None
    await storage.release(saga.lease)
    answers = await asyncio.gather(*(storage.acquire(saga.saga_id, lease_ms=LEASE_MS) for _ in range(20)))
    assert [answer.epoch for answer in answers if isinstance(answer, Lease)] == [2]


async def test_a_former_holder_writes_nothing(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    former = saga.lease
    assert former is not None
    await storage.release(former)
    saga.lease = await acquire_when_free(storage, saga.saga_id)
    before, seen = saga.state, list(saga.entries)
    entries = saga.decide(e.StepReplied("Reserve", Action.ACT, 1, "r", Outcome.DONE))
    with pytest.raises(LeaseLost, match=str(saga.saga_id)):
        await storage.commit(former, saga.state, entries, release=True)
    await storage.renew([former], lease_ms=10 * LEASE_MS)
    await storage.release(former, retry_in_ms=0)
    saga.state, saga.entries = before, seen
    await assert_stored(saga)
    held = await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)
    assert isinstance(held, HeldElsewhere), "a former holder must not give up another's lease"
    assert held.retry_in_ms <= LEASE_MS, "a former holder must not extend another's lease"


async def test_an_expired_lease_that_nobody_took_still_writes(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create(lease_ms=0)
    await saga.act("Reserve")
    await assert_stored(saga)


async def test_renewing_extends_what_is_held(storage: SagaStorage) -> None:
    sagas = [await StoredSaga(storage).create(lease_ms=500) for _ in range(3)]
    leases = [saga.lease for saga in sagas if saga.lease is not None]
    await storage.release(leases[2])
    await storage.renew([], lease_ms=LEASE_MS)
    await storage.renew(leases, lease_ms=LEASE_MS)
    for saga in sagas[:2]:
        held = await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)
        assert isinstance(held, HeldElsewhere)
        assert held.retry_in_ms > 500
    assert isinstance(await storage.acquire(sagas[2].saga_id, lease_ms=LEASE_MS), Lease), "given up stays given up"


async def test_a_terminal_saga_can_be_acquired(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await saga.complete()
    assert saga.state.status is Status.COMPLETED
    lease = await storage.acquire(saga.saga_id, lease_ms=LEASE_MS)
    assert isinstance(lease, Lease)
    assert lease.epoch == 2


# --- what is due -----------------------------------------------------------------------------------------------------


async def test_what_nobody_drives_any_more_becomes_due(storage: SagaStorage) -> None:
    left = await StoredSaga(storage).create(lease_ms=50)
    held = await StoredSaga(storage).create(lease_ms=LEASE_MS)
    assert held.saga_id not in await due(storage)

    async def is_due() -> bool:
        return await due(storage) == [left.saga_id]

    await eventually(is_due)
    assert await due(storage, "Other") == []
    assert await due(storage, "Other", "Order") == [left.saga_id]
    await acquire_when_free(storage, left.saga_id)
    assert await due(storage) == []


async def test_due_is_oldest_first_and_limited(storage: SagaStorage) -> None:
    sagas = [await StoredSaga(storage).create(lease_ms=0) for _ in range(4)]
    for retry_in_ms, saga in zip((-4_000, -1_000, -3_000, -2_000), sagas, strict=True):
        assert saga.lease is not None
        await storage.release(saga.lease, retry_in_ms=retry_in_ms)
    assert await due(storage) == [sagas[place].saga_id for place in (0, 2, 3, 1)]
    assert await due(storage, limit=2) == [sagas[0].saga_id, sagas[2].saga_id]


async def test_a_released_saga_is_looked_at_again_when_it_asked(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create(lease_ms=0)
    assert saga.lease is not None
    await storage.release(saga.lease, retry_in_ms=60_000)
    assert await due(storage) == []
    await storage.release(saga.lease, retry_in_ms=100)
    await eventually(lambda: _is_in_due(storage, saga.saga_id))
    lease = await acquire_when_free(storage, saga.saga_id)
    await storage.release(lease)
    assert await due(storage) == [saga.saga_id]


async def _is_in_due(storage: SagaStorage, saga_id: uuid.UUID) -> bool:
    return saga_id in await due(storage)


async def test_what_waits_for_a_person_or_has_ended_is_not_due(storage: SagaStorage) -> None:
    parked = await StoredSaga(storage).create(lease_ms=0)
    await parked.park()
    completed = await StoredSaga(storage).create(lease_ms=0)
    await completed.complete()
    paused = await StoredSaga(storage).create(lease_ms=0)
    paused.state.paused = True
    await paused.act("Reserve")
    assert await due(storage) == []
    await assert_stored(parked)
    await parked.commit(e.RetryRequested("ann", "mended"))
    assert await due(storage) == [parked.saga_id], "what is let go on is looked at again"


async def test_a_finished_saga_that_undoes_a_late_act_is_due(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create(lease_ms=0)
    await saga.act("Reserve")
    await saga.fail("Charge")
    await saga.undo("Reserve")
    assert saga.state.status is Status.COMPENSATED
    assert await due(storage) == []
    assert saga.lease is not None
    await storage.release(saga.lease, retry_in_ms=0)
    assert await due(storage) == [], "what has ended gets no moment by giving its lease up"
    await saga.commit(e.StepReplied("Charge", Action.ACT, 1, "late", Outcome.DONE), release=True)
    assert await due(storage) == [saga.saga_id]
    await saga.undo("Charge")
    assert await due(storage) == []


# --- lists, plans, the read side -------------------------------------------------------------------------------------


async def test_listing(storage: SagaStorage) -> None:
    completed = await StoredSaga(storage).create()
    await completed.complete()
    await _tick(storage)
    parked = await StoredSaga(storage).create()
    await parked.park()
    await _tick(storage)
    running = await StoredSaga(storage).create()
    everything = await storage.list_sagas(limit=10)
    assert [line.saga_id for line in everything] == [running.saga_id, parked.saga_id, completed.saga_id]
    assert [line.step for line in everything] == ["Reserve", "Reserve", None]
    assert everything[1].parked_reason == parked.state.parked_reason
    assert everything[0].name == "Order"
    assert everything[0].created_at.tzinfo is not None
    assert everything[2].updated_at >= everything[2].created_at

    async def ids(**filters: Any) -> list[uuid.UUID]:
        return [line.saga_id for line in await storage.list_sagas(**filters)]

    assert await ids(limit=1) == [running.saga_id]
    assert await ids(limit=10, status=Status.COMPLETED) == [completed.saga_id]
    assert await ids(limit=10, parked=True) == [parked.saga_id]
    assert await ids(limit=10, parked=False) == [running.saga_id, completed.saga_id]
    assert await ids(limit=1, parked=False, status=Status.COMPENSATING) == []


async def _tick(storage: SagaStorage) -> None:
    """Until the store's clock, which counts milliseconds, has moved on."""
    before = await storage.now_ms()

    async def moved() -> bool:
        return await storage.now_ms() > before

    await eventually(moved)


async def test_plans(storage: SagaStorage) -> None:
    assert await storage.load_plan(PLAN.hash) is None
    await storage.save_plan(PLAN)
    await storage.save_plan(PLAN)
    other = Plan("Other", PLAN.nodes[:1], {"type": "object"})
    await storage.save_plan(other)
    assert await storage.load_plan(PLAN.hash) == PLAN
    found = await storage.load_plan(other.hash)
    assert found is not None
    assert found.hash == other.hash


async def test_the_read_side(storage: SagaStorage) -> None:
    saga = await StoredSaga(storage).create()
    await saga.act("Reserve")
    await saga.fail("Charge")
    await saga.undo("Reserve")
    status, context, version = await storage.load_saga_state(saga.saga_id, read_for_update=True)
    assert (status, version) == (SagaStatus.COMPENSATED, 4)
    assert context == {**CONTEXT, "last": "Reserve", "nested": {"of": ["Reserve"]}}
    lines = await storage.get_step_history(saga.saga_id)
    assert [(line.step_name, line.action, line.status) for line in lines] == [
        ("Reserve", "act", SagaStepStatus.STARTED),
        ("Reserve", "act", SagaStepStatus.COMPLETED),
        ("Charge", "act", SagaStepStatus.STARTED),
        ("Charge", "act", SagaStepStatus.FAILED),
        ("Reserve", "compensate", SagaStepStatus.STARTED),
        ("Reserve", "compensate", SagaStepStatus.COMPLETED),
    ]
    assert lines[3].details == "CardDeclined: no money"


async def test_the_clock_is_in_milliseconds_and_goes_on(storage: SagaStorage) -> None:
    before = await storage.now_ms()
    assert 1_700_000_000_000 < before < 4_000_000_000_000
    await _tick(storage)
