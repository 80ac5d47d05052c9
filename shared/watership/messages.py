"""The wire: one model for each message. Kinds and codes are stable strings; users of any language can speak them.

A message is persistent JSON. AMQP's ``type`` is its kind, ``message_id`` says what it is (so a duplicate has the same),
``correlation_id`` is the saga's id. Unknown fields are ignored, so that a newer sender can talk to an older reader.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from watership import codec
from watership.bus.protocol import Message
from watership.errors import InvalidPayload
from watership.machine.state import Action, Failure, Outcome

Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
JsonObject = dict[str, Any]

# The code of a reply that ran nothing since the saga's context does not fit the handler's class: no retry will mend it.
MISFIT = "misfit"
SHORT_BYTES_MAX = 255


class WireMessage(pydantic.BaseModel):
    """What every message has: a kind, and the version of its form."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")
    kind: ClassVar[str]
    v: Literal[1] = 1

    def to_body(self) -> bytes:
        """The message as JSON; what is None is left out."""
        return codec.dumps(_given(self), default=_given)

    def addressed(
        self,
        exchange: str,
        routing_key: str,
        *,
        message_id: str,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expiration_ms: int | None = None,
        headers: Mapping[str, Any] | None = None,
        mandatory: bool = True,
    ) -> Message:
        """The message as a bus publishes it: its body as JSON, its kind as AMQP's ``type``."""
        return Message(
            exchange=exchange,
            routing_key=routing_key,
            body=self.to_body(),
            type=self.kind,
            message_id=_short(message_id),
            correlation_id=correlation_id,
            reply_to=reply_to,
            expiration_ms=expiration_ms,
            headers=headers or {},
            mandatory=mandatory,
        )


def _short(message_id: str) -> str:
    """AMQP's ids have room for 255 bytes. A longer one, made of what a stranger sent, is told by its hash instead."""
    raw = message_id.encode("utf-8", "backslashreplace")
    return message_id if len(raw) <= SHORT_BYTES_MAX else f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _given(model: Any) -> dict[str, Any]:
    """A model's fields that are set. By hand: pydantic's own dump walks a context that is JSON already."""
    return {name: value for name, value in vars(model).items() if value is not None}


class StartSaga(WireMessage):
    """Client → ``start``: run a saga. ``plan`` is the hash that our client pins; others leave it out.

    ``progress`` False: the ``reply_to`` is told the saga's end, and none of its steps.
    """

    kind: ClassVar[str] = "start-saga"
    saga: Name
    saga_id: uuid.UUID
    context: JsonObject
    plan: Annotated[str, Field(max_length=32)] | None = None
    progress: bool = True

    @property
    def message_id(self) -> str:
        """What names its message: the same start has the same."""
        return f"{self.saga_id}:start"


class StepCommand(WireMessage):
    """Orchestrator → ``step.<queue>``: run one action of one step. ``timeout_ms`` bounds the run, not the wait.

    ``acted``: the saga's log has the step's act as done, so that what it changed is in ``context``.
    """

    kind: ClassVar[str] = "step-command"
    saga: Name
    saga_id: uuid.UUID
    step: Name
    action: Action
    attempt: Count
    generation: Count
    idempotency_key: str
    timeout_ms: Count
    context: JsonObject
    breaker: JsonObject | None = None
    acted: bool = False

    @property
    def message_id(self) -> str:
        """What names its message: the same attempt has the same, but for an undoing anew."""
        return f"{self.saga_id}:{self.step}:{self.action}:{self.attempt}:{self.generation}"


