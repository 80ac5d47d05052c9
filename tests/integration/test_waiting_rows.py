"""Rows that wait to be judged, on real Postgres: held by one transaction at a time, and gone with it or not at all."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from watership.machine import events as e
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import SagaState
from watership_orchestrator import statements
from watership_orchestrator.arrivals import Shelf, Waiting
from watership_orchestrator.database import open_database
from watership_orchestrator.records import DeadLetter, NewRow, WaitingSignal
from watership_orchestrator.store import Store
from watership_orchestrator.waiting import BACK_OFF_MIN_MS

pytestmark = pytest.mark.servers

PLAN = Plan("Order", (StepPlan("A", "q"),))
DEAD = DeadLetter("q", "delivery_limit", "step-reply", "m", None, None, "{}", b"{}", judge=True)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    engine = open_database(database_url)
    yield Store(engine, "one")
    await engine.dispose()


async def make_saga(store: Store, saga_id: uuid.UUID) -> None:
    state = react(PLAN, SagaState(str(saga_id)), e.SagaStarted("Order", {}, PLAN.hash), 1).state
    async with store.batch() as batch:
        await batch.lock([saga_id])
        assert await batch.insert([NewRow(saga_id, state, "x", None, None)]) == {saga_id}


def signal(saga_id: uuid.UUID, signal_id: str = "s1") -> WaitingSignal:
    return WaitingSignal(saga_id, signal_id, "approval", '{"approved":true}')


async def execute(store: Store, statement: str) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(sa.text(statement))


async def test_a_signal_that_comes_early_is_kept_once_and_found_when_its_saga_exists(store: Store) -> None:
    saga_id, never = uuid.uuid4(), uuid.uuid4()
    for _ in range(2):
        async with store.batch() as batch:
            await batch.keep_signals([signal(saga_id, "s1"), signal(saga_id, "s2"), signal(never)])
    assert await store.signals(10) == []
    await make_saga(Store(store.engine, "two"), never)
    assert await store.signals(10) == [], "another namespace's saga is not the one that was meant"
    await make_saga(store, saga_id)
    found = await store.signals(10)
    assert {(one.saga_id, one.signal_id, one.name, one.data) for one in found} == {
        (saga_id, name, "approval", '{"approved":true}') for name in ("s1", "s2")
    }
    assert len(await store.signals(1)) == 1
    with pytest.raises(RuntimeError):
        async with store.batch() as batch:
            assert await batch.hold([one.row for one in found]) == {one.row for one in found}
            await batch.done({one.row: "" for one in found})
            raise RuntimeError
    assert len(await store.signals(10)) == 2, "what was not committed did not happen"
    async with store.batch() as batch:
        await batch.hold([found[0].row])
        await batch.done({found[0].row: ""})
    (left,) = await store.signals(10)
    await store.put_off_rows([left.row])
    assert await store.signals(10) == []


async def test_a_row_is_held_by_one_at_a_time(store: Store) -> None:
    saga_id = uuid.uuid4()
    await make_saga(store, saga_id)
    await store.keep_dead_letters([DEAD])
    async with store.batch() as batch:
        await batch.keep_signals([signal(saga_id)])
    (letter,) = await store.dead_letters(10)
    rows = [signal(saga_id).row, Waiting(Shelf.DEAD, letter.id), Waiting(Shelf.START, 4711)]
    async with store.batch() as mine:
        assert await mine.hold(rows) == set(rows[:2])
        async with store.batch() as other:
            assert await asyncio.wait_for(other.hold(rows), 5) == set()
        await mine.done({rows[0]: "", rows[1]: "applied"})
    async with store.batch() as late:
        assert await late.hold(rows) == set(), "it was judged in the meantime"
    assert await store.dead_letters(10) == []
    assert await store.dead_letter(letter.id) is None


async def test_what_fails_is_looked_at_later_and_later(store: Store) -> None:
    await store.keep_dead_letters([DEAD])
    (letter,) = await store.dead_letters(10)
    waits = []
    for age_ms in (0, 60_000, 10**9):
        await execute(
            store, f"UPDATE watership_dead_letter SET at_ms = (SELECT max(at_ms) FROM watership_dead_letter) - {age_ms}"
        )
        async with store.batch() as batch:
            await batch.back_off_rows([Waiting(Shelf.DEAD, letter.id)])
        async with store.engine.connect() as connection:
            query = (
                "SELECT judge_at_ms - (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM watership_dead_letter"
            )
            waits.append((await connection.execute(sa.text(query.replace("::", r"\:\:")))).scalar_one())
    assert waits[0] <= BACK_OFF_MIN_MS < waits[1] < waits[2] <= 3_600_000


SEED = """
INSERT INTO watership_saga (saga_id, namespace, driver, name, status, seq, context, state, input_hash, machine_version,
    due_at_ms, wake_at_ms, created_at_ms, updated_at_ms)
SELECT gen_random_uuid(), 'one', 'orchestrator', 'Order', 'RUNNING', 1, '{}', '{}', 'x', 1, 9e15, 9e15, 1, 1
FROM generate_series(1, 5000)
"""


async def test_a_look_reads_what_is_due_and_not_all_that_runs(store: Store) -> None:
    await execute(store, SEED)
    await execute(store, "ANALYZE watership_saga")
    async with store.engine.connect() as connection:
        values = {"namespace": "one", "limit": 200, "version": 1}
        rows = (await connection.execute(sa.text(f"EXPLAIN {statements.DUE.text}"), values)).scalars().all()
    plan = "\n".join(rows)
    assert "watership_saga_wake" in plan, plan
    (condition,) = [line for line in rows if "Index Cond" in line]
    assert "wake_at_ms <=" in condition, plan


async def test_what_was_only_locked_is_looked_at_again_in_a_moment_however_old_it_is(store: Store) -> None:
    await store.keep_dead_letters([DEAD])
    (letter,) = await store.dead_letters(10)
    await execute(store, "UPDATE watership_dead_letter SET at_ms = at_ms - 1000000000")
    await store.put_off_rows([Waiting(Shelf.DEAD, letter.id)])
    async with store.engine.connect() as connection:
        put_off_ms = (
            await connection.execute(
                sa.text(
                    "SELECT judge_at_ms - CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) "
                    "FROM watership_dead_letter"
                )
            )
        ).scalar_one()
    assert 0 < put_off_ms <= BACK_OFF_MIN_MS
