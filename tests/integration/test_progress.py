"""Who awaits a saga is told its end alone; who streams it, every step, though it is the same saga."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import sqlalchemy as sa

from watership import Saga, SagaMap, Wait, bootstrap
from watership_worker import Worker

from tests.support.flow_steps import A, Approval, B, C, Gate, Order
from tests.support.running import Running

pytestmark = [pytest.mark.usefixtures("fresh_flow_steps"), pytest.mark.servers, pytest.mark.timeout(90)]
WITHIN_S = 30.0


class WatchedSaga(Saga[Order]):
    steps = [A, B, Wait("approval", into="approval", timeout_s=3_600, reject_if=("approved", False)), C]


@pytest.fixture
def step_queues() -> set[str]:
    return {"A", "B", "C"}


async def test_a_stream_of_a_saga_that_is_awaited_tells_each_step(system: Running) -> None:
    mapper = SagaMap()
    mapper.bind(Order, WatchedSaga)
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=mapper))
    saga_id = uuid.uuid4()
    broker_url = system.settings.broker()
    async with bootstrap(sagas_mapper=mapper, broker_url=broker_url, namespace=system.settings.namespace) as mediator:
        gate = Gate("act A")
        awaited = asyncio.create_task(mediator.run(Order(), saga_id))
        told: list[str] = []
        async with asyncio.timeout(WITHIN_S):
            await gate.entered.wait()
            gate.go.set()
            async for result in mediator.stream(Order(), saga_id):
                told.append(result.step_type.__name__)
                if told == ["A", "B"]:
                    await mediator.signal(saga_id, "approval", Approval("ann"))
            assert (await awaited).completed
    assert told == ["A", "B", "C"]
    async with system.database.connect() as connection:
        progress = (await connection.execute(sa.text("SELECT progress FROM watership_saga"))).scalars().all()
    assert progress == [False], "the first start says what its sender is told"