class ErrorOnWire(pydantic.BaseModel):
    """An error. ``lineage``: its code, then its wider ones; ``type_name`` is for people only."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")
    code: Annotated[str, Field(max_length=200)]
    type_name: Annotated[str, Field(max_length=200)] = ""
    message: Annotated[str, Field(max_length=4_000)] = ""
    lineage: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    retry_after_ms: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None

    @classmethod
    def of(cls, failure: Failure | None) -> ErrorOnWire | None:
        """The failure as it goes over the wire."""
        if failure is None:
            return None
        return cls(
            code=failure.code,
            type_name=failure.type_name,
            message=failure.message,
            lineage=failure.lineage,
            retry_after_ms=failure.retry_after_ms,
        )

    def failure(self, step: str | None) -> Failure:
        """The failure as the machine knows it."""
        lineage = self.lineage or (self.code,)
        return Failure(self.code, self.type_name, self.message, lineage, step, self.retry_after_ms)


class ReplyOutcome(StrEnum):
    """What a worker reports of a run. ``not_served``: it has no such step, and ran nothing."""

    DONE = Outcome.DONE.value
    FAILED = Outcome.FAILED.value
    UNKNOWN = Outcome.UNKNOWN.value
    NOT_SERVED = "not_served"


class EventOnWire(pydantic.BaseModel):
    """What a step emits: it goes to ``events`` under ``saga.<saga>.<name>``."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,100}$")]
    data: Any = None


class StepReply(WireMessage):
    """Worker → ``replies``: what one run came to. ``run`` names the run; ``redelivered`` repeats the command's flag.

    Of a ``verify``: done, failed (the act had no effect) or unknown. ``certain``: the outcome holds for every run of this
    action, however often it was delivered. Only a barrier can know.
    """

    kind: ClassVar[str] = "step-reply"
    saga_id: uuid.UUID
    step: Name
    action: Action
    attempt: Count
    run: Annotated[str, Field(min_length=1, max_length=64)]
    outcome: ReplyOutcome
    patch: JsonObject | None = None
    response: Any = None
    error: ErrorOnWire | None = None
    redelivered: bool = False
    certain: bool = False
    events: Annotated[tuple[EventOnWire, ...], Field(max_length=100)] | None = None

    @property
    def message_id(self) -> str:
        """What names its message: one for each run."""
        return f"{self.saga_id}:{self.step}:{self.action}:{self.attempt}:{self.run}"


class HandlerOnWire(pydantic.BaseModel):
    """A step that a worker serves. ``source`` tells two different handlers of one name apart."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")
    step: Name
    queue: Name
    source: Annotated[str, Field(min_length=1, max_length=500)]


class RegisterWorker(WireMessage):
    """Worker or client → ``control``: the plans that it knows and the steps that it serves; ``leaving``: no longer."""

    kind: ClassVar[str] = "register-worker"
    worker: Name
    plans: tuple[JsonObject, ...] = ()
    handlers: tuple[HandlerOnWire, ...] = ()
    leaving: bool = False


class RegisterAnswer(WireMessage):
    """Orchestrator → ``reply_to`` of a `RegisterWorker`: what it refused, a sentence each; empty: all is well."""

    kind: ClassVar[str] = "register-answer"
    refused: tuple[str, ...] = ()


class Signal(WireMessage):
    """Client → ``control``: what a saga waits for, or will wait for. The same ``signal_id`` again changes nothing."""

    kind: ClassVar[str] = "signal"
    saga_id: uuid.UUID
    name: Name
    signal_id: Annotated[str, Field(min_length=1, max_length=200)]
    data: Any = None


class SignalAnswer(WireMessage):
    """Orchestrator → ``reply_to`` of a `Signal`: it is kept, or why not."""

    kind: ClassVar[str] = "signal-answer"
    saga_id: uuid.UUID
    code: str | None = None
    refused: str | None = None


class StepEmitted(WireMessage):
    """Orchestrator → ``events``: what a step emitted. The same one may come more than once, with the same message id."""

    kind: ClassVar[str] = "step-emitted"
    saga: Name
    saga_id: uuid.UUID
    seq: int
    step: Name
    event: str
    data: Any = None


class SagaProgress(WireMessage):
    """Orchestrator → ``reply_to`` of a start: a step is done. ``seq`` is the log's number."""

    kind: ClassVar[str] = "saga-progress"
    saga_id: uuid.UUID
    seq: int
    step: Name
    response: Any = None
    patch: JsonObject | None = None


