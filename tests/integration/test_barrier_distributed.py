"""A worker with ``barrier=AsyncSession`` on real servers: what comes twice, late or not at all."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership.machine.state import Action, idempotency_key
from watership.messages import StepCommand
from watership_worker import Worker

from tests.support.barred_saga import container_on, sagas
from tests.support.barred_step import Bench, create_tables
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]


@pytest.fixture
async def engine(system: Running) -> AsyncIterator[AsyncEngine]:
    """The participant's database: here the orchestrator's own, with tables of the participant's."""
    assert system.settings.database_url is not None
    engine = create_async_engine(system.settings.database_url)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
async def worker(engine: AsyncEngine) -> AsyncIterator[Worker]:
    async with container_on(engine) as container:
        yield Worker(container, sagas, barrier=AsyncSession)


def command(saga_id: uuid.UUID, action: Action, **fields: Any) -> StepCommand:
    return StepCommand(
        saga="OrderSaga",
        saga_id=saga_id,
        step="Reserve",
        action=action,
        attempt=fields.pop("attempt", 1),
        generation=1,
        idempotency_key=idempotency_key(saga_id, "Reserve", action, 1),
        timeout_ms=5_000,
        context=fields.pop("context", {"order_id": "o-1"}),
        **fields,
    )


async def ledger(system: Running, saga_id: uuid.UUID, entries: int) -> list[dict[str, Any]]:
    """The replies in the ledger, once there are so many: the queue of replies is the only signal that they came."""
    query = "SELECT reason, message FROM watership_ledger WHERE saga_id = :id ORDER BY ledger_id"
    async with asyncio.timeout(20):
        while len(rows := await system.sql(query, id=saga_id)) < entries:
            await asyncio.sleep(0.02)
    return [{"reason": reason, **json.loads(message)} for reason, message in rows]


async def test_a_duplicate_of_a_command_has_no_effect_and_is_answered(
    system: Running, engine: AsyncEngine, worker: Worker
) -> None:
    await system.orchestrator()
    await system.worker(worker)
    saga_id = await system.start("OrderSaga", {"order_id": "o-1"})
    row = await system.until(saga_id, status="COMPLETED")
    assert json.loads(row["context"])["reservation"] == "saga"
    for _ in range(3):
        await system.send("step.Reserve", command(saga_id, Action.ACT))
    replies = await ledger(system, saga_id, 3)
    stored = {"reservation": "saga"}
    assert [(reply["outcome"], reply["patch"], reply["response"]) for reply in replies] == [
        ("done", stored, stored)
    ] * 3
    assert await Bench(engine, saga_id).actions() == ["act"]
    assert (await system.row(saga_id) or {})["status"] == "COMPLETED"


async def test_an_undone_saga_stays_undone(system: Running, engine: AsyncEngine, worker: Worker) -> None:
    await system.orchestrator()
    await system.worker(worker)
    saga_id = await system.start("OrderSaga", {"order_id": "declined"})
    await system.until(saga_id, status="COMPENSATED")
    await system.send("step.Reserve", command(saga_id, Action.ACT))
    await system.send("step.Reserve", command(saga_id, Action.COMPENSATE))
    replies = {reply["action"]: reply for reply in await ledger(system, saga_id, 2)}
    assert (replies["act"]["outcome"], replies["act"]["certain"]) == ("failed", True)
    assert replies["act"]["error"]["code"] == "act_refused"
    assert replies["compensate"]["outcome"] == "done"
    assert await Bench(engine, saga_id).effects() == [("act", "saga", None), ("compensate", "saga", "saga")]
    assert (await system.row(saga_id) or {})["status"] == "COMPENSATED"
