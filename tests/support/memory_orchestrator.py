"""An orchestrator that runs on a memory bus and a memory database, and a client beside it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Fate, Message
from watership.messages import AdminRequest, AdminVerb, WireMessage
from watership.settings import Settings
from watership.testing.memory_database import MemoryDatabase
from watership.testing.memory_plans import MemoryBacking
from watership_orchestrator.orchestrator import Orchestrator

SAGA_ID = uuid.UUID(int=5)


class Service:
    """Both, of one broker."""

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
        return await self.ask("admin", AdminRequest(verb=AdminVerb.RETRY, saga_id=SAGA_ID))

    async def ask(self, queue: str, message: WireMessage) -> str:
        """Sends a message that is answered; the answer's body."""
        await self.send(queue, message, reply_to="answers")
        return await asyncio.wait_for(self.answers.get(), 10)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    running = await made.start()
    yield made
    assert not running.done(), "it still runs"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.orchestrator.drain()
    await made.client.close()
