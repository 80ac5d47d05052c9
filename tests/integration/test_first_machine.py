"""Sagas that version 0.1 left are finished by this one: in one process on SQLite and Postgres, and by the services."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from watership import bootstrap
from watership.errors import ConfigurationError
from watership.machine.apply import fold
from watership.machine.state import MACHINE_VERSION
from watership.messages import AdminRequest, AdminVerb
from watership.saga.recovery import recover_saga
from watership.saga.storage import migrations
from watership.saga.storage.rows import changes_from_json, state_from_row
from watership.saga.storage.schema import log_table, saga_table
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from watership_worker import Worker

from tests.support.first_machine import Line, Order, Written, sagas, written
from tests.support.running import Running

pytestmark = pytest.mark.timeout(120)

ENDED = sa.text("SELECT count(*) FROM watership_saga WHERE status IN ('COMPLETED', 'COMPENSATED') AND NOT owed")


async def write(url: str, given: list[Written], *, namespace: str, driver: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for saga in given:
            await saga.insert(connection, namespace=namespace, driver=driver)
    await engine.dispose()


async def check(url: str, given: list[Written]) -> None:
    """Each ended as it had to, what its log said is as it was, and the whole of it folds to its row."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        for saga in given:
            saga_id = uuid.UUID(saga.saga_id)
            rows = await connection.execute(sa.select(saga_table).where(saga_table.c.saga_id == saga_id))
            row = rows.mappings().one()
            query = sa.select(log_table).where(log_table.c.saga_id == saga_id).order_by(log_table.c.seq)
            log = (await connection.execute(query)).mappings().all()
            assert row["status"] == saga.end, saga.title
            assert [entry["changes"] for entry in log[: len(saga.log)]] == [entry["changes"] for entry in saga.log]
            folded = fold(saga.saga_id, [changes_from_json(entry["changes"]) for entry in log])
            assert folded == state_from_row(dict(row)), saga.title
            moved = len(log) > len(saga.log)
            assert row["machine_version"] == (MACHINE_VERSION if moved else 1), saga.title
            assert moved == (saga.row["due_at_ms"] is not None or saga.row["parked_reason"] is not None), saga.title
    await engine.dispose()


@pytest.fixture(params=["sqlite_url", pytest.param("database_url", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


async def test_in_one_process(url: str) -> None:
    given = [saga for saga in written() if saga.row["plan_hash"] is not None]  # embedded, a plan is always known
    await migrations.upgrade(url)
    await write(url, given, namespace="watership", driver="embedded")
    parked = [saga for saga in given if saga.row["parked_reason"] is not None]
    assert len(parked) == 1
    async with bootstrap(sagas_mapper=sagas, database_url=url, recover_every_s=0.2) as mediator:
        results = [await mediator.result(uuid.UUID(saga.saga_id)) for saga in given if saga not in parked]
        assert [str(result.status) for result in results] == [saga.end for saga in given if saga not in parked]
    storage = SqlAlchemySagaStorage(url)
    with pytest.raises(RuntimeError):  # it was being undone, and that is finished
        await recover_saga(
            saga=Line(),
            saga_id=uuid.UUID(parked[0].saga_id),
            context_builder=lambda data: Order(**data),
            container=None,
            storage=storage,
        )
    await storage.close()
    await check(url, given)


async def test_what_a_newer_machine_wrote_is_refused_with_a_sentence_in_one_process(url: str) -> None:
    await migrations.upgrade(url)
    saga = written()[0]
    await write(url, [saga], namespace="watership", driver="embedded")
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(sa.update(saga_table).values(machine_version=MACHINE_VERSION + 1))
    await engine.dispose()
    storage = SqlAlchemySagaStorage(url)
    assert await storage.due(names=["Line"], limit=10) == [], "recovery passes it over"
    with pytest.raises(ConfigurationError, match=r"newer Watership .* upgrade this process"):
        await storage.acquire(uuid.UUID(saga.saga_id), lease_ms=1_000)
    await storage.close()


@pytest.mark.servers
async def test_by_the_services(system: Running, step_queues: set[str]) -> None:
    step_queues.update("ABCPF")
    given = written()
    url, namespace = system.settings.database(), system.settings.namespace
    await write(url, given, namespace=namespace, driver="orchestrator")
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    reaper = await system.reaper()
    (parked,) = [uuid.UUID(saga.saga_id) for saga in given if saga.row["parked_reason"] is not None]
    await system.send("admin", AdminRequest(verb=AdminVerb.RETRY, saga_id=parked, actor="ann", reason="mended"))
    async with asyncio.timeout(60):
        while True:
            await reaper.run_once()
            async with system.database.connect() as connection:
                if (await connection.execute(ENDED)).scalar_one() == len(given):
                    break
            await asyncio.sleep(0.05)
    await check(url, given)
