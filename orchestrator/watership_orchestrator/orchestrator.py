"""The orchestrator service: consumes starts, replies, control and admin; hands batches to the engine; acknowledges."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from watership.bus.acks import Acks
from watership.bus.gathering import Parcels
from watership.bus.protocol import Bus, Delivery, Message, Subscription
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE, new_token
from watership.errors import InvalidPayload, LimitExceeded, SignalRefused, StoreUnavailable, WatershipError
from watership.messages import (
    AdminAnswer,
    AdminRequest,
    AdminVerb,
    RegisterAnswer,
    RegisterWorker,
    SagaRejected,
    Signal,
    SignalAnswer,
    StartSaga,
    StepReply,
    WireMessage,
    read,
    trace_of,
)
from watership.service import Tasks, patiently
from watership.settings import Settings
from watership_orchestrator.admin import MOVES_A_SAGA, OF_A_DEAD_LETTER, OF_A_SAGA, operated
from watership_orchestrator.dead_letters import DeadLetterIntake, DeadLetters
from watership_orchestrator.engine import BatchResult, Engine
from watership_orchestrator.inbox import Inbox
from watership_orchestrator.judgement import Arrival
from watership_orchestrator.newer import NewerSagas
from watership_orchestrator.outbox import answer
from watership_orchestrator.ports import Backing

log = logging.getLogger("watership.orchestrator")

STORE_RETRY_S = 1.0
LOCKED_RETRY_S = 0.01
PREFETCH_SHARE = 5  # so much of it, a queue may wait for acknowledgements at the most
REDELIVER_PAUSE_S = 0.1
# What each queue may bring to be judged. Who may publish to one queue is not thereby an operator.
JUDGED: dict[str, type[StartSaga | StepReply | Signal | AdminRequest]] = {
    "start": StartSaga,
    "replies": StepReply,
    "control": Signal,
    "admin": AdminRequest,
}


class Orchestrator:
    """One of any number of orchestrators. What it remembers of sagas between two batches, it does not believe."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        backing: Backing,
        *,
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random = SYSTEM_CHANCE,
    ) -> None:
        self.name = f"orchestrator {socket.gethostname()}:{new_token(chance, size_bytes=3)}"
        self._settings = settings
        self._bus = bus
        self._backing = backing
        self._chance = chance
        self._topology = Topology(settings.namespace)
        self._engine = Engine(backing.store, bus, backing.plans, self._topology, now_s=now_s, chance=chance)
        self._dead_letters = DeadLetters(backing.store, self._engine)
        self._parcels = Parcels(bus)
        self._acks = Acks(self._parcels, together_max=max(1, settings.prefetch // PREFETCH_SHARE))
        self._dead_intake = DeadLetterIntake(self._dead_letters, self._parcels, batch_size_max=settings.batch_size_max)
        self._inbox = Inbox()
        self._judged = {self._topology.queue_name(key): kind for key, kind in JUDGED.items()}
        self._subscriptions: list[Subscription] = []
        self._aside = Tasks()
        self._newer = NewerSagas(self._parcels, self._dead_letters, self._aside, chance)
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, declares the namespace's exchanges and queues, and consumes."""
        await patiently(self.name, self._backing.check, self._chance)
        await patiently(self.name, self._bus.open, self._chance)
        exchanges, queues = self._topology.exchanges(), self._topology.orchestrator_queues()
        await patiently(self.name, lambda: self._bus.declare(exchanges, queues), self._chance)
        prefetch = self._settings.prefetch
        for key, handler in (
            ("replies", self._inbox.put_reply),
            ("start", self._inbox.put),
            ("admin", self._on_admin),
            ("control", self._on_control),
            ("dead", self._dead_intake.put),
        ):
            arrive = self._parcels.opening(handler)
            consume = partial(self._bus.consume, self._topology.queue_name(key), prefetch=prefetch, on_delivery=arrive)
            self._subscriptions.append(await patiently(self.name, consume, self._chance))

    async def run(self) -> None:
        """Batches, one after the other. A cancellation waits for the batch in hand."""
        self._loop = asyncio.create_task(self._batches(), name=f"{self.name} batches")
        keeping = asyncio.create_task(self._dead_intake.run(), name=f"{self.name} dead letters")
        try:
            await asyncio.shield(self._loop)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _batches(self) -> None:
        while True:
            self._idle.set()
            deliveries = await self._inbox.take(self._settings.batch_size_max)
            self._idle.clear()
            await self._batch(deliveries)

    async def drain(self) -> None:
        """Takes nothing new; finishes what is in hand; what was not begun is delivered to others."""
        for subscription in self._subscriptions:
            await subscription.cancel()
        while len(self._inbox) or not self._idle.is_set():
            if self._loop is None or self._loop.done():
                break
            await asyncio.sleep(0.01)
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self._newer.close()
        await self._aside.wait()
        await self._acks.flush()
        await self._bus.close()
        await self._backing.close()

    # --- batches

    async def _batch(self, deliveries: Sequence[Delivery]) -> None:
        arrivals: dict[int, tuple[Arrival, Delivery]] = {}
        for delivery in deliveries:
            arrival = await self._arrival(delivery)
            if arrival is not None:
                arrivals[id(arrival)] = (arrival, delivery)
        if not arrivals:
            return
        result = await self._process([arrival for arrival, _ in arrivals.values()])
        await self._finish(arrivals, result)

    async def _process(self, arrivals: list[Arrival]) -> BatchResult:
        while True:
            try:
                return await self._engine.process(arrivals)
            except StoreUnavailable as error:
                log.warning("%s; %d messages wait", error, len(arrivals))
                await asyncio.sleep(STORE_RETRY_S)

    async def _finish(self, arrivals: dict[int, tuple[Arrival, Delivery]], result: BatchResult) -> None:
        """Acknowledges last, when all that followed is confirmed or owed."""
        open_ids = set(arrivals)
        again = [arrivals[id(arrival)][1] for arrival in result.again]
        open_ids.difference_update(id(arrival) for arrival in result.again)
        self._inbox.put_back(again, replies_queue=self._topology.queue_name("replies"))
        if result.newer:
            open_ids.difference_update(id(arrival) for arrival in result.newer)
            self._newer.take([arrivals[id(arrival)] for arrival in result.newer])
        if result.redeliver:
            await asyncio.sleep(REDELIVER_PAUSE_S)  # what could not be published
        for arrival in result.redeliver:
            if id(arrival) in open_ids:
                open_ids.discard(id(arrival))
                await self._parcels.reject(arrivals[id(arrival)][1], requeue=True)
        for rejection in result.rejections:
            if id(rejection.arrival) in open_ids:
                open_ids.discard(id(rejection.arrival))
                log.warning("refused: %s", rejection.reason)
                await self._parcels.reject(arrivals[id(rejection.arrival)][1], requeue=False)
        await self._answer_operators([both for key, both in arrivals.items() if key in open_ids], result)
        self._acks.add(arrivals[key][1] for key in arrivals if key in open_ids)
        if again and len(again) == len(arrivals):
            await asyncio.sleep(LOCKED_RETRY_S)  # all are locked elsewhere: let that transaction end

    async def _answer_operators(self, done: list[tuple[Arrival, Delivery]], result: BatchResult) -> None:
        answers: list[Message] = []
        for arrival, delivery in done:
            if delivery.reply_to is None:
                continue
            refused = result.refusals.get(id(arrival))
            if isinstance(arrival.message, AdminRequest):
                answers.append(_answer_to(delivery, operated(refused, result.states.get(arrival.saga_id))))
            elif isinstance(arrival.message, Signal):
                code = SignalRefused.code if refused is not None else None
                body = SignalAnswer(saga_id=arrival.saga_id, code=code, refused=refused)
                answers.append(_answer_to(delivery, body))
        if answers:
            await self._bus.publish(answers)

    async def _arrival(self, delivery: Delivery) -> Arrival | None:
        try:
            message = read(delivery.type, delivery.body)
        except (InvalidPayload, LimitExceeded) as error:
            await self._refuse(delivery, error)
            return None
        except Exception as error:  # a bug of ours; but a message that ends its reader would end every one, in turn
            log.exception("a message on %s cannot be read", delivery.queue)
            await self._refuse(delivery, InvalidPayload(f"it cannot be read: {type(error).__name__}: {error}"))
            return None
        if not isinstance(message, self._judged[delivery.queue]):
            await self._refuse(delivery, InvalidPayload(f"a {message.kind} does not belong on {delivery.queue}"))
            return None
        saga_id = message.saga_id
        assert saga_id is not None, "an operator's request without one was refused where it was read"
        return Arrival(
            saga_id,
            message,
            redelivered=delivery.redelivered,
            reply_to=delivery.reply_to,
            message_id=delivery.message_id,
            traceparent=trace_of(delivery.headers),
        )

    async def _refuse(self, delivery: Delivery, error: WatershipError) -> None:
        """Dead-letters a message that cannot be read, with the reason to its sender."""
        log.warning("refused a message on %s: %s", delivery.queue, error)
        if delivery.reply_to is not None:
            await self._bus.publish([_answer_to(delivery, SagaRejected(code=error.code, reason=str(error)))])
        await self._parcels.reject(delivery, requeue=False)

    # --- control and admin, aside from the batches

    def _on_control(self, delivery: Delivery) -> None:
        if delivery.type == Signal.kind:
            self._inbox.put(delivery)  # it moves a saga: judged with everything else that arrives for it
        else:
            self._aside.begin(self._register(delivery), name="register")

    async def _register(self, delivery: Delivery) -> None:
        try:
            message = read(delivery.type, delivery.body)
            if not isinstance(message, RegisterWorker):
                raise InvalidPayload(f"a {message.kind} does not belong on {delivery.queue}")
            refused = await self._backing.plans.register(message)
        except (InvalidPayload, LimitExceeded) as error:
            await self._refuse(delivery, error)
            return
        except Exception:
            log.exception("an announcement could not be kept; it comes again")
            await asyncio.sleep(STORE_RETRY_S)
            await self._parcels.reject(delivery, requeue=True)
            return
        for sentence in refused:
            log.warning("refused: %s", sentence)
        if delivery.reply_to is not None:
            await self._bus.publish([_answer_to(delivery, RegisterAnswer(refused=tuple(refused)))])
        await self._parcels.ack([delivery])

    def _on_admin(self, delivery: Delivery) -> None:
        self._aside.begin(self._administer(delivery), name="admin")

    async def _administer(self, delivery: Delivery) -> None:
        try:
            message = read(delivery.type, delivery.body)
            if not isinstance(message, AdminRequest):
                await self._refuse(delivery, InvalidPayload(f"a {message.kind} does not belong on {delivery.queue}"))
                return
            if message.verb in OF_A_SAGA and message.saga_id is None:
                raise InvalidPayload(f"the verb {message.verb} needs a saga_id")
            if message.verb in OF_A_DEAD_LETTER and message.letter_id is None:
                raise InvalidPayload(f"the verb {message.verb} needs a letter_id")
        except (InvalidPayload, LimitExceeded) as error:
            await self._answer_and_ack(delivery, AdminAnswer(code=error.code, error=str(error)))
            return
        if message.verb in MOVES_A_SAGA:
            self._inbox.put(delivery)  # it moves a saga: judged with everything else that arrives for it
            return
        try:
            if message.verb in (AdminVerb.DEAD_REQUEUE, AdminVerb.DEAD_DISCARD):
                body = await self._dead_letters.operate(message)
                if body.error is None:
                    body = await self._backing.reader.read(message)  # with what came of it
            else:
                body = await self._backing.reader.read(message)
        except Exception as error:
            log.exception("an operator's %s failed", message.verb)
            body = AdminAnswer(code=StoreUnavailable.code, error=f"{message.verb}: {type(error).__name__}: {error}")
        await self._answer_and_ack(delivery, body)

    async def _answer_and_ack(self, delivery: Delivery, body: AdminAnswer) -> None:
        if delivery.reply_to is not None:
            await self._bus.publish([_answer_to(delivery, body)])
        await self._parcels.ack([delivery])


def _answer_to(delivery: Delivery, body: WireMessage) -> Message:
    """An answer carries the request's correlation id, as every AMQP client expects."""
    assert delivery.reply_to is not None
    return answer(
        body,
        delivery.reply_to,
        message_id=f"{delivery.message_id or new_token(SYSTEM_CHANCE)}:answer",
        correlation_id=delivery.correlation_id,
    )
