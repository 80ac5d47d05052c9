"""What a committed judgement sends, as messages: commands to workers, progress and ends to whoever watches. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from watership import codec
from watership.bus.protocol import Message
from watership.bus.topology import Topology
from watership.machine.effects import Effect, NotifyEnd, NotifyParked, NotifyStep, PublishEvent, SendCommand
from watership.machine.plan import Plan
from watership.machine.state import Action, Outcome, SagaState
from watership.messages import (
    ErrorOnWire,
    SagaEnded,
    SagaKnown,
    SagaProgress,
    SagaRejected,
    StepCommand,
    StepEmitted,
    WireMessage,
)
from watership.values import value
from watership_orchestrator.judgement import Judgement, Rejection


@value
class Outgoing:
    """A message and the saga that owes it. ``required``: without a confirm, the saga still owes it.

    ``gathers``: under load it may go with others to its queue. Who listens to events or answers gets each alone; and an act
    that must not run twice is not to be delivered again because of another one.
    """

    saga_id: uuid.UUID
    message: Message
    required: bool
    command: SendCommand | None = None
    gathers: bool = False


def messages_of(judgement: Judgement, plan: Plan | None, topology: Topology) -> list[Outgoing]:
    """Everything that one saga sends after its commit, commands first."""
    state = judgement.state
    if state is None:  # there was one, perhaps, and it was pruned
        return [_known(judgement, 0, reply_to) for reply_to in judgement.known_to]
    outgoing = [
        Outgoing(
            judgement.saga_id,
            _command(judgement, state, plan, command, topology),
            True,
            command,
            gathers=plan.by_name[command.step].rerun,
        )
        for command in judgement.commands_to_send()
        if plan is not None
    ]
    distinct: dict[tuple[str, int, int], Effect] = {}
    for notice in judgement.notices:
        distinct.setdefault(_key(notice), notice)
    for notice in distinct.values():
        outgoing.extend(_notices(judgement, state, notice, topology))
    outgoing.extend(_known(judgement, state.seq, reply_to) for reply_to in judgement.known_to)
    return outgoing


def _known(judgement: Judgement, seq: int, reply_to: str) -> Outgoing:
    body = SagaKnown(saga_id=judgement.saga_id, seq=seq)
    message_id = f"{judgement.saga_id}:{seq}:{body.kind}"
    message = answer(body, reply_to, message_id=message_id, correlation_id=str(judgement.saga_id))
    return Outgoing(judgement.saga_id, message, required=False)


def _key(effect: Effect) -> tuple[str, int, int]:
    return type(effect).__name__, getattr(effect, "seq", 0), getattr(effect, "index", 0)


def rejection_message(rejection: Rejection) -> Message | None:
    """The answer to a refused start; None if its sender named no ``reply_to``."""
    arrival = rejection.arrival
    if arrival.reply_to is None:
        return None
    body = SagaRejected(saga_id=arrival.saga_id, code=rejection.code, reason=rejection.reason)
    return answer(body, arrival.reply_to, message_id=f"{arrival.saga_id}:rejected", correlation_id=str(arrival.saga_id))


def answer(body: WireMessage, reply_to: str, *, message_id: str, correlation_id: str | None) -> Message:
    """A message to a ``reply_to`` queue. One whose queue is gone is dropped, and counts as sent."""
    return body.addressed(
        "",
        reply_to,
        message_id=message_id,
        correlation_id=correlation_id,
        mandatory=False,
    )


def _headers(traceparent: str | None) -> Mapping[str, Any]:
    return {"traceparent": traceparent} if traceparent else {}


def _command(judgement: Judgement, state: SagaState, plan: Plan, command: SendCommand, topology: Topology) -> Message:
    """A `StepCommand`. Its body is put together by hand: a model's own making costs as much as all the rest here."""
    name, action = command.step, command.action
    step, its = plan.by_name[name], state.steps[name]
    generation = its.generation if action is Action.COMPENSATE else 1
    body = {
        "v": 1,
        "saga": state.name,
        "saga_id": state.saga_id,
        "step": name,
        "action": action,
        "attempt": command.attempt,
        "generation": generation,
        "idempotency_key": state.key_of(name, action),
        "timeout_ms": step.timeout_ms,
        "context": state.context_for(name, action),
        "acted": its.act.outcome is Outcome.DONE,
    }
    breaker = plan.breakers.get(name)
    if breaker is not None:
        body["breaker"] = breaker
    return Message(
        topology.exchange,
        topology.step_key(step.queue),
        codec.dumps(body),
        StepCommand.kind,
        message_id=f"{state.saga_id}:{name}:{action}:{command.attempt}:{generation}",
        correlation_id=state.saga_id,
        # Acts only: expiry is hygiene, and a compensation must never be thrown away.
        expiration_ms=step.queue_within_ms if command.action is Action.ACT else None,
        headers=_headers(judgement.traceparent),
    )


