"""The orchestrator's database under test, on Postgres and in memory: what a suite needs to put sagas into it."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa

from watership.machine.changes import Created, Dispatched
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, SagaState, Status
from watership.saga.storage.protocol import LogEntry
from watership.testing.memory_database import LedgerRow, MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.ports import Backing
from watership_orchestrator.records import ChangedRow, NewRow

PLAN = Plan("Order", (StepPlan("A", "a"), StepPlan("B", "b")), {"type": "object", "required": ["n"]})
SOON_MS, LATER_MS, MINUTE_MS = 20_000, 90_000, 60_000


@dataclasses.dataclass
class Ground:
    """One database under test: services on it, and a look at what it holds. ``make_older``: a plan, by a minute."""

    new_backing: Callable[[str], Backing]
    row: Callable[[uuid.UUID], Coroutine[Any, Any, dict[str, Any] | None]]
    ledger: Callable[[], Coroutine[Any, Any, list[tuple[uuid.UUID, str, str]]]]
    change: Callable[..., Coroutine[Any, Any, None]]
    make_older: Callable[[Plan], Coroutine[Any, Any, None]]

    def __post_init__(self) -> None:
        self.backing = self.new_backing("test")
        self.store = self.backing.store

    async def make(self, *states: SagaState) -> list[uuid.UUID]:
        """Makes sagas with their first log entries."""
        async with self.store.batch() as batch:
            await batch.lock([])
            made = await batch.insert([new_row(state) for state in states])
            entries = [(uuid.UUID(state.saga_id), entry(state, batch.now_ms)) for state in states]
            await batch.write([], entries, made)
        return [uuid.UUID(state.saga_id) for state in states if uuid.UUID(state.saga_id) in made]


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.servers)])
def postgres_url(request: pytest.FixtureRequest) -> str | None:
    """None for memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def ground(postgres_url: str | None) -> AsyncIterator[Ground]:
    if postgres_url is None:
        yield memory_ground()
        return
    database = open_database(postgres_url)

    async def row(saga_id: uuid.UUID) -> dict[str, Any] | None:
        query = sa.text("SELECT * FROM watership_saga WHERE saga_id = :id")
        async with database.connect() as connection:
            found = (await connection.execute(query, {"id": saga_id})).mappings().one_or_none()
            return dict(found) if found is not None else None

    async def ledger() -> list[tuple[uuid.UUID, str, str]]:
        async with database.connect() as connection:
            rows = await connection.execute(sa.text("SELECT saga_id, reason, message FROM watership_ledger"))
            return [(each.saga_id, each.reason, each.message) for each in rows]

    async def change(saga_id: uuid.UUID, **values: Any) -> None:
        named = ", ".join(f"{name} = :{name}" for name in values)
        async with database.begin() as connection:
            await connection.execute(
                sa.text(f"UPDATE watership_saga SET {named} WHERE saga_id = :id"), {**values, "id": saga_id}
            )

    async def make_older(plan: Plan) -> None:
        older = "UPDATE watership_plan SET registered_at_ms = registered_at_ms - :ms WHERE plan_hash = :plan_hash"
        async with database.begin() as connection:
            await connection.execute(sa.text(older), {"ms": MINUTE_MS, "plan_hash": plan.hash})

    yield Ground(lambda namespace: PostgresBacking(database, namespace), row, ledger, change, make_older)
    await database.dispose()


def memory_ground() -> Ground:
    database = MemoryDatabase(lambda: time.time_ns() // 1_000_000)

    async def row(saga_id: uuid.UUID) -> dict[str, Any] | None:
        return database.sagas.get(saga_id)

    async def ledger() -> list[tuple[uuid.UUID, str, str]]:
        kept: list[LedgerRow] = database.ledger
        return [(each.saga_id, each.reason, each.message) for each in kept]

    async def change(saga_id: uuid.UUID, **values: Any) -> None:
        database.sagas[saga_id].update(values)
        database.versions[saga_id] = database.next_version()

    async def make_older(plan: Plan) -> None:
        record = database.plans["test", plan.hash]
        older_ms = record.registered_at_ms - MINUTE_MS
        database.plans["test", plan.hash] = dataclasses.replace(record, registered_at_ms=older_ms)

    return Ground(lambda namespace: MemoryBacking(database, namespace), row, ledger, change, make_older)


def saga(number: int = 1, *, due_at_ms: int | None = None, **fields: Any) -> SagaState:
    """A running saga that awaits A until ``due_at_ms`` (None: a minute and a half from now)."""
    state = SagaState(str(uuid.UUID(int=number)), "Order", Status.RUNNING, PLAN.hash, 1, {"n": number})
    act = state.step("A").act
    act.phase, act.attempt = Phase.AWAITED, 1
    act.due_at_ms = due_at_ms if due_at_ms is not None else now_ms() + LATER_MS
    return dataclasses.replace(state, **fields)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_row(state: SagaState) -> NewRow:
    return NewRow(uuid.UUID(state.saga_id), state, "hash", "me", None)


def entry(state: SagaState, at_ms: int) -> LogEntry:
    changes = (
        Created(state.name, state.context, state.plan_hash),
        Dispatched("A", Action.ACT, 1, state.steps["A"].act.due_at_ms or 0),
    )
    return LogEntry(state.seq, at_ms, "start", changes)


def moved(state: SagaState, due_at_ms: int | None, **fields: Any) -> SagaState:
    later = dataclasses.replace(state.copy(), seq=state.seq + 1, **fields)
    act = later.steps["A"].act
    act.due_at_ms = due_at_ms
    if due_at_ms is None:
        act.phase = Phase.SETTLED
    return later


async def update(
    ground: Ground, state: SagaState, *, owed_reason: str | None = None, looked: bool = False
) -> dict[str, Any]:
    saga_id = uuid.UUID(state.saga_id)
    async with ground.store.batch() as batch:
        assert saga_id in await batch.lock([saga_id])
        await batch.write([ChangedRow(saga_id, state, owed_reason, looked)], [])
    row = await ground.row(saga_id)
    assert row is not None
    return row
