"""Dead letters: kept in a table, and judged by the machine where they still tell it something. Never republished.

A letter that the broker gave up on (a delivery limit, an expiry, a length limit) is judged by itself: a start or a reply
as if it had just arrived, a command that used up its deliveries as a run of unknown outcome, and so is a reply that we
refused because it cannot be read. What else we refused ourselves is judged again only when an operator says so, and a
second refusal is words in its row: so nothing goes round in circles.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from watership import codec
from watership.bus.gathering import Settling, is_part
from watership.bus.protocol import Delivery
from watership.errors import InvalidPayload, LimitExceeded, OperationRefused
from watership.messages import (
    AdminAnswer,
    AdminRequest,
    AdminVerb,
    ErrorOnWire,
    ReplyOutcome,
    StartSaga,
    StepCommand,
    StepReply,
    read,
    trace_of,
)
from watership_orchestrator.arrivals import Arrival, Mark, Shelf, Waiting
from watership_orchestrator.database import is_passing
from watership_orchestrator.engine import Engine
from watership_orchestrator.inbox import Inbox
from watership_orchestrator.ports import SagaStore
from watership_orchestrator.records import DeadLetter
from watership_orchestrator.refused_replies import unknown_run

log = logging.getLogger("watership.orchestrator")

DELIVERY_LIMIT, REJECTED, EXPIRED = "delivery_limit", "rejected", "expired"
OF_A_COMMAND = (DELIVERY_LIMIT, EXPIRED)
WORKER_KILLED, GIVEN_BACK = "worker_killed", "given_back"
STORE_RETRY_S = 1.0
HEADER_CHARS_MAX = 1_000
UNKNOWN_RUN = "x-watership-unknown-run"  # kept among the headers: the run that a refused reply is of


def letter_of(delivery: Delivery) -> DeadLetter:
    """What is kept of a dead letter, and whether the machine shall judge it. Whatever its headers are."""
    death = _last_death(delivery.headers)
    reason = _text(death.get("reason"), 100) or "unknown"
    kind = _text(delivery.type, 255) or ""
    headers = {_text(name, 200) or "": _json(value) for name, value in delivery.headers.items()}
    body = delivery.body
    if len(body) > codec.MESSAGE_BYTES_MAX:
        headers["x-watership-bytes"] = len(body)  # longer than any message of ours may be: its beginning will do
        body = body[: codec.MESSAGE_BYTES_MAX]
    queue = _text(death.get("queue"), 255) or delivery.queue
    headers.pop(UNKNOWN_RUN, None)  # ours alone
    run = None
    if kind == StepReply.kind and reason == REJECTED and queue == f"{delivery.queue.removesuffix('.dead')}.replies":
        run = unknown_run(delivery)
    if run is not None:
        headers[UNKNOWN_RUN] = run.to_body().decode()
    given_up = reason not in (REJECTED, "unknown")
    is_command = kind == StepCommand.kind
    return DeadLetter(
        queue=queue,
        reason=reason,
        kind=kind,
        message_id=_text((_own_id(kind, body) if is_part(delivery) else None) or delivery.message_id, 255),
        saga_id=_saga_id(delivery.correlation_id, kind, body),
        reply_to=_text(delivery.reply_to, 255),
        headers=codec.dumps(headers).decode(),
        body=body,
        judge=run is not None
        or (given_up and (kind in (StartSaga.kind, StepReply.kind) or (is_command and reason in OF_A_COMMAND))),
    )


def arrival_of(letter: DeadLetter) -> Arrival | str:
    """What the machine shall judge; or why there is nothing to judge."""
    headers = codec.loads(letter.headers)
    run = headers.get(UNKNOWN_RUN)
    try:
        message = read(letter.kind, run.encode() if run is not None else letter.body)
    except (InvalidPayload, LimitExceeded) as error:
        return f"it cannot be read: {error}"
    if isinstance(message, StepCommand):
        if letter.reason not in OF_A_COMMAND:
            return "a command is not judged: its saga's reaper sends it again when it is due"
        message = _may_have_run(message, letter)
    if not isinstance(message, StartSaga | StepReply):
        return f"a {message.kind} is not judged again: ask again"
    mark = None
    if letter.actor is not None:
        mark = Mark(letter.actor, "requeue", letter.actor_reason or "", f"dead:{letter.id}")
    return Arrival(
        message.saga_id,
        message,
        redelivered=True,
        reply_to=letter.reply_to,
        message_id=letter.message_id,
        traceparent=trace_of(headers),
        row=Waiting(Shelf.DEAD, letter.id),
        mark=mark,
        expired=letter.reason == EXPIRED and letter.kind == StepCommand.kind,
    )


def _may_have_run(command: StepCommand, letter: DeadLetter) -> StepReply:
    """A command that used up its deliveries: each of them may have begun a run, and none reported.

    One that expired was mostly never delivered, which is no outcome. But if it was answered, it was given back after
    that, and whoever had it next may have run it and never told.
    """
    death = _last_death(codec.loads(letter.headers))
    told_apart = (
        f"{letter.message_id}:{death.get('time')}:{death.get('count')}"  # the same death, kept twice, is one run
    )
    if letter.reason == EXPIRED:
        code, type_name = GIVEN_BACK, "GivenBack"
        words = "its command was answered, given back to the broker, and expired there: it may have run again"
    else:
        code, type_name = WORKER_KILLED, "WorkerKilled"
        words = "its command was delivered until the broker gave up: it ended every worker that ran it, or their links"
    error = ErrorOnWire(code=code, type_name=type_name, message=f"{words} (dead letter {letter.id})", lineage=(code,))
    return StepReply(
        saga_id=command.saga_id,
        step=command.step,
        action=command.action,
        attempt=command.attempt,
        run=f"dead-{hashlib.sha256(told_apart.encode()).hexdigest()[:16]}",
        outcome=ReplyOutcome.UNKNOWN,
        error=error,
        redelivered=True,
    )


class DeadLetters:
    """The dead letters of one namespace: kept, judged, and in an operator's hand."""

    def __init__(self, store: SagaStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine

    async def keep(self, deliveries: Sequence[Delivery]) -> None:
        """Keeps them. On return it is committed, and they may be acknowledged."""
        await self.keep_all([letter_of(delivery) for delivery in deliveries])

    async def keep_all(self, letters: Sequence[DeadLetter]) -> None:
        """The same of what is read already."""
        await self._store.keep_dead_letters(letters)

    async def judge_once(self, limit: int) -> int:
        """Judges what waits to be judged, oldest first; how many that was."""
        letters = await self._store.dead_letters(limit)
        await self._judge(letters)
        return len(letters)

    async def _judge(self, letters: Sequence[DeadLetter]) -> None:
        arrivals: list[Arrival] = []
        told: dict[Waiting, str] = {}
        for letter in letters:
            found = arrival_of(letter)
            if isinstance(found, Arrival):
                arrivals.append(found)
            else:
                told[Waiting(Shelf.DEAD, letter.id)] = found
        if told:
            await self._store.rows_done(told)
        if arrivals:
            result = await self._engine.process(arrivals)
            later = [
                arrival.row for arrival in (*result.again, *result.redeliver, *result.newer) if arrival.row is not None
            ]
            if later:  # locked elsewhere, or a newer orchestrator's; of those that are judged, it changes nothing
                await self._store.put_off_rows(later)

    async def operate(self, request: AdminRequest) -> AdminAnswer:
        """An operator's requeue or discard. Law 12: who and why stand in its row, and in the log of what it moved."""
        assert request.letter_id is not None, "checked where the request was read"
        letter_id, actor = request.letter_id, request.actor or "unknown"
        judged = "discarded" if request.verb is AdminVerb.DEAD_DISCARD else None
        if not await self._store.hand_on_dead_letter(letter_id, actor=actor, reason=request.reason, judged=judged):
            words = f"no dead letter {letter_id} waits for an operator: it is being judged, or there is none"
            return AdminAnswer(code=OperationRefused.code, error=words)
        if judged is None:
            letter = await self._store.dead_letter(letter_id)
            if letter is not None:
                await self._judge([letter])  # what cannot be judged now, a reaper judges later
        return AdminAnswer(data={"id": letter_id})


class DeadLetterIntake:
    """Takes what arrives on the queue of dead letters into the table, many in a transaction."""

    def __init__(self, letters: DeadLetters, settling: Settling, *, batch_size_max: int) -> None:
        self._letters = letters
        self._settling = settling
        self._batch_size_max = batch_size_max
        self._inbox = Inbox()

    def put(self, delivery: Delivery) -> None:
        """A dead letter arrived."""
        self._inbox.put(delivery)

    async def run(self) -> None:
        """Keeps and acknowledges, batch after batch. What it has in hand when it ends is delivered again."""
        while True:
            deliveries = await self._inbox.take(self._batch_size_max)
            try:
                kept = await self._keep(deliveries)
                await self._settling.ack(kept)
            except (
                Exception
            ):  # a bug here must not end the loop: without it, nobody would hear of dead letters any more
                log.exception("%d dead letters stay with the broker", len(deliveries))
                continue
            for delivery in kept:
                log.warning("a dead letter is kept: %s %s", delivery.type, delivery.message_id)

    async def _keep(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that are kept. One that no table takes stays with the broker, and holds up no other."""
        while True:
            try:
                await self._letters.keep(deliveries)
                return list(deliveries)
            except Exception as error:  # noqa: BLE001 - told apart here: the database's state, or one letter's own fault
                if not is_passing(error):
                    break
                log.warning("the database does not answer (%s); %d dead letters wait", error, len(deliveries))
                await asyncio.sleep(STORE_RETRY_S)
        if len(deliveries) == 1:
            log.error("a dead letter cannot be kept: %s %s", deliveries[0].type, deliveries[0].message_id)
            return []
        return [kept for delivery in deliveries for kept in await self._keep([delivery])]


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    return last if isinstance(last, Mapping) else {}


def _own_id(kind: str, body: bytes) -> str | None:
    """What came in a gathered message has the id that it would have had alone."""
    try:
        return getattr(read(kind, body), "message_id", None)
    except (InvalidPayload, LimitExceeded):
        return None


def _saga_id(correlation_id: str | None, kind: str, body: bytes) -> uuid.UUID | None:
    """By what it says itself; else by its envelope, which anybody may have written."""
    try:
        found = getattr(read(kind, body), "saga_id", None)
        if isinstance(found, uuid.UUID):
            return found
    except (InvalidPayload, LimitExceeded):
        pass
    try:
        return uuid.UUID(correlation_id)
    except (TypeError, ValueError):
        return None


def _text(value: Any, chars_max: int) -> str | None:
    """A text as Postgres takes it."""
    if value is None:
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
    return text.encode("utf-8", "replace").decode().replace("\0", "�")[:chars_max]


def _json(value: Any, depth: int = 0) -> Any:
    """A header's value as JSON. What AMQP has beyond that is told in words."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, Mapping) and depth < 5:
        return {_text(name, 200): _json(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple) and depth < 5:
        return [_json(item, depth + 1) for item in value[:100]]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _text(value, HEADER_CHARS_MAX)
