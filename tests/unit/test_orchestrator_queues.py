"""What an orchestrator takes from which queue, on a memory bus: nothing that was sent astray moves a saga, or ends it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Fate, Message
from watership.machine.state import Action
from watership.messages import (
    AdminRequest,
    AdminVerb,
    RegisterWorker,
    ReplyOutcome,
    Signal,
    StartSaga,
    StepReply,
    WireMessage,
)
from watership.settings import Settings
from watership.testing.memory_database import MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership_orchestrator.arrivals import Shelf
from watership_orchestrator.orchestrator import Orchestrator

from tests.support.judging import PLAN

SAGA_ID = uuid.UUID(int=5)
BELONGS = {
    "start": {"start-saga"},
    "replies": {"step-reply"},
    "admin": {"admin-request"},
    "control": {"signal", "register-worker"},
}
MESSAGES: list[WireMessage] = [
    StartSaga(saga="OrderSaga", saga_id=SAGA_ID, context={"n": 1}),
    StepReply(saga_id=SAGA_ID, step="A", action=Action.ACT, attempt=1, run="r", outcome=ReplyOutcome.DONE),
    Signal(saga_id=SAGA_ID, signal_id="s", name="approval", data=None),
    RegisterWorker(worker="w", plans=(), handlers=()),
    *(AdminRequest(verb=verb, saga_id=SAGA_ID, letter_id=1) for verb in AdminVerb),
    *(AdminRequest(verb=verb) for verb in AdminVerb),
]
ASTRAY = [(queue, message) for queue, kinds in BELONGS.items() for message in MESSAGES if message.kind not in kinds]


class Service:
    """An orchestrator that runs, and a client beside it."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.settings = Settings(broker_url="amqp://memory", database_url="postgresql://memory", namespace="test")
        self.database = MemoryDatabase(lambda: time.time_ns() // 1_000_000)
        self.backing = MemoryBacking(self.database, "test")
        self.orchestrator = Orchestrator(self.settings, MemoryBus(self.broker), self.backing)
        self.client = MemoryBus(self.broker)
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    async def start(self) -> asyncio.Task[None]:
        await self.orchestrator.start()
        await self.client.open()
        await self.client.declare_reply_queue("answers")
        await self.client.consume(
            "answers", prefetch=0, on_delivery=lambda delivery: self.answers.put_nowait(delivery.body.decode())
        )
        return asyncio.create_task(self.orchestrator.run())

    async def send(self, queue: str, message: WireMessage, *, reply_to: str | None = None) -> None:
        sent = Message("test", queue, message.to_body(), message.kind, uuid.uuid4().hex, reply_to=reply_to)
        assert await self.client.publish([sent]) == [Fate.CONFIRMED]

    async def show(self) -> str:
        """What an operator is told of the saga: when it comes, all that was sent before it is judged."""
        await self.send("admin", AdminRequest(verb=AdminVerb.RETRY, saga_id=SAGA_ID), reply_to="answers")
        return await asyncio.wait_for(self.answers.get(), 10)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.backing.plans.keep([PLAN])
    running = await made.start()
    yield made
    assert not running.done(), "it still runs"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.orchestrator.drain()
    await made.client.close()


@pytest.mark.parametrize(
    ("queue", "message"),
    ASTRAY,
    ids=[f"{queue}-{message.kind}-{number}" for number, (queue, message) in enumerate(ASTRAY)],
)
async def test_what_was_sent_astray_is_a_dead_letter_and_moves_nothing(
    service: Service, queue: str, message: WireMessage
) -> None:
    await service.send("start", MESSAGES[0])
    before = await service.show()
    await service.send(queue, message)
    assert await service.show() == before
    async with asyncio.timeout(10):
        while not [row for row in service.database.waiting if row.shelf is Shelf.DEAD]:
            await asyncio.sleep(0)
