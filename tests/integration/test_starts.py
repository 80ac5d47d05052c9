"""Sagas that are started in a transaction of the caller's: the distributed system, on real servers."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from watership import ConfigurationError, LimitExceeded, SagaMediator, bootstrap
from watership.machine.changes import change_from_data
from watership.saga.compile import compile_saga
from watership_worker import Worker

from tests.support.order_steps import OrderContext, OrderSaga, Reserve, sagas
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(90)]

PLAN = compile_saga(OrderSaga).plan
NOWHERE = "amqp://guest:guest@127.0.0.1:1/"


def mediator(system: Running) -> SagaMediator:
    """Its broker cannot be reached: a start in a transaction needs none."""
    return bootstrap(sagas_mapper=sagas, broker_url=NOWHERE, namespace=system.settings.namespace)


async def rows(system: Running) -> list[Any]:
    return await system.sql("SELECT saga_id, look_at_ms FROM watership_start ORDER BY start_id")


async def insert(system: Running, **given: Any) -> uuid.UUID:
    """A start as a client of another language writes it."""
    saga_id = given.pop("saga_id", None) or uuid.uuid4()
    values = {
        "namespace": system.settings.namespace,
        "driver": "orchestrator",
        "saga_id": saga_id,
        "saga": "OrderSaga",
        "plan_hash": None,
        "plan": None,
        "context": '{"order_id": "1"}',
        "at_ms": 1,
        **given,
    }
    columns = ", ".join(values)
    await system.sql(
        f"INSERT INTO watership_start ({columns}) VALUES ({', '.join(f':{name}' for name in values)})", **values
    )
    return saga_id


async def test_a_saga_starts_if_its_caller_commits_and_never_if_it_rolls_back(system: Running) -> None:
    front, engine = mediator(system), system.database
    await system.sql("CREATE TABLE shop_order (id text PRIMARY KEY)")
    async with AsyncSession(engine) as session:
        await session.execute(text("INSERT INTO shop_order VALUES ('kept')"))
        kept = await front.start(OrderContext("kept"), session=session)
        await session.commit()
    async with engine.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(text("INSERT INTO shop_order VALUES ('lost')"))
        lost = await front.start(OrderContext("lost"), uuid.uuid4(), session=connection)
        await transaction.rollback()
    assert [row.saga_id for row in await rows(system)] == [kept]
    reaper = await system.reaper()
    await reaper.run_once()  # nobody has ever registered this saga: the row has its plan
    row = await system.until(kept, status="RUNNING", plan_hash=PLAN.hash)
    assert row["owed"], "no queue takes its first command yet, and no message would bring it again"
    assert await rows(system) == []
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    await system.sql("UPDATE watership_saga SET wake_at_ms = 1")
    await reaper.run_once()
    await system.until(kept, status="COMPLETED", owed=False)
    assert await system.row(lost) is None
    assert (await system.sql("SELECT count(*) FROM shop_order"))[0][0] == 1


async def test_with_workers_there_it_runs_at_once_and_owes_nothing(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    async with AsyncSession(system.database) as session, session.begin():
        saga_id = await mediator(system).start(OrderContext("1"), session=session)
    await (await system.reaper()).run_once()
    row = await system.until(saga_id, status="COMPLETED")
    assert (row["owed"], row["wake_at_ms"]) == (False, None)
    changes = await system.sql("SELECT changes FROM watership_log WHERE saga_id = :id", id=saga_id)
    kinds = [change_from_data(data).kind for entry in changes for data in json.loads(entry[0])]
    assert "resent" not in kinds


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"context": '{"order_id": 7}'}, "does not fit its schema"),
        ({"context": "{nonsense"}, "is not JSON"),
        ({"context": "[1]"}, "must be a JSON object"),
        ({"context": '{"order_id": "a\\u0000b"}'}, "NUL"),
        ({"context": '{"order_id": "' + "x" * 300_000 + '"}'}, "the limit is 262144"),
        ({"plan": "{}", "plan_hash": "0" * 32}, "the plan that the start of saga OrderSaga came with cannot be used"),
        ({"plan": json.dumps(PLAN.to_data()), "plan_hash": "0" * 32}, f"it is the plan {PLAN.hash}"),
    ],
    ids=["schema", "malformed", "list", "nul", "size", "plan", "hash"],
)
async def test_a_start_that_cannot_be_used_is_parked_with_the_reason(
    system: Running, given: dict[str, Any], reason: str
) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    known = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(known, status="COMPLETED")
    bad, good = await insert(system, **given), await insert(system)
    await (await system.reaper()).run_once()
    await system.until(good, status="COMPLETED")
    row = await system.until(bad, status="PENDING", wake_at_ms=None)
    assert reason in row["parked_reason"]
    assert await rows(system) == []


async def test_an_id_that_is_taken_is_told_in_the_ledger(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    row = await system.until(saga_id, status="COMPLETED")
    await insert(system, saga_id=saga_id)
    await insert(system, saga_id=saga_id, context='{"order_id": "2"}')
    both = uuid.uuid4()
    for order in ("3", "4"):
        await insert(system, saga_id=both, context=json.dumps({"order_id": order}))
    await (await system.reaper()).run_once()
    await system.until(both, status="COMPLETED")
    lines = await system.sql("SELECT saga_id, reason FROM watership_ledger ORDER BY ledger_id")
    assert {line.saga_id for line in lines} == {saga_id, both}
    assert all("was started under it with other input" in line.reason for line in lines)
    assert (await system.row(saga_id) or {})["seq"] == row["seq"]
    assert await rows(system) == []


async def test_many_reapers_take_each_start_once(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    ids = [await insert(system, plan=json.dumps(PLAN.to_data()), plan_hash=PLAN.hash) for _ in range(60)]
    ids += ids[:10]
    for saga_id in ids[:10]:
        await insert(system, saga_id=saga_id)
    reapers = [await system.reaper() for _ in range(3)]
    await asyncio.gather(*(reaper.run_once() for reaper in reapers))
    await system.sql("UPDATE watership_start SET look_at_ms = 0")
    await reapers[0].run_once()
    for saga_id in set(ids):
        await system.until(saga_id, status="COMPLETED")
    starts = await system.sql("SELECT saga_id FROM watership_log WHERE seq = 1 AND cause = 'start'")
    assert len(starts) == 60
    assert await rows(system) == []


async def test_a_start_that_cannot_be_judged_is_backed_off_and_starves_no_other(system: Running) -> None:
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    broken = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(broken, step="Charge")
    await system.sql("UPDATE watership_saga SET state = '{}' WHERE saga_id = :id", id=broken)
    await insert(system, saga_id=broken)
    good = await insert(system)
    await (await system.reaper()).run_once()
    await system.until(good, step="Charge")
    (row,) = await rows(system)
    assert (row.saga_id, row.look_at_ms > 10**12) == (broken, True)


async def test_it_is_refused_where_it_could_not_be_taken_up(system: Running, sqlite_url: str) -> None:
    front, sqlite_engine = mediator(system), create_async_engine(sqlite_url)
    async with sqlite_engine.connect() as connection:
        with pytest.raises(ConfigurationError, match="needs postgresql here, and this session speaks sqlite"):
            await front.start(OrderContext("1"), session=connection)
    await sqlite_engine.dispose()
    with pytest.raises(ConfigurationError, match="must be an AsyncSession or an AsyncConnection"):
        await front.start(OrderContext("1"), session="a session")  # type: ignore[arg-type]
    async with system.database.connect() as connection:
        with pytest.raises(LimitExceeded):
            await front.start(OrderContext("x" * 300_000), session=connection)
        assert isinstance(connection, AsyncConnection)
    await system.sql("DROP TABLE watership_start")
    async with system.database.connect() as connection:
        with pytest.raises(ConfigurationError, match="watership db upgrade"):
            await front.start(OrderContext("1"), session=connection)
