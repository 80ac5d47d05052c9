"""What an engine does when the broker does not confirm, and the saga has moved before that can be marked in its row."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Fate, Message
from watership.bus.topology import Queue
from watership.machine.nodes import RetryPlan, StepPlan
from watership.machine.plan import Plan
from watership.machine.state import Action
from watership.messages import ErrorOnWire, EventOnWire, ReplyOutcome, StartSaga, StepReply
from watership.testing.memory_database import MemoryDatabase
from watership_orchestrator.judgement import Arrival

from tests.support.memory_engine import TOPOLOGY, engine_on

SAGA_ID = uuid.UUID(int=1)
PLAN = Plan("Order", (StepPlan("A", "a", compensation_retry=RetryPlan()), StepPlan("B", "b")))


class Deaf(MemoryBus):
    """Delivers, and never says so; ``meanwhile`` happens before it gives up."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        fates = await super().publish(messages)
        if self.meanwhile is None:
            return fates
        await self.meanwhile()
        return [Fate.UNCONFIRMED] * len(messages)


class Torn(MemoryBus):
    """``torn``: the link goes after the first message of a batch, and no confirm comes."""

    torn = False

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        if not self.torn:
            return await super().publish(messages)
        self.torn = False
        await super().publish(messages[:1])
        return [Fate.UNCONFIRMED] * len(messages)


def reply(step: str, outcome: str, run: str, action: Action = Action.ACT, **fields: Any) -> StepReply:
    error = ErrorOnWire(code="boom") if outcome == "failed" else None
    return StepReply(
        saga_id=SAGA_ID,
        step=step,
        action=action,
        attempt=1,
        run=run,
        outcome=ReplyOutcome(outcome),
        error=error,
        **fields,
    )


async def test_an_event_that_was_not_confirmed_stays_owed_when_its_command_was_answered() -> None:
    """B was told to act and answers; that A's event did not get through must not be forgotten with that."""
    clock = [1_000_000]
    broker, database = MemoryBroker(), MemoryDatabase(lambda: clock[0])
    bus = Torn(broker)
    engine = await engine_on(bus, PLAN, database)
    await bus.declare([], [Queue("listener", TOPOLOGY.events_exchange, "saga.#", None)])
    await engine.process([Arrival(SAGA_ID, StartSaga(saga="Order", saga_id=SAGA_ID, context={}))])
    bus.torn = True
    await engine.process([Arrival(SAGA_ID, reply("A", "done", "1", events=(EventOnWire(name="packed", data={}),)))])
    assert [message.routing_key for message in broker.peek("listener")] == []
    await engine.process([Arrival(SAGA_ID, reply("B", "done", "2"))])
    clock[0] += 60_000
    assert await engine.look(10) == 1
    assert "saga.Order.packed" in [message.routing_key for message in broker.peek("listener")]
    assert not database.sagas[SAGA_ID]["owed"]


async def test_a_message_whose_saga_moved_before_it_could_owe_comes_again() -> None:
    """Law 1: the news that a saga is parked was not confirmed, and a late act moved the saga meanwhile."""
    broker, database = MemoryBroker(), MemoryDatabase(lambda: 1_000_000)
    buses = [Deaf(broker), Deaf(broker)]
    one, other = [await engine_on(bus, PLAN, database) for bus in buses]
    await one.process([Arrival(SAGA_ID, StartSaga(saga="Order", saga_id=SAGA_ID, context={}))])
    await one.process([Arrival(SAGA_ID, reply("A", "done", "1"))])
    await one.process([Arrival(SAGA_ID, reply("B", "failed", "2"))])
    late = Arrival(SAGA_ID, reply("B", "done", "late"))
    buses[0].meanwhile = lambda: other.process([late])
    parks = Arrival(SAGA_ID, reply("A", "failed", "3", Action.COMPENSATE))
    result = await one.process([parks])
    row = database.sagas[SAGA_ID]
    assert row["parked_reason"] is not None
    assert not row["owed"]
    assert result.redeliver == [parks], "its message is what brings the news again"
    buses[0].meanwhile = None
    parks.redelivered = True
    assert (await one.process([parks])).redeliver == []
