"""What people and clients do in a world: they start sagas, answer what those wait for, and operate. They never give up."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator

from watership.bus.gathering import Gatherer, gathered
from watership.bus.protocol import Fate, Message
from watership.bus.topology import Topology
from watership.machine.plan import Plan
from watership.messages import AdminRequest, AdminVerb, RegisterWorker, Signal, StartSaga, WireMessage
from watership.testing.world import World

from tests.simulation.workload import OperatorOrder, SignalOrder, StartOrder, Workload

STARTS_WITHIN_S = 0.5  # what is started within such a time goes in one message


class People:
    """Sends what a workload asks for. ``listener``: the queue of their answers. ``signals``: what was sent, by its id."""

    def __init__(self, world: World, topology: Topology, listener: str, chance: random.Random) -> None:
        self.signals: dict[str, Signal] = {}
        self._world = world
        self._topology = topology
        self._listener = listener
        self._chance = chance
        self._ids = 0
        self._starts = Gatherer(self._send_starts, hold_s=STARTS_WITHIN_S)

    def orders(self, work: Workload) -> Iterator[asyncio.Task[None]]:
        """Begins to do all of it, each thing at its time."""
        for start in work.starts:
            yield asyncio.create_task(self._start(start))
        for verb in work.operators:
            yield asyncio.create_task(self._operate(verb))
        for signal in work.signals:
            yield asyncio.create_task(self._signal(signal))
        for plan in work.plans:
            at_s = work.registered_at_s[plan.hash]
            if at_s is not None:
                yield asyncio.create_task(self._register(plan, at_s))

    async def help(self, saga_id: uuid.UUID, verb: AdminVerb, seq: int | None = None) -> None:
        """An operator's verb, now."""
        request = AdminRequest(verb=verb, saga_id=saga_id, actor="ann", reason="why not", seq=seq)
        await self._send("admin", request, reply_to=self._listener)

    async def register(self, plan: Plan) -> None:
        """A plan is made known."""
        await self._send("control", RegisterWorker(worker="people", plans=(plan.to_data(),)))

    async def _register(self, plan: Plan, at_s: float) -> None:
        await asyncio.sleep(at_s)
        await self.register(plan)

    async def _start(self, order: StartOrder) -> None:
        await asyncio.sleep(order.at_s)
        body = StartSaga(saga=order.saga, saga_id=order.saga_id, context=order.context, plan=order.plan)
        for copy in range(order.copies):
            if copy:
                await asyncio.sleep(self._chance.choice((0.0, 0.01, 2.0, 20.0)))
            reply_to = self._listener if order.watched else None
            self._starts.add(self._message("start", body, reply_to=reply_to, message_id=body.message_id))
        if order.conflict:
            other = body.model_copy(update={"context": {"n": -1}})
            await asyncio.sleep(self._chance.choice((0.01, 5.0)))
            await self._send("start", other, reply_to=self._listener)

    async def _operate(self, order: OperatorOrder) -> None:
        await asyncio.sleep(order.at_s)
        await self.help(order.saga_id, order.verb, order.seq)

    async def _signal(self, order: SignalOrder) -> None:
        await asyncio.sleep(order.at_s)
        body = Signal(saga_id=order.saga_id, name=order.name, signal_id=order.signal_id, data=order.data)
        self.signals[order.signal_id] = body
        for copy in range(order.copies):
            if copy:
                await asyncio.sleep(self._chance.choice((0.0, 0.01, 2.0, 20.0)))
            reply_to = self._listener if order.watched else None
            await self._send("control", body, reply_to=reply_to)

    async def _send(
        self, key: str, body: WireMessage, *, reply_to: str | None = None, message_id: str | None = None
    ) -> None:
        await self._route(self._message(key, body, reply_to=reply_to, message_id=message_id))

    def _message(self, key: str, body: WireMessage, *, reply_to: str | None, message_id: str | None) -> Message:
        self._ids += 1
        name = message_id or f"request-{self._ids}"
        return body.addressed(self._topology.exchange, key, message_id=name, correlation_id=name, reply_to=reply_to)

    async def _send_starts(self, starts: list[Message]) -> None:
        for message, _ in gathered(starts):
            await self._route(message)
        await asyncio.sleep(STARTS_WITHIN_S)

    async def _route(self, message: Message) -> None:
        self._world.tell("people", f"send {message.type} {message.message_id}")
        while self._world.broker.route(message) is not Fate.CONFIRMED:
            await asyncio.sleep(1.0)  # the queue is full
