"""What a batch costs the database: so many statements whatever its size, each by the key, and updates on the heap alone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.topology import Topology
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.messages import AdminRequest, AdminVerb, RegisterWorker, ReplyOutcome, StartSaga, StepReply
from watership.saga.storage.plan_records import DRIVERS, known_sagas
from watership_orchestrator.admin import Admin
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.engine import Engine

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]

STEPS = ("A", "B", "C")
PLAN = Plan("Order", tuple(StepPlan(name, name.lower()) for name in STEPS))


class Watched:
    """An engine on Postgres whose statements are written down; BEGIN and COMMIT are not among them."""

    def __init__(self, database: AsyncEngine) -> None:
        self.database = database
        self.backing = PostgresBacking(database, "test")
        self.bus = MemoryBus(MemoryBroker())
        self.engine = Engine(self.backing.store, self.bus, self.backing.plans, Topology("test"))
        self.seen: list[tuple[str, Any]] = []
        self.others: list[tuple[str, Any]] = []  # those that go through SQLAlchemy: not the engine's own
        sa.event.listen(
            database.sync_engine,
            "connect",
            lambda connection, _: connection.driver_connection.add_query_logger(self._write_down),
        )
        sa.event.listen(
            database.sync_engine,
            "before_cursor_execute",
            lambda _connection, _cursor, sql, values, _context, _many: self.others.append((sql, values)),
        )

    def is_another(self) -> None:
        """From here on it is another engine, which remembers no saga."""
        self.engine = Engine(self.backing.store, self.bus, self.backing.plans, Topology("test"))

    def _write_down(self, asked: asyncpg.connection.LoggedQuery) -> None:
        if "watership_" in asked.query:  # the driver has questions of its own, once for each connection
            self.seen.append((asked.query, tuple(asked.args)))

    async def statements(self, arrivals: Iterable[Arrival]) -> list[tuple[str, Any]]:
        """What one batch of these asks of the database."""
        self.seen.clear()
        result = await self.engine.process(list(arrivals))
        assert not (result.again or result.rejections or result.refusals)
        return [one for one in self.seen if "watership_handler" not in one[0]]  # which is asked every few seconds

    async def fill(self, seed: str | None) -> None:
        """With sagas that are there already, if any."""
        if seed is None:
            return
        async with self.database.begin() as connection:
            await connection.execute(sa.text(seed))
        async with self.database.connect() as connection:
            await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(sa.text("ANALYZE"))

    def about_sagas(self) -> list[tuple[str, Any]]:
        """Of those that went through SQLAlchemy."""
        return [(sql, values) for sql, values in self.others if "watership_saga" in sql]

    async def plan_of(self, asked: tuple[str, Any], number: int, mode: str) -> str:
        """How a statement is run on a connection of the services."""
        sql, values = asked
        async with self.database.begin() as connection:
            await connection.execute(sa.text(f"SET LOCAL plan_cache_mode = {mode}"))
            # With its arguments beside it, a statement is always planned for them: so the generic plan is of a prepared one.
            if mode == "force_custom_plan":
                rows = await connection.exec_driver_sql(f"EXPLAIN {sql}", values)
            else:
                await connection.exec_driver_sql(f"PREPARE asked_{number} AS {sql}")
                nothing = ", ".join(["NULL"] * len(values))
                rows = await connection.exec_driver_sql(f"EXPLAIN EXECUTE asked_{number}({nothing})")
            return "\n".join(rows.scalars().all())

    async def rows(self, sql: str, **values: Any) -> Sequence[Any]:
        async with self.database.connect() as connection:
            return (await connection.execute(sa.text(sql), values)).all()


@pytest.fixture
async def watched(database_url: str) -> AsyncIterator[Watched]:
    database = open_database(database_url)
    made = Watched(database)
    await made.bus.open()
    topology = Topology("test")
    step_queues = [topology.step_queue(name.lower()) for name in STEPS]
    await made.bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), *step_queues])
    await made.backing.plans.register(RegisterWorker(worker="w", plans=(PLAN.to_data(),)))
    await made.backing.plans.get({PLAN.hash}, {"Order"})  # it is read once
    yield made
    await made.bus.close()
    await database.dispose()


def start(saga_id: uuid.UUID) -> Arrival:
    return Arrival(saga_id, StartSaga(saga="Order", saga_id=saga_id, context={"n": 1}, plan=PLAN.hash))


def reply(saga_id: uuid.UUID, step: str, **fields: Any) -> Arrival:
    done = {"action": Action.ACT, "attempt": 1, "run": "r", "outcome": ReplyOutcome.DONE}
    return Arrival(saga_id, StepReply.model_validate({"saga_id": saga_id, "step": step, **done, **fields}))


@pytest.mark.parametrize("size", [1, 60])
async def test_a_batch_costs_the_same_statements_whatever_its_size(watched: Watched, size: int) -> None:
    some, others = [uuid.uuid4() for _ in range(size)], [uuid.uuid4() for _ in range(size)]
    lock_insert_write, insert_write, lock_write, advance = 3, 2, 2, 1
    assert len(await watched.statements(start(one) for one in some)) == lock_insert_write, "it must know the time"
    assert len(await watched.statements(reply(one, "A") for one in some)) == advance
    both = [*(reply(one, "B", patch={"n": 2}) for one in some), *(start(one) for one in others)]
    assert len(await watched.statements(both)) == advance + insert_write
    watched.is_another()
    assert len(await watched.statements(reply(one, "A") for one in others)) == lock_write, "it wrote none of them"
    logged = await watched.rows("SELECT count(*) FROM watership_log GROUP BY saga_id")
    assert sorted(row.count for row in logged) == [2] * size + [3] * size, "one row for each transition"


async def test_a_running_sagas_updates_are_heap_only(watched: Watched) -> None:
    sagas = [uuid.uuid4() for _ in range(40)]
    await watched.statements(start(one) for one in sagas)
    for step in STEPS[:2]:
        await watched.statements(reply(one, step) for one in sagas)
    await watched.database.dispose()  # a backend reports what it did when it ends
    query = "SELECT n_tup_hot_upd AS hot, n_tup_upd AS every FROM pg_stat_user_tables WHERE relname = 'watership_saga'"
    async with asyncio.timeout(10):
        while (counted := (await watched.rows(query))[0]).every < 80:
            await asyncio.sleep(0.05)
    # 80 of 80, unless a transaction that somebody holds open, in any database, keeps dead versions from being pruned.
    assert counted.hot / counted.every > 0.7


SEED = """
INSERT INTO watership_saga (saga_id, namespace, driver, name, status, seq, context, state, input_hash, machine_version,
    due_at_ms, wake_at_ms, created_at_ms, updated_at_ms)