class SagaEnded(WireMessage):
    """Orchestrator → ``reply_to`` of a start, and ``events``: the saga ended, or (``parked_reason``) needs a person."""

    kind: ClassVar[str] = "saga-ended"
    saga_id: uuid.UUID
    saga: Name
    seq: int
    status: str
    context: JsonObject
    failed_step: str | None = None
    error: ErrorOnWire | None = None
    parked_reason: str | None = None


class SagaKnown(WireMessage):
    """Orchestrator → ``reply_to`` of a repeated start: the saga exists since before; ask ``admin`` where it stands.

    Its progress goes to the ``reply_to`` of its first start.
    """

    kind: ClassVar[str] = "saga-known"
    saga_id: uuid.UUID
    seq: int


class SagaRejected(WireMessage):
    """Orchestrator → ``reply_to`` of a start: no saga was made, and why. ``code`` is an error's stable code."""

    kind: ClassVar[str] = "saga-rejected"
    saga_id: uuid.UUID | None = None
    code: str
    reason: str


class AdminVerb(StrEnum):
    """What can be asked on the admin queue."""

    LIST = "list"
    SHOW = "show"
    RETRY = "retry"
    COMPENSATE = "compensate"
    LEDGER = "ledger"
    DEAD_LIST = "dead-list"
    DEAD_SHOW = "dead-show"
    DEAD_REQUEUE = "dead-requeue"
    DEAD_DISCARD = "dead-discard"
    PLANS_LIST = "plans-list"
    PLANS_SHOW = "plans-show"
    PLANS_USE = "plans-use"


class AdminRequest(WireMessage):
    """Operator → ``admin``. ``seq``: the newest log entry that its author saw; the verb is refused if the saga moved.

    ``everything``: of a list, what is settled too. ``saga``: a saga's name. ``plan``: a plan's hash, or its beginning.
    """

    kind: ClassVar[str] = "admin-request"
    verb: AdminVerb
    saga_id: uuid.UUID | None = None
    actor: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=2_000)] = ""
    seq: int | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 50
    status: str | None = None
    parked: bool | None = None
    letter_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    everything: bool = False
    saga: Name | None = None
    plan: Annotated[str, Field(max_length=32)] | None = None


class AdminAnswer(WireMessage):
    """Orchestrator → ``reply_to`` of an `AdminRequest`. ``code`` and ``error`` are set where it was refused."""

    kind: ClassVar[str] = "admin-answer"
    data: Any = None
    code: str | None = None
    error: str | None = None


KINDS: Mapping[str, type[WireMessage]] = {
    cls.kind: cls
    for cls in (
        StartSaga,
        StepCommand,
        StepReply,
        RegisterWorker,
        RegisterAnswer,
        Signal,
        SignalAnswer,
        StepEmitted,
        SagaProgress,
        SagaEnded,
        SagaKnown,
        SagaRejected,
        AdminRequest,
        AdminAnswer,
    )
}


def trace_of(headers: Mapping[str, Any]) -> str | None:
    """The W3C trace that a message belongs to, if its header can be one: it is stored, and sent on."""
    trace = headers.get("traceparent")
    return trace if isinstance(trace, str) and len(trace) <= 64 and trace.isascii() and trace.isprintable() else None


def read(kind: str | None, body: bytes) -> WireMessage:
    """A message from the wire. Raises `InvalidPayload` or `LimitExceeded`, saying what is wrong with it."""
    cls = KINDS.get(kind or "")
    if cls is None:
        raise InvalidPayload(f"a message of the type {kind!r}; known are {', '.join(sorted(KINDS))}")
    data = codec.decode(body, what=f"the {kind} message")
    if not isinstance(data, dict):
        raise InvalidPayload(f"the {kind} message must be a JSON object, it is a {type(data).__name__}")
    try:
        return cls.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in item['loc']) or 'it'}: {item['msg']}" for item in error.errors()]
        raise InvalidPayload(f"the {kind} message is malformed: {'; '.join(problems[:5])}") from error
