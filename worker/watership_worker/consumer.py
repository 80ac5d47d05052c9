"""The worker service: consumes its steps' queues, runs handlers in tasks of its own, replies, and acknowledges last."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import socket
from collections.abc import Callable
from functools import partial

from watership.bus.acks import Acks
from watership.bus.gathering import Parcels, is_part
from watership.bus.protocol import Bus, Delivery, Fate, Message, Subscription
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE, new_id, new_token
from watership.errors import (
    ActRefused,
    ConfigurationError,
    HandlerUnavailable,
    InvalidPayload,
    LimitExceeded,
    StepError,
)
from watership.execution import Command, Execution, execute
from watership.machine.state import Action
from watership.messages import (
    MISFIT,
    ErrorOnWire,
    EventOnWire,
    RegisterAnswer,
    RegisterWorker,
    ReplyOutcome,
    StepCommand,
    StepReply,
    read,
    trace_of,
)
from watership.service import Tasks, patiently
from watership.settings import Settings
from watership_worker.replier import Replier
from watership_worker.worker import Worker

log = logging.getLogger("watership.worker")

ANSWER_WITHIN_S = 2.0
IN_HAND_WITHIN_S = 10.0  # what comes together may be more than runs at once: so long it waits here, and then elsewhere


class Consumer:
    """One worker process: any number of them share the same queues."""

    def __init__(self, settings: Settings, bus: Bus, worker: Worker, *, chance: random.Random = SYSTEM_CHANCE) -> None:
        self.name = f"worker {socket.gethostname()}:{os.getpid()}:{new_token(chance, size_bytes=3)}"
        self._chance = chance
        self._settings = settings
        self._bus = bus
        self._worker = worker
        self._topology = Topology(settings.namespace)
        self._answers = f"{settings.namespace}.worker.{new_id(chance).hex}"
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._runs = Tasks()
        self._parcels = Parcels(bus)
        self._replier = Replier(bus, self._parcels)
        self._acks = Acks(bus)
        self._subscriptions: list[Subscription] = []
        self._answered: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Connects, declares its queues, announces itself, and consumes."""
        await patiently(self.name, self._bus.open, self._chance)
        queues = [self._topology.step_queue(queue) for queue in self._worker.queues()]
        declared = [*self._topology.orchestrator_queues(), *queues]
        await patiently(self.name, lambda: self._bus.declare(self._topology.exchanges(), declared), self._chance)
        await patiently(self.name, lambda: self._bus.declare_reply_queue(self._answers), self._chance)
        await self._consume(self._answers, 10, self._on_answer)
        await self._announce()
        try:  # a worker that will be refused must not do work first; without an orchestrator it may wait for work
            async with asyncio.timeout(ANSWER_WITHIN_S):
                refused = await asyncio.shield(self._answered)
        except TimeoutError:
            refused = ()
        if refused:
            raise ConfigurationError("; ".join(refused))
        for queue in queues:
            # Little more than what runs at once; under load each message may carry several, and what waits for a slot for
            # too long goes back to its queue.
            await self._consume(queue.name, self._settings.concurrency, self._parcels.opening(self._on_command))

    async def _consume(self, queue: str, prefetch: int, on_delivery: Callable[[Delivery], None]) -> None:
        consume = partial(self._bus.consume, queue, prefetch=prefetch, on_delivery=on_delivery)
        self._subscriptions.append(await patiently(self.name, consume, self._chance))

    async def run(self) -> None:
        """Announces itself again and again. Ends with an error if its handlers were refused."""
        while True:
            self._answered = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._settings.announce_every_s):
                    refused = await asyncio.shield(self._answered)
                    if not refused:
                        await asyncio.Event().wait()  # until it is time to announce again
            except TimeoutError:
                await self._announce()
                continue
            raise ConfigurationError("; ".join(refused))

    async def drain(self) -> None:
        """Takes no new command, finishes and replies to those in hand, closes."""
        for subscription in self._subscriptions:
            await subscription.cancel()
        await self._runs.wait()
        if self._subscriptions:  # else it never got as far as announcing itself
            await self._announce(leaving=True)
        await self._bus.close()

    async def _announce(self, *, leaving: bool = False) -> None:
        body = RegisterWorker(
            worker=self.name,
            plans=tuple(plan.to_data() for plan in self._worker.plans()),
            handlers=tuple(self._worker.announced()),
            leaving=leaving,
        )
        message = body.addressed(
            self._topology.exchange,
            "control",
            message_id=f"{self.name}:{new_token(self._chance, size_bytes=4)}",
            reply_to=self._answers,
        )
        (fate,) = await self._bus.publish([message])
        if fate is not Fate.CONFIRMED and not leaving:
            log.warning("%s could not announce itself (%s); it tries again", self.name, fate)

    def _on_answer(self, delivery: Delivery) -> None:
        self._acks.add((delivery,))
        try:
            answer = read(delivery.type, delivery.body)
        except (InvalidPayload, LimitExceeded) as error:
            log.warning("an answer could not be read: %s", error)
            return
        if isinstance(answer, RegisterAnswer) and not self._answered.done():
            self._answered.set_result(answer.refused)

    # --- commands

    def _on_command(self, delivery: Delivery) -> None:
        self._runs.begin(self._serve(delivery), name=f"command {delivery.message_id}")

    async def _serve(self, delivery: Delivery) -> None:
        try:
            message = read(delivery.type, delivery.body)
            if not isinstance(message, StepCommand):
                raise InvalidPayload(f"a {message.kind} does not belong on {delivery.queue}")
        except (InvalidPayload, LimitExceeded) as error:
            log.warning("refused a message on %s: %s", delivery.queue, error)
            await self._parcels.reject(delivery, requeue=False)
            return
        if not await self._has_slot(delivery):  # others may have one
            if await self._parcels.hand_back(dataclasses.replace(delivery, message_id=message.message_id)):
                return
            delivery = dataclasses.replace(delivery, redelivered=True)  # it may be there all the same, and run twice
            await self._slots.acquire()
        try:
            reply = await self._run(message, delivery)
        except Exception as error:  # without a reply it would be held for ever, and with it a place in the queue
            log.exception("saga %s: %s of step %s could not be run", message.saga_id, message.action, message.step)
            reply = _could_not_run(message, error, delivery, new_token(self._chance))
        finally:
            self._slots.release()
        await self._replier.send(self._message(message, reply, delivery), delivery)

    async def _has_slot(self, delivery: Delivery) -> bool:
        """Waits for a slot; but what came with others, and may be more than runs here, not for long.

        What was delivered before stays here: sent anew, it would not say so.
        """
        if delivery.redelivered or not is_part(delivery) or not self._slots.locked():
            await self._slots.acquire()
            return True
        try:
            async with asyncio.timeout(IN_HAND_WITHIN_S):
                await self._slots.acquire()
        except TimeoutError:
            return False
        return True

    async def _run(self, command: StepCommand, delivery: Delivery) -> StepReply:
        hands = self._worker.hands(command)
        if hands is None:
            return _not_served(command, delivery, new_token(self._chance))
        if delivery.redelivered and command.action is Action.ACT and not hands.handler.rerun:
            words = f"step {command.step} was delivered before, and must not run twice (rerun = False)"
            error = ErrorOnWire(code="run_lost", type_name="RunLost", message=words)
            return _without_a_run(command, ReplyOutcome.UNKNOWN, error, delivery, new_token(self._chance))
        if delivery.redelivered:
            log.info(
                "saga %s: %s of %s is run again: it was delivered before", command.saga_id, command.action, command.step
            )
        run = await execute(
            Command(
                saga_id=command.saga_id,
                saga=command.saga,
                step=command.step,
                action=command.action,
                attempt=command.attempt,
                idempotency_key=command.idempotency_key,
                context=command.context,
                timeout_ms=command.timeout_ms,
                generation=command.generation,
                acted=command.acted,
            ),
            hands,
            self._chance,
        )
        if run.error is not None:
            _tell_error(command, run)
        if isinstance(run.error, HandlerUnavailable):  # a mistake of this deployment's must not undo anybody's business
            error = ErrorOnWire(
                code=HandlerUnavailable.code, type_name="HandlerUnavailable", message=str(run.error)[:2_000]
            )
            return _without_a_run(command, ReplyOutcome.NOT_SERVED, error, delivery, run.run)
        if run.misfit is not None:
            error = ErrorOnWire(code=MISFIT, type_name="Misfit", message=run.misfit[:2_000])
            return _without_a_run(command, ReplyOutcome.NOT_SERVED, error, delivery, run.run)
        return _reply(command, run, delivery)

    def _message(self, command: StepCommand, reply: StepReply, delivery: Delivery) -> Message:
        return reply.addressed(
            self._topology.exchange,
            "replies",
            message_id=reply.message_id,
            correlation_id=str(command.saga_id),
            headers=_trace(delivery),
        )


