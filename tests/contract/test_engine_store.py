"""What the orchestrator's database does: the same tests on Postgres and on its twin in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from watership import codec
from watership.machine.changes import Created, Dispatched, Parked
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action, Phase, SagaState, Status
from watership.messages import AdminRequest, AdminVerb, HandlerOnWire, RegisterWorker
from watership.saga.storage.protocol import LogEntry
from watership.saga.storage.trouble import Trouble, trouble_of
from watership.testing.memory_database import LedgerRow, MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.ports import Backing
from watership_orchestrator.store import OWED_LOOK_MS, ChangedRow, LedgerLine, NewRow

PLAN = Plan("Order", (StepPlan("A", "a"), StepPlan("B", "b")), {"type": "object", "required": ["n"]})
SOON_MS, LATER_MS = 20_000, 90_000


@dataclasses.dataclass
class Ground:
    """One database under test: services on it, and a look at what it holds."""

    new_backing: Callable[[str], Backing]
    row: Callable[[uuid.UUID], Coroutine[Any, Any, dict[str, Any] | None]]
    ledger: Callable[[], Coroutine[Any, Any, list[tuple[uuid.UUID, str, str]]]]
    change: Callable[..., Coroutine[Any, Any, None]]

    def __post_init__(self) -> None:
        self.backing = self.new_backing("test")
        self.store = self.backing.store

    async def make(self, *states: SagaState) -> list[uuid.UUID]:
        """Makes sagas with their first log entries."""
        async with self.store.batch() as batch:
            await batch.lock([])
            made = await batch.insert([new_row(state) for state in states])
            await batch.log([(uuid.UUID(state.saga_id), entry(state, batch.now_ms)) for state in states])
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

    yield Ground(lambda namespace: PostgresBacking(database, namespace), row, ledger, change)
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

    return Ground(lambda namespace: MemoryBacking(database, namespace), row, ledger, change)


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
        await batch.update([ChangedRow(saga_id, state, owed_reason, looked)])
    row = await ground.row(saga_id)
    assert row is not None
    return row


# --- rows, locks, transactions


async def test_what_was_made_is_locked_and_read(ground: Ground) -> None:
    state = saga()
    (saga_id,) = await ground.make(state)
    async with ground.store.batch() as batch:
        stored = (await batch.lock([saga_id, uuid.UUID(int=99)]))[saga_id]
        assert abs(batch.now_ms - now_ms()) < 60_000
    assert stored.state == state
    assert (stored.input_hash, stored.reply_to, stored.owed, stored.owed_reason) == ("hash", "me", False, None)
    row = await ground.row(saga_id)
    assert row is not None
    assert row["wake_at_ms"] == row["due_at_ms"] == state.due_at_ms
    assert row["step"] == "A"


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
            await batch.update([ChangedRow(saga_id, changed, None, looked=False)])
            await batch.insert([new_row(saga(2))])
            await batch.log([(saga_id, entry(changed, batch.now_ms))])
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
        await batch.update([ChangedRow(saga_id, moved(state, now_ms() + LATER_MS), None, looked=False)])
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


# --- log and ledger


async def test_the_log_is_read_as_it_was_written(ground: Ground) -> None:
    state = saga(1)
    (saga_id,) = await ground.make(state)
    parked = LogEntry(2, 5, "time", (Parked("why"),))
    async with ground.store.batch() as batch:
        await batch.lock([saga_id])
        await batch.log([(saga_id, parked)])
        seen = await batch.history([saga_id, uuid.UUID(int=9)])
    assert [each.seq for each in seen[saga_id]] == [1, 2], "its own writes too"
    assert seen[saga_id][0].changes == entry(state, 0).changes
    assert seen[saga_id][1] == parked
    assert seen[uuid.UUID(int=9)] == []


async def test_a_log_has_each_number_once(ground: Ground) -> None:
    (saga_id,) = await ground.make(saga(1))
    with pytest.raises(IntegrityError):
        async with ground.store.batch() as batch:
            await batch.log([(saga_id, LogEntry(1, 5, "again", (Parked("why"),)))])


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
    await asyncio.sleep(0.002)  # first registered last: by the millisecond
    assert await ground.backing.plans.register(announcement("w2", newer)) == []
    assert await ground.backing.plans.register(announcement("w1", PLAN)) == []
    found = await ground.new_backing("test").plans.get([PLAN.hash, "unknown"], ["Order", "Unknown"])
    assert found.by_hash[PLAN.hash] == PLAN
    assert "unknown" not in found.by_hash
    assert found.newest == {"Order": newer}, "an old worker that restarts does not take over"
    assert found.trouble_with(PLAN, {"n": 1}) is None
    assert "n" in str(found.trouble_with(PLAN, {}))


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