SELECT gen_random_uuid(), 'test', 'orchestrator', 'Order', 'RUNNING', 1, '{}', '{}', 'x', 1, 9e15, 9e15, 1, 1
FROM generate_series(1, 20000)
"""


FINISHED = SEED.replace("RUNNING", "COMPLETED").replace("9e15, 9e15", "NULL, NULL")


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("seed", [None, SEED, FINISHED], ids=["empty", "running", "finished"])
async def test_what_a_batch_reads_and_writes_is_found_by_the_key(watched: Watched, seed: str | None, mode: str) -> None:
    """On empty tables too: a plan that is made there is kept, while the tables grow."""
    sagas = [uuid.uuid4() for _ in range(20)]
    await watched.fill(seed)
    asked = await watched.statements(start(one) for one in sagas)
    asked += await watched.statements(reply(one, "A") for one in sagas)
    watched.is_another()
    asked += await watched.statements(reply(one, "B") for one in sagas)
    for number, one in enumerate(asked):
        plan = await watched.plan_of(one, number, mode)
        assert "Seq Scan on watership_" not in plan, plan
        assert "watership_saga_newest" not in plan, plan
        assert "CTE Scan on same" not in plan or plan.count("hashed SubPlan") == 2, "each saga is compared with each"


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("seed", [None, FINISHED], ids=["new", "finished"])
async def test_who_waits_for_a_new_plan_is_found_beside_many_that_are_over(
    watched: Watched, seed: str | None, mode: str
) -> None:
    await watched.fill(seed)
    await watched.statements(start(uuid.uuid4()) for _ in range(20))  # and some, of which the planner has not heard
    watched.others.clear()
    newer = Plan("Order", tuple(reversed(PLAN.nodes)))
    assert await watched.backing.plans.register(RegisterWorker(worker="w", plans=(newer.to_data(),))) == []
    (asked,) = watched.about_sagas()
    plan = await watched.plan_of(asked, 1, mode)
    assert "watership_saga_wake" in plan, plan
    assert "Seq Scan on watership_saga" not in plan, plan
    assert "watership_saga_newest" not in plan, plan


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_what_an_operator_asks_for_is_found_beside_many_that_are_over(watched: Watched, mode: str) -> None:
    """Nobody looks for it among all that ever was: not for what is parked, nor for what is under way."""
    await watched.fill(FINISHED)
    admin = Admin(watched.database, "test")
    watched.others.clear()
    for wanted in ({"parked": True}, {"status": "running"}, {"status": "PENDING", "parked": True}):
        assert (await admin.read(AdminRequest(verb=AdminVerb.LIST, **wanted))).data == []
    async with watched.database.connect() as connection:
        await known_sagas(connection, "test", DRIVERS)
    asked = watched.about_sagas()
    assert len(asked) == 4
    for number, one in enumerate(asked):
        plan = await watched.plan_of(one, number, mode)
        assert "Seq Scan on watership_saga" not in plan, plan
        assert "watership_saga_newest" not in plan, plan


async def test_a_value_that_is_equal_and_of_another_kind_is_written(watched: Watched) -> None:
    """A context that did not change is not written again; but true equals 1, and is not the same JSON."""
    saga_id = uuid.uuid4()
    await watched.statements([start(saga_id)])
    await watched.statements([reply(saga_id, "A", patch={"n": True})])
    query = "SELECT context FROM watership_saga WHERE saga_id = :saga_id"
    assert (await watched.rows(query, saga_id=saga_id))[0].context == '{"n":true}'
    await watched.statements([reply(saga_id, "B")])
    assert (await watched.rows(query, saga_id=saga_id))[0].context == '{"n":true}'
