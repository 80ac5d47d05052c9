"""What the orchestrator's database does with rows, locks and transactions: on Postgres and on its twin in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid

import pytest
from sqlalchemy.exc import IntegrityError

from watership.machine.state import Status
from watership.saga.storage.trouble import Trouble, trouble_of
from watership_orchestrator.owed import OWED_LOOK_MS
from watership_orchestrator.records import ChangedRow, LedgerLine

from tests.support.engine_ground import (
    LATER_MS,
    SOON_MS,
    Ground,
    entry,
    ground,
    moved,
    new_row,
    now_ms,
    postgres_url,
    saga,
    update,
)

__all__ = ["ground", "postgres_url"]  # fixtures


# --- rows, locks, transactions


async def test_what_was_made_is_locked_and_read(ground: Ground) -> None:
    state = saga()
    (saga_id,) = await ground.make(state)
    async with ground.store.batch() as batch:
        stored = (await batch.lock([saga_id, uuid.UUID(int=99)]))[saga_id]
        assert abs(batch.now_ms - now_ms()) < 60_000
    assert stored.state == state
    assert (stored.input_hash, stored.reply_to, stored.owed, stored.owed_reason) == ("hash", "me", False, None)
    assert stored.progress
    row = await ground.row(saga_id)
    assert row is not None
    assert row["wake_at_ms"] == row["due_at_ms"] == state.due_at_ms
    assert row["step"] == "A"


async def test_who_is_told_the_end_alone_is_remembered(ground: Ground) -> None:
    async with ground.store.batch() as batch:
        await batch.lock([])
        await batch.insert([dataclasses.replace(new_row(saga(1)), progress=False)])
    async with ground.store.batch() as batch:
        assert not (await batch.lock([uuid.UUID(int=1)]))[uuid.UUID(int=1)].progress


async def test_a_locked_saga_is_passed_over_and_exists(ground: Ground) -> None:
    one, other = await ground.make(saga(1), saga(2))
    async with ground.store.batch() as first, ground.store.batch() as second:
        assert set(await first.lock([one])) == {one}
        assert set(await second.lock([one, other])) == {other}
        assert await second.existing([one, uuid.UUID(int=99)]) == {one: True}
    async with ground.store.batch() as third:
        assert set(await third.lock([one, other])) == {one, other}, "their locks ended with their transactions"


async def test_an_exception_rolls_all_of_it_back(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    before = await ground.row(saga_id)
    with pytest.raises(ZeroDivisionError):
        async with ground.store.batch() as batch:
            await batch.lock([saga_id])
            changed = moved(saga(1), now_ms() + SOON_MS)
            await batch.insert([new_row(saga(2))])
            await batch.write(
                [ChangedRow(saga_id, changed, None, looked=False)], [(saga_id, entry(changed, batch.now_ms))]
            )
            await batch.ledger([LedgerLine(saga_id, "why", "what")])
            raise ZeroDivisionError
    assert await ground.row(saga_id) == before
    assert await ground.row(uuid.UUID(int=2)) is None
    assert await ground.ledger() == []
    async with ground.store.batch() as batch:
        assert len((await batch.history([saga_id]))[saga_id]) == 1


async def test_an_id_is_given_once(ground: Ground) -> None:
    await ground.make(saga(1))
    assert await ground.make(saga(2)) == [uuid.UUID(int=2)]
    async with ground.store.batch() as batch:
        await batch.lock([])
        assert await batch.insert([new_row(saga(1)), new_row(saga(3))]) == {uuid.UUID(int=3)}


async def test_of_two_that_make_one_id_at_once_the_second_waits_for_the_first(ground: Ground) -> None:
    made: list[set[uuid.UUID]] = []
    first_has_it = asyncio.Event()

    async def make(after: asyncio.Event | None) -> None:
        if after is not None:
            await after.wait()
        async with ground.store.batch() as batch:
            await batch.lock([])
            made.append(await batch.insert([new_row(saga(1))]))
            first_has_it.set()
            await asyncio.sleep(0)

    await asyncio.gather(make(None), make(first_has_it))
    assert made == [{uuid.UUID(int=1)}, set()]


async def test_the_check_of_the_table_refuses_a_saga_at_which_nobody_would_look(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    with pytest.raises(IntegrityError, match="nothing_is_stuck"):
        await update(ground, moved(saga(1), None))
    parked = await update(ground, moved(saga(1), None, parked_reason="it needs a person"))
    assert parked["wake_at_ms"] is None
    assert saga_id == parked["saga_id"]


async def test_another_namespaces_sagas_are_none_of_ours(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1, due_at_ms=1))
    stranger = ground.new_backing("stranger").store
    async with stranger.batch() as batch:
        assert await batch.lock([saga_id]) == {}
        assert await batch.existing([saga_id]) == {saga_id: False}
        assert await batch.due(10) == []


async def test_embedded_sagas_are_none_of_ours(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1, due_at_ms=1))
    await ground.change(saga_id, driver="embedded")
    async with ground.store.batch() as batch:
        assert await batch.lock([saga_id]) == {}
        assert await batch.existing([saga_id]) == {saga_id: False}
        assert await batch.due(10) == []


# --- when somebody looks again


async def test_wake_is_moved_earlier_only_unless_somebody_just_looked(ground: Ground) -> None:
    state = saga(1, due_at_ms=now_ms() + SOON_MS)
    await ground.make(state)
    later = moved(state, now_ms() + LATER_MS)
    row = await update(ground, later)
    assert (row["wake_at_ms"], row["due_at_ms"]) == (state.due_at_ms, later.due_at_ms)
    sooner = moved(later, now_ms() + 1_000)
    assert (await update(ground, sooner))["wake_at_ms"] == sooner.due_at_ms
    again = moved(sooner, now_ms() + LATER_MS)
    assert (await update(ground, again, looked=True))["wake_at_ms"] == again.due_at_ms


async def test_what_is_owed_is_looked_at_soon(ground: Ground) -> None:
    state = saga(1)
    await ground.make(state)
    row = await update(ground, moved(state, now_ms() + LATER_MS), owed_reason="unconfirmed: x")
    assert (row["owed"], row["owed_reason"]) == (True, "unconfirmed: x")
    assert row["wake_at_ms"] == row["updated_at_ms"] + OWED_LOOK_MS
    row = await update(ground, moved(moved(state, 1), now_ms() + LATER_MS))
    assert (row["owed"], row["owed_reason"]) == (False, None)


async def test_what_owes_events_alone_is_looked_at_as_soon_as_something_is_due(ground: Ground) -> None:
    """A retry that is due in a second does not wait for the look at what may not have been told."""
    state = saga(1)
    await ground.make(state)
    soon = moved(state, now_ms() + 1_000)
    assert (await update(ground, soon, owed_reason="unconfirmed: x"))["wake_at_ms"] > soon.due_at_ms
    soon = moved(soon, now_ms() + 1_000)
    assert (await update(ground, soon, owed_reason="events: x"))["wake_at_ms"] == soon.due_at_ms
    row = await update(ground, moved(soon, now_ms() + LATER_MS), owed_reason="events: x")
    assert row["wake_at_ms"] == row["updated_at_ms"] + OWED_LOOK_MS


async def test_a_saga_that_ended_is_looked_at_no_more(ground: Ground) -> None:
    state = saga(1)
    await ground.make(state)
    row = await update(ground, moved(state, None, status=Status.COMPLETED))
    assert row["wake_at_ms"] is None


async def test_owing_and_settling_touch_only_what_has_not_moved(ground: Ground) -> None:
    state = saga(1)
    (saga_id,) = await ground.make(state)
    assert await ground.store.owe([(saga_id, 7, "old news")], wake_in_ms=1_000) == set()
    row = await ground.row(saga_id)
    assert row is not None
    assert not row["owed"]
    assert await ground.store.owe([(saga_id, 1, "unconfirmed: x")], wake_in_ms=1_000) == {saga_id}
    row = await ground.row(saga_id)
    assert row is not None
    assert (row["owed"], row["owed_reason"]) == (True, "unconfirmed: x")
    assert row["wake_at_ms"] < row["due_at_ms"]
    await ground.store.settle([(saga_id, 7)])
    row = await ground.row(saga_id)
    assert row is not None
    assert row["owed"]
    await ground.store.settle([(saga_id, 1)])
    row = await ground.row(saga_id)
    assert row is not None
    assert (row["owed"], row["owed_reason"], row["wake_at_ms"]) == (False, None, row["due_at_ms"])


async def test_owing_waits_for_a_batch_that_has_the_row(ground: Ground) -> None:
    state = saga(1)
    (saga_id,) = await ground.make(state)
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        owing = asyncio.create_task(ground.store.owe([(saga_id, 1, "unconfirmed: x")], wake_in_ms=1_000))
        await batch.write([ChangedRow(saga_id, moved(state, now_ms() + LATER_MS), None, looked=False)], [])
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert not owing.done()
    await owing
    row = await ground.row(saga_id)
    assert row is not None
    assert not row["owed"], "it moved meanwhile: that says that the command was sent"


async def test_a_row_that_stays_locked_is_an_error_that_passes(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        await ground.store.settle([(saga_id, 1)])  # it owes nothing: there is nothing to wait for
        with pytest.raises(Exception, match="lock timeout") as error:
            await ground.store.owe([(saga_id, 1, "x")], wake_in_ms=1)
    assert trouble_of(error.value) is Trouble.CONTENDED


async def test_due_gives_the_oldest_first_and_passes_over_what_is_locked(ground: Ground) -> None:
    made = await ground.make(*(saga(n, due_at_ms=n) for n in (3, 1, 2)), saga(4))
    assert len(made) == 4
    one, two, three = (uuid.UUID(int=n) for n in (1, 2, 3))
    async with ground.store.batch() as first, ground.store.batch() as second:
        assert await first.due(2) == [one, two]
        assert await second.due(10) == [three]
    async with ground.store.batch() as third:
        assert await third.due(10) == [one, two, three]


async def test_a_newer_machines_sagas_are_not_due_for_us_and_not_read(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1, due_at_ms=1))
    await ground.change(saga_id, machine_version=99, state='{"steps": "as nobody writes them yet"}')
    async with ground.store.batch() as batch:
        assert await batch.due(10) == []
        assert await batch.lock([saga_id]) == {}
        assert (set(batch.newer), batch.broken) == ({saga_id}, {})


async def test_a_look_for_nothing_moves_wake_to_the_true_deadline(ground: Ground) -> None:
    state = saga(1)
    (saga_id,) = await ground.make(state)
    await ground.change(saga_id, wake_at_ms=1)
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        await batch.looked([saga_id])
    row = await ground.row(saga_id)
    assert row is not None
    assert row["wake_at_ms"] == state.due_at_ms
    await ground.store.owe([(saga_id, 1, "x")], wake_in_ms=-1_000)
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        await batch.looked([saga_id])
    row = await ground.row(saga_id)
    assert row is not None
    assert now_ms() < row["wake_at_ms"] <= now_ms() + OWED_LOOK_MS + 1_000, "it still owes: not at its deadline"


async def test_backing_off_leaves_alone_what_nobody_looks_at(ground: Ground) -> None:
    due, ended = await ground.make(saga(1, due_at_ms=1), saga(2))
    await update(ground, moved(saga(2), None, status=Status.COMPLETED))
    async with ground.store.batch() as batch:
        await batch.back_off([due, ended], at_least_ms=60_000, at_most_ms=60_000)
    row, other = await ground.row(due), await ground.row(ended)
    assert row is not None
    assert other is not None
    assert row["wake_at_ms"] > now_ms() + 30_000
    assert other["wake_at_ms"] is None
