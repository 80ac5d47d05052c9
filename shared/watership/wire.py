"""A connection to the distributed system: starts sagas through RabbitMQ and listens for what becomes of them.

One `Wire` for each event loop, broker and namespace: a reply queue of its own, which the orchestrators tell each saga's
progress. What is missed there (a connection was cut, two orchestrators overtook each other) is read from the log,
through the admin queue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import uuid
import weakref
from typing import Any

from watership import codec
from watership.bus.acks import Acks
from watership.bus.gathering import Gatherer, publish_gathered
from watership.bus.protocol import Bus, Delivery, Fate, Message
from watership.bus.topology import Topology
from watership.errors import (
    BrokerUnavailable,
    InvalidPayload,
    LimitExceeded,
    SagaNotFound,
    SignalRefused,
    StartRejected,
    WatershipError,
    error_told,
)
from watership.listening import Listening, end_of, tell
from watership.machine.plan import Plan
from watership.messages import (
    AdminAnswer,
    AdminRequest,
    AdminVerb,
    RegisterAnswer,
    RegisterWorker,
    SagaEnded,
    SagaKnown,
    SagaProgress,
    SagaRejected,
    Signal,
    SignalAnswer,
    StartSaga,
    WireMessage,
    read,
)
from watership.saga.compile import Definition
from watership.saga.storage.protocol import EarlySignal
from watership.saga.watch import SagaWatch, StepDone
from watership.service import Tasks

log = logging.getLogger("watership.wire")

START_TRIES_MAX = 5
ASK_TIMEOUT_S = 10.0
REGISTER_WITHIN_S = 2.0
SILENCE_S = 5.0
LOOK_EVERY_S = 1.0
LOOKS_AT_ONCE_MAX = 20
FIND_EVERY_S = 0.25
MOVING_VERBS = (
    AdminVerb.RETRY,
    AdminVerb.COMPENSATE,
    AdminVerb.DEAD_REQUEUE,
    AdminVerb.DEAD_DISCARD,
    AdminVerb.PLANS_USE,
)
REPLIES_PREFETCH = 2_000


class Wire:
    """A connection to the distributed system, shared by every mediator of an event loop."""

    def __init__(self, bus: Bus, namespace: str) -> None:
        self.name = f"client {socket.gethostname()}:{os.getpid()}"
        self._bus = bus
        self._acks = Acks(bus)
        self._starts = Gatherer[tuple[Message, asyncio.Future[Fate]]](self._publish_starts)
        self._topology = Topology(namespace)
        self._replies = f"{namespace}.client.{uuid.uuid4().hex}"
        self._sagas: dict[uuid.UUID, Listening] = {}
        self._questions: dict[str, asyncio.Future[WireMessage]] = {}
        self._registered: set[str] = set()
        self._keeping: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self._wait_until_s = 0.0
        self._is_connected = False
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._opening: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    # --- connecting

    async def open(self) -> None:
        """Connects once, however many ask. Raises `BrokerUnavailable`."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open(), name="wire open")
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        if not self._is_connected:
            await self._bus.open()
            self._is_connected = True
        await self._bus.declare(self._topology.exchanges(), self._topology.orchestrator_queues())
        await self._bus.declare_reply_queue(self._replies)
        await self._bus.consume(self._replies, prefetch=REPLIES_PREFETCH, on_delivery=self._on_delivery)
        self._tasks.begin(self._look_at_silent(), name="silence")

    def used_by(self, user: object) -> None:
        """``user`` counts as using this connection until it says `left_by`, or is gone."""
        self._users.add(user)

    def left_by(self, user: object) -> bool:
        """``user`` is done. Whether it was the last one."""
        self._users.discard(user)
        return not self._users

    async def close(self) -> None:
        """Stops listening and closes the connection. Sagas go on."""
        await self._tasks.cancel()
        await self._bus.close()
        for listening in self._sagas.values():
            listening.watch.failed(WatershipError("the mediator was closed; the saga goes on"))
        self._sagas.clear()

    # --- starting

    async def start(
        self, definition: Definition, context: dict[str, Any], saga_id: uuid.UUID, *, progress: bool = True
    ) -> SagaWatch:
        """Starts a saga; its start is on disk at the broker on return. Raises `StartRejected`, `BrokerUnavailable`."""
        name = definition.plan.saga
        codec.encode_context(context, what=f"saga {name} {saga_id}: the context")
        await self.open()
        await self._register(definition.plan)
        body = StartSaga(saga=name, saga_id=saga_id, context=context, plan=definition.plan.hash, progress=progress)
        return await self.start_watched(body, definition.plan)

    async def start_watched(self, body: StartSaga, plan: Plan | None = None) -> SagaWatch:
        """Publishes a start and listens. Whoever does not know the plan has the steps read from the log, or none."""
        await self.open()
        listening = self._sagas.get(body.saga_id)
        if listening is None or listening.watch.over:
            listening = Listening(SagaWatch(body.saga_id), plan, time.monotonic(), not body.progress, body)
            self._sagas[body.saga_id] = listening
        listening.end_only = listening.end_only and not body.progress
        try:
            await self.publish_start(body)
        except BaseException:
            self._sagas.pop(body.saga_id, None)
            raise
        return listening.watch

    async def publish_start(self, body: StartSaga, *, listen: bool = True) -> None:
        """Publishes a start until the broker has it: the same id again is the same saga. ``listen``: to its progress."""
        message = body.addressed(
            self._topology.exchange,
            "start",
            message_id=body.message_id,
            correlation_id=str(body.saga_id),
            reply_to=self._replies if listen else None,
        )
        for attempt in range(1, START_TRIES_MAX + 1):
            told: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
            self._starts.add((message, told))
            fate = await told
            if fate is Fate.CONFIRMED:
                return
            if fate is Fate.REFUSED:
                raise StartRejected(f"saga {body.saga} {body.saga_id}: the start queue is full; try again later")
            if attempt < START_TRIES_MAX:
                await asyncio.sleep(0.2 * 2**attempt)
        raise BrokerUnavailable(
            f"the broker did not confirm the start of saga {body.saga} {body.saga_id} in {START_TRIES_MAX} tries; it "
            f"may be there all the same: start it again with this id"
        )

    async def _publish_starts(self, starts: list[tuple[Message, asyncio.Future[Fate]]]) -> None:
        fates = [Fate.UNCONFIRMED] * len(starts)
        try:
            fates = await publish_gathered(self._bus, [message for message, _ in starts])
        finally:
            for (_, told), fate in zip(starts, fates, strict=True):
                if not told.done():
                    told.set_result(fate)

    async def _register(self, plan: Plan) -> None:
        """Makes the plan known before the first saga that is pinned to it, or that one would wait for it."""
        if plan.hash in self._registered:
            return
        body = RegisterWorker(worker=self.name, plans=(plan.to_data(),))
        message = body.addressed(
            self._topology.exchange,
            "control",
            message_id=f"{self.name}:{plan.hash}",
            correlation_id=plan.hash,
            reply_to=self._replies,
        )
        kept = self._keeping.get(plan.hash)
        if kept is None:
            kept = self._keeping[plan.hash] = asyncio.get_running_loop().create_future()
            self._wait_until_s = time.monotonic() + REGISTER_WITHIN_S
        (fate,) = await self._bus.publish([message])
        if fate is not Fate.CONFIRMED:
            raise BrokerUnavailable(f"the broker did not take the plan of saga {plan.saga} ({fate}); start it again")
        try:
            # Only the first saga waits: without an orchestrator, starts are kept all the same, and wait for it.
            async with asyncio.timeout(max(0.0, self._wait_until_s - time.monotonic())):
                refused = await asyncio.shield(kept)
        except TimeoutError:
            log.info("no orchestrator answers; saga %s starts when one runs", plan.saga)
            return
        self._keeping.pop(plan.hash, None)
        if refused:
            raise StartRejected(f"the orchestrator refused the plan of saga {plan.saga}: {'; '.join(refused)}")
        self._registered.add(plan.hash)

    def _on_registered(self, delivery: Delivery, answer: RegisterAnswer) -> None:
        kept = self._keeping.get(delivery.correlation_id or "")
        if kept is not None and not kept.done():
            kept.set_result(answer.refused)

    # --- listening

    def _on_delivery(self, delivery: Delivery) -> None:
        self._acks.add((delivery,))
        try:
            message = read(delivery.type, delivery.body)
        except (InvalidPayload, LimitExceeded) as error:
            log.warning("a message to this client could not be read: %s", error)
            return
        if isinstance(message, AdminAnswer | SignalAnswer):
            question = self._questions.pop(delivery.correlation_id or "", None)
            if question is not None and not question.done():
                question.set_result(message)
        elif isinstance(message, RegisterAnswer):
            self._on_registered(delivery, message)
        elif isinstance(message, SagaProgress):
            self._on_progress(message)
        elif isinstance(message, SagaEnded):
            self._on_end(message)
        elif isinstance(message, SagaKnown):
            self._on_known(message)
        elif isinstance(message, SagaRejected):
            refused = message.saga_id or _saga_id(delivery.correlation_id)
            listening = self._sagas.pop(refused, None) if refused is not None else None
            if listening is not None:
                listening.watch.failed(error_told(message.code, message.reason, StartRejected))

    def _on_progress(self, message: SagaProgress) -> None:
        listening = self._sagas.get(message.saga_id)
        if listening is None:
            return
        listening.heard_at_s = time.monotonic()
        if listening.end_only:
            return
        if not listening.is_next(message.step):
            self._tasks.begin(self._read_log(listening), name="gap")
            return
        listening.watch.step_done(StepDone(message.seq, message.step, message.response, message.patch or {}, None))

    def _on_end(self, message: SagaEnded) -> None:
        listening = self._sagas.get(message.saga_id)
        if listening is None:
            return
        listening.heard_at_s = time.monotonic()
        if not listening.saw_all(message):
            self._tasks.begin(self._read_log(listening), name="gap")
            return
        self._sagas.pop(message.saga_id, None)
        listening.watch.ended(end_of(message))

    def _on_known(self, message: SagaKnown) -> None:
        """It was started before, by somebody else or long ago: we are told nothing, so we ask."""
        listening = self._sagas.pop(message.saga_id, None)
        if listening is not None:
            self._tasks.begin(self._poll(listening.watch, at_once=True), name=f"known {message.saga_id}")

    async def _look_at_silent(self) -> None:
        """Level-triggered: whatever was not heard for a while is read from the log."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            silent_since_s = time.monotonic() - SILENCE_S
            silent = [listening for listening in self._sagas.values() if listening.heard_at_s < silent_since_s]
            silent.sort(key=lambda listening: listening.heard_at_s)
            for listening in silent[:LOOKS_AT_ONCE_MAX]:
                try:
                    await self._read_log(listening)
                except Exception:  # one saga's trouble must not end the watch over all others
                    log.exception("saga %s could not be looked at; looking again", listening.watch.saga_id)

    async def _read_log(self, listening: Listening) -> None:
        saga_id = listening.watch.saga_id
        listening.heard_at_s = time.monotonic()
        try:
            found = await self.ask(AdminVerb.SHOW, saga_id=saga_id)
        except SagaNotFound:
            if listening.start is not None:  # its start waits in its queue, or was refused and we missed that: either
                await self._start_again(listening.start)  # way, the same start again gets an answer
            return
        except WatershipError as error:  # not judged yet, nobody there to ask, no database: the next look asks again
            log.debug("saga %s: %s; asking again", saga_id, error)
            return
        tell(listening.watch, found)
        if listening.watch.over:
            self._sagas.pop(saga_id, None)

    async def _start_again(self, start: StartSaga) -> None:
        try:
            await self.publish_start(start)
        except WatershipError as error:
            log.debug("saga %s: %s; trying again", start.saga_id, error)

    async def find(self, saga_id: uuid.UUID) -> SagaWatch:
        """Watches a saga that somebody started. Raises `SagaNotFound`."""
        listening = self._sagas.get(saga_id)
        if listening is not None:
            return listening.watch
        await self.open()
        found = await self.ask(AdminVerb.SHOW, saga_id=saga_id)
        watch = SagaWatch(saga_id)
        tell(watch, found)
        if not watch.over:
            self._tasks.begin(self._poll(watch), name=f"find {saga_id}")
        return watch

    async def _poll(self, watch: SagaWatch, *, at_once: bool = False) -> None:
        wait_s = 0.0 if at_once else FIND_EVERY_S
        while not watch.over:
            await asyncio.sleep(wait_s)
            wait_s = min(max(wait_s, FIND_EVERY_S) * 1.5, 2.0)
            try:
                tell(watch, await self.ask(AdminVerb.SHOW, saga_id=watch.saga_id))
            except SagaNotFound as error:
                watch.failed(error)
            except WatershipError as error:
                log.warning("saga %s: %s; asking again", watch.saga_id, error)

    # --- asking

    async def ask(self, verb: AdminVerb, **arguments: Any) -> Any:
        """Asks on the admin queue. Raises the error that the answer names, `BrokerUnavailable` if nobody answers."""
        await self.open()
        body = AdminRequest(verb=verb, **arguments)
        # What its author was told that nobody took must not move a saga later.
        expiration_ms = int(ASK_TIMEOUT_S * 1000) if verb in MOVING_VERBS else None
        answered = await self._question(body, "admin", uuid.uuid4().hex, f"the request {verb}", expiration_ms)
        if answered is None:
            raise BrokerUnavailable(
                f"no orchestrator answers on namespace {self._topology.namespace} (waited {ASK_TIMEOUT_S:g} s): is one running?"
            )
        assert isinstance(answered, AdminAnswer)
        if answered.error is not None:
            raise error_told(answered.code, answered.error)
        return answered.data

    async def signal(self, signal: EarlySignal) -> None:
        """Sends a signal: the broker has it on return, and an orchestrator, if one runs. Raises `SignalRefused`."""
        await self.open()
        body = Signal(saga_id=signal.saga_id, name=signal.name, signal_id=signal.signal_id, data=signal.data)
        answered = await self._question(body, "control", f"signal:{signal.signal_id}", f"the signal {signal.name}")
        if isinstance(answered, SignalAnswer) and answered.refused is not None:
            raise error_told(answered.code, answered.refused, SignalRefused)

    async def _question(
        self, body: WireMessage, key: str, message_id: str, what: str, expiration_ms: int | None = None
    ) -> WireMessage | None:
        """Sends a message that is answered; None: nobody has answered in time."""
        correlation_id = uuid.uuid4().hex
        answer: asyncio.Future[WireMessage] = asyncio.get_running_loop().create_future()
        self._questions[correlation_id] = answer
        message = body.addressed(
            self._topology.exchange,
            key,
            message_id=message_id,
            correlation_id=correlation_id,
            reply_to=self._replies,
            expiration_ms=expiration_ms,
        )
        try:
            (fate,) = await self._bus.publish([message])
            if fate is not Fate.CONFIRMED:
                raise BrokerUnavailable(f"the broker did not take {what} ({fate})")
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._questions.pop(correlation_id, None)


def _saga_id(correlation_id: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(correlation_id)
    except (TypeError, ValueError):
        return None
