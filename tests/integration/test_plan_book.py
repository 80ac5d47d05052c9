"""Which plan a start gets that names none: read from real tables."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.messages import RegisterWorker
from watership_orchestrator.database import open_database
from watership_orchestrator.plans import PlanBook

pytestmark = pytest.mark.servers


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_database(database_url)
    yield engine
    await engine.dispose()


def order_plan(*steps: str) -> Plan:
    return Plan("Order", tuple(StepPlan(name, name) for name in steps))


async def execute(database: AsyncEngine, statement: str, **values: object) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.text(statement), values)


async def newest(database: AsyncEngine, namespace: str = "one") -> str | None:
    """As an orchestrator sees it that has just started."""
    plans = await PlanBook(database, namespace).get((), ["Order"])
    plan = plans.newest.get("Order")
    return plan.hash if plan is not None else None


async def test_a_foreign_start_gets_the_plan_that_was_chosen_else_the_newest(database: AsyncEngine) -> None:
    first, second = order_plan("A"), order_plan("A", "B")
    for plan in (first, second):
        await PlanBook(database, "one").register(RegisterWorker(worker="w", plans=(plan.to_data(),)))
        await execute(database, "UPDATE watership_plan SET registered_at_ms = registered_at_ms - 1000")
    await PlanBook(database, "two").register(RegisterWorker(worker="w", plans=(first.to_data(),)))
    assert await newest(database) == second.hash
    choose = (
        "INSERT INTO watership_plan_choice (namespace, saga, plan_hash, chosen_at_ms, actor, reason) "
        "VALUES (:namespace, 'Order', :plan_hash, 1, 'ada', 'why')"
    )
    await execute(database, choose, namespace="two", plan_hash=second.hash)
    assert await newest(database) == second.hash
    await execute(database, choose, namespace="one", plan_hash=first.hash)
    assert await newest(database) == first.hash
    assert await newest(database, "two") == first.hash, "a chosen plan that nobody registered is none"
    await execute(database, choose, namespace="one", plan_hash=second.hash)
    assert await newest(database) == second.hash, "the newest choice stands"
    await execute(database, choose, namespace="one", plan_hash=first.hash)
    await execute(database, choose, namespace="one", plan_hash=None)
    assert await newest(database) == second.hash, "a choice that was taken back is none"


async def test_a_plan_that_a_newer_version_wrote_is_no_plan_here(database: AsyncEngine) -> None:
    """It must not take the batch down with it: what is started on it waits, and a newer version's reaper takes it up."""
    plan = order_plan("A")
    await PlanBook(database, "one").register(RegisterWorker(worker="w", plans=(plan.to_data(),)))
    await execute(database, 'UPDATE watership_plan SET plan = replace(plan, \'"kind":"step"\', \'"kind":"dance"\')')
    plans = await PlanBook(database, "one").get([plan.hash], ["Order"])
    assert plan.hash not in plans.by_hash
    assert "Order" not in plans.newest
