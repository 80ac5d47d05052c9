"""A worker's service on a memory bus, and what stands there in an orchestrator's place: it sends, answers and listens."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from watership import SagaContext, SagaStepHandler
from watership.bus.gathering import Parcels, publish_gathered
from watership.bus.memory import MemoryBroker, MemoryBus, QueueDepth
from watership.bus.protocol import Delivery, Fate
from watership.bus.topology import Topology
from watership.machine.state import Action
from watership.messages import RegisterAnswer, RegisterWorker, StepCommand, StepReply, read
from watership.saga.compile import Step
from watership.settings import Settings
from watership_worker import Worker
from watership_worker.consumer import Consumer

SAGA_ID = uuid.UUID(int=5)
TOPOLOGY = Topology("test")
WITHIN_S = 20.0


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str


def step(name: str, body: Callable[[], Awaitable[None]], **settings: Any) -> Step:
    """A step whose act and whose compensation are both ``body``."""

    class Handler(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> None:
            await body()

        async def compensate(self, context: Order) -> None:
            await body()

    return type(name, (Handler,), settings)


class Mind:
    """The orchestrator's side. ``refused`` is what it answers to announcements."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.announced: list[RegisterWorker] = []
        self.refused: tuple[str, ...] = ()
        self._bus = MemoryBus(self.broker)
        self._parcels = Parcels(self._bus)
        self._replies: asyncio.Queue[Delivery] = asyncio.Queue()

    async def open(self) -> None:
        await self._bus.open()
        await self._bus.declare(TOPOLOGY.exchanges(), TOPOLOGY.orchestrator_queues())
        await self._bus.consume(TOPOLOGY.queue_name("control"), prefetch=0, on_delivery=self._on_announcement)
        await self._bus.consume(
            TOPOLOGY.queue_name("replies"), prefetch=0, on_delivery=self._parcels.opening(self._replies.put_nowait)
        )

    async def close(self) -> None:
        await self._bus.close()

    async def _on_announcement(self, delivery: Delivery) -> None:
        announcement = read(delivery.type, delivery.body)
        assert isinstance(announcement, RegisterWorker)
        assert delivery.reply_to is not None
        self.announced.append(announcement)
        answer = RegisterAnswer(refused=self.refused)
        await self._bus.publish([answer.addressed("", delivery.reply_to, message_id="answer", mandatory=False)])
        await self._bus.ack([delivery])

    def worker(self, worker: Worker, **settings: Any) -> Consumer:
        """A worker's service that was not started yet."""
        return Consumer(Settings(namespace="test", **settings), MemoryBus(self.broker), worker)

    async def send(
        self,
        *steps: str,
        action: Action = Action.ACT,
        breaker: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        together: bool = False,
    ) -> None:
        """Sends a command to each step, all at once; ``together``: to one step, in one message."""
        await self._bus.declare([], [TOPOLOGY.step_queue(name) for name in set(steps)])
        messages = [
            StepCommand(
                saga="OrderSaga",
                saga_id=SAGA_ID,
                step=name,
                action=action,
                attempt=1,
                generation=1,
                idempotency_key="key",
                timeout_ms=60_000,
                context={"order_id": "o-1"},
                breaker=dict(breaker) if breaker is not None else None,
            ).addressed("test", TOPOLOGY.step_key(name), message_id=uuid.uuid4().hex, headers=headers)
            for name in steps
        ]
        fates = await (publish_gathered(self._bus, messages) if together else self._bus.publish(messages))
        assert fates == [Fate.CONFIRMED] * len(steps)

    async def hand_to_one_that_dies(self, name: str) -> None:
        """Another worker takes what is in the step's queue, and dies: it is delivered again."""
        dies = MemoryBus(self.broker)
        await dies.open()
        await dies.consume(TOPOLOGY.step_queue(name).name, prefetch=0, on_delivery=lambda _: None)
        await dies.close()

    def depth(self, name: str) -> QueueDepth:
        """How the step's queue stands."""
        return self.broker.depth(TOPOLOGY.step_queue(name).name)

    async def until_nobody_takes(self, name: str) -> None:
        """Waits until the step's queue has no consumer."""
        async with asyncio.timeout(WITHIN_S):
            while self.depth(name).consumers:
                await asyncio.sleep(0)

    async def reply(self) -> tuple[StepReply, Delivery]:
        """The next reply, acknowledged."""
        async with asyncio.timeout(WITHIN_S):
            delivery = await self._replies.get()
        reply = read(delivery.type, delivery.body)
        assert isinstance(reply, StepReply)
        await self._parcels.ack([delivery])
        return reply, delivery