def _notices(judgement: Judgement, state: SagaState, effect: Effect, topology: Topology) -> Sequence[Outgoing]:
    if isinstance(effect, NotifyStep):
        if judgement.reply_to is None or not judgement.progress:
            return ()
        progress = SagaProgress(
            saga_id=judgement.saga_id,
            seq=effect.seq,
            step=effect.step,
            response=effect.response,
            patch=effect.patch,
        )
        return (_to_watcher(judgement, progress, effect.seq, judgement.reply_to),)
    if isinstance(effect, PublishEvent):
        return (_emitted(judgement, state, effect, topology),)
    if not isinstance(effect, NotifyEnd | NotifyParked) or not _still_true(state, effect):
        return ()
    body = ended(judgement.saga_id, state, effect.seq)
    event = _event(body, f"{judgement.saga_id}:{effect.seq}:{body.kind}", topology)
    outgoing = [Outgoing(judgement.saga_id, event, required=True)]
    if judgement.reply_to is not None:
        outgoing.insert(0, _to_watcher(judgement, body, effect.seq, judgement.reply_to))
    return outgoing


def _emitted(judgement: Judgement, state: SagaState, effect: PublishEvent, topology: Topology) -> Outgoing:
    body = StepEmitted(
        saga=state.name,
        saga_id=judgement.saga_id,
        seq=effect.seq,
        step=effect.step,
        event=effect.name,
        data=effect.data,
    )
    message = body.addressed(
        topology.events_exchange,
        f"saga.{state.name}.{effect.name}",
        message_id=f"{judgement.saga_id}:{effect.seq}:{effect.index}:{body.kind}",
        correlation_id=str(judgement.saga_id),
        headers=_headers(judgement.traceparent),
        mandatory=False,
    )
    return Outgoing(judgement.saga_id, message, required=True)


def _to_watcher(judgement: Judgement, body: SagaProgress | SagaEnded, seq: int, reply_to: str) -> Outgoing:
    message_id = f"{judgement.saga_id}:{seq}:{body.kind}"
    message = answer(body, reply_to, message_id=message_id, correlation_id=str(judgement.saga_id))
    return Outgoing(judgement.saga_id, message, required=False)


def _still_true(state: SagaState, effect: NotifyEnd | NotifyParked) -> bool:
    """An end that the same batch, or one since, overtook is not told: what comes after it will be."""
    if isinstance(effect, NotifyEnd):
        return state.status is effect.status
    return state.parked_reason is not None


def ended(saga_id: uuid.UUID, state: SagaState, seq: int) -> SagaEnded:
    """How a saga ended, or that it is parked."""
    return SagaEnded(
        saga_id=saga_id,
        saga=state.name,
        seq=seq,
        status=state.status.value,
        context=state.context,
        failed_step=state.failure.step if state.failure is not None else None,
        error=ErrorOnWire.of(state.failure),
        parked_reason=state.parked_reason,
    )


def _event(body: SagaEnded, message_id: str, topology: Topology) -> Message:
    event = "parked" if body.parked_reason is not None else body.status.lower()
    return body.addressed(
        topology.events_exchange,
        f"saga.{body.saga}.{event}",
        message_id=f"{message_id}:event",
        correlation_id=str(body.saga_id),
        mandatory=False,
    )