def _tell_error(command: StepCommand, run: Execution) -> None:
    """A `StepError` is how business says no; anything else may be a bug, and is told with its traceback."""
    expected = isinstance(run.error, StepError | ActRefused)
    log.log(
        logging.INFO if expected else logging.WARNING,
        "saga %s: %s of step %s, attempt %d, ended %s: %s: %s",
        command.saga_id,
        command.action,
        command.step,
        command.attempt,
        run.outcome,
        type(run.error).__name__,
        run.error,
        exc_info=None if expected else run.error,
    )


def _trace(delivery: Delivery) -> dict[str, str]:
    trace = trace_of(delivery.headers)
    return {"traceparent": trace} if trace is not None else {}


def _not_served(command: StepCommand, delivery: Delivery, run: str) -> StepReply:
    """This worker ran nothing; if the command was delivered before, another one may have: the machine keeps the doubt."""
    error = ErrorOnWire(code="not_served", type_name="NotServed", message=f"no handler for step {command.step} here")
    return _without_a_run(command, ReplyOutcome.NOT_SERVED, error, delivery, run)


def _could_not_run(command: StepCommand, error: Exception, delivery: Delivery, run: str) -> StepReply:
    on_wire = ErrorOnWire(code="worker_error", type_name=type(error).__name__[:200], message=repr(error)[:2_000])
    return _without_a_run(command, ReplyOutcome.UNKNOWN, on_wire, delivery, run)


def _without_a_run(
    command: StepCommand, outcome: ReplyOutcome, error: ErrorOnWire, delivery: Delivery, run: str
) -> StepReply:
    return StepReply(
        saga_id=command.saga_id,
        step=command.step,
        action=command.action,
        attempt=command.attempt,
        run=run,
        outcome=outcome,
        error=error,
        redelivered=delivery.redelivered,
    )


def _reply(command: StepCommand, run: Execution, delivery: Delivery) -> StepReply:
    return StepReply.model_construct(
        v=1,
        saga_id=command.saga_id,
        step=command.step,
        action=command.action,
        attempt=command.attempt,
        run=run.run,
        outcome=ReplyOutcome(run.outcome.value),
        patch=run.patch,
        response=run.response,
        error=ErrorOnWire.of(run.failure),
        redelivered=delivery.redelivered,
        certain=run.certain,
        events=tuple(EventOnWire.model_construct(**event) for event in run.events) or None,
    )
