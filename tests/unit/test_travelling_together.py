"""Which commands go to their queue together, and which alone: as the engine sends them."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from watership.bus.gathering import apart
from watership.bus.memory import MemoryBroker, MemoryBus
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.messages import StartSaga
from watership_orchestrator.arrivals import Arrival
from watership_orchestrator.engine import SPREAD, TOGETHER_MAX

from tests.support.memory_engine import TOPOLOGY, engine_on


async def sent(count: int, *, rerun: bool = True) -> list[int]:
    """How many commands each message to a step's queue carries, when so many sagas start in one batch."""
    plan = Plan("Order", (StepPlan("A", "a", rerun=rerun),))
    broker = MemoryBroker()
    engine = await engine_on(MemoryBus(broker), plan)
    starts = [StartSaga(saga="Order", saga_id=uuid.uuid4(), context={"n": 1}, plan=plan.hash) for _ in range(count)]
    result = await engine.process([Arrival(one.saga_id, one) for one in starts])
    assert not (result.again or result.redeliver or result.rejections)
    messages = broker.peek(TOPOLOGY.step_queue("a").name)
    told = Counter(
        uuid.UUID(part.body.decode().split('"saga_id":"')[1][:36]) for one in messages for part in apart(one)
    )
    assert told == Counter({one.saga_id: 1 for one in starts})
    return [len(apart(message)) for message in messages]


async def test_few_commands_go_alone() -> None:
    assert await sent(2 * SPREAD - 1) == [1] * (2 * SPREAD - 1)


@pytest.mark.parametrize("count", [2 * SPREAD, 60, 500])
async def test_many_go_together_and_still_in_messages_enough_for_several_workers(count: int) -> None:
    carried = await sent(count)
    assert SPREAD <= len(carried) <= count / 2
    assert max(carried) <= min(count // SPREAD, TOGETHER_MAX)


async def test_an_act_that_must_not_run_twice_goes_alone() -> None:
    assert await sent(60, rerun=False) == [1] * 60
