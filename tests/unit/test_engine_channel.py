"""Law 3: what was decided while one channel was there is not sent over the next one."""

from __future__ import annotations

import itertools
import uuid

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.messages import StartSaga
from watership_orchestrator.arrivals import Arrival

from tests.support.memory_engine import TOPOLOGY, engine_on


class Flapping(MemoryBus):
    """Each look finds another channel than the one before."""

    _channels = itertools.count()

    @property
    def generation(self) -> int:
        return next(self._channels)


async def test_a_batch_whose_channel_is_gone_is_not_sent_and_comes_again() -> None:
    plan = Plan("Order", (StepPlan("A", "a"),))
    broker = MemoryBroker()
    engine = await engine_on(Flapping(broker), plan)
    start = StartSaga(saga="Order", saga_id=uuid.uuid4(), context={"n": 1}, plan=plan.hash)
    arrival = Arrival(start.saga_id, start)
    result = await engine.process([arrival])
    assert result.redeliver == [arrival]
    assert broker.peek(TOPOLOGY.step_queue("a").name) == []
