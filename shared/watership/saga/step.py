"""A step: `act`, and `compensate` that undoes it."""

from __future__ import annotations

import abc
import dataclasses
import re
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from watership.errors import ConfigurationError, InvalidPayload
from watership.saga.models import ContextT
from watership.values import value

if TYPE_CHECKING:
    from watership.saga.retry import RetryPolicy

ResponseT = TypeVar("ResponseT")


_EVENT_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


class Verified(StrEnum):
    """What `SagaStepHandler.verify` found out about an act whose outcome is unknown."""

    DONE = "done"
    NOT_DONE = "not_done"  # it had no effect, and will have none: nothing of it is on its way any more
    STILL_UNKNOWN = "still_unknown"


@dataclasses.dataclass(frozen=True, slots=True)
class StepEvent:
    """Something that a step tells the world, published once its step's transition is committed, at least once.

    Routing key ``saga.<saga's name>.<name>`` on the events exchange. ``data`` is JSON data.
    """

    name: str
    data: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _EVENT_NAME.fullmatch(self.name):
            raise InvalidPayload(
                f"an event's name has letters, digits, _, - and ., 100 at most; this one is {self.name!r}"
            )


@value
class SagaStepResult(Generic[ContextT, ResponseT]):
    """What one step came to. ``stream`` yields one for each step that is done. ``events``: what it tells the world."""

    response: ResponseT
    step_type: type[SagaStepHandler[ContextT, ResponseT]]
    with_error: bool = False
    error_message: str | None = None
    error_traceback: list[str] | None = None
    error_type: type[Exception] | None = None
    saga_id: uuid.UUID | None = None
    events: Sequence[StepEvent] = ()

    def of_saga(self, saga_id: uuid.UUID) -> SagaStepResult[ContextT, ResponseT]:
        """The same of this saga."""
        return SagaStepResult(
            self.response,
            self.step_type,
            self.with_error,
            self.error_message,
            self.error_traceback,
            self.error_type,
            saga_id,
            self.events,
        )


class SagaStepHandler(abc.ABC, Generic[ContextT, ResponseT]):
    """One step of a saga. The container makes a fresh one, in a fresh scope, for every command.

    ``act`` may be run again after a crash or a redelivery: pass ``current_step().idempotency_key`` on to whatever has
    the effect. Raise any exception to say "it had no effect"; raise `OutcomeUnknown` when you cannot know.

    Override ``verify`` where the step can find out what came of an act whose outcome is unknown.
    """

    #: The step's name on the wire and in the log; its class's name unless set. One within a namespace.
    name: ClassVar[str | None] = None
    #: Retries of ``act``; None: one attempt.
    retry: ClassVar[RetryPolicy | None] = None
    #: Retries of ``compensate``; None: as the saga says, else three in all, after 0, 1 and 2 seconds.
    compensation_retry: ClassVar[RetryPolicy | None] = None
    #: How long one run may take, in seconds; then its outcome is unknown.
    timeout_s: ClassVar[float] = 60.0
    #: How long an act may wait in its queue, in seconds, before it is sent again.
    queue_within_s: ClassVar[float] = 300.0
    #: The queue that its workers consume; its own, named after the step, unless set.
    queue: ClassVar[str | None] = None
    #: Exceptions, beside `OutcomeUnknown` and `TimeoutError`, that mean "it may have had its effect": httpx.ReadTimeout.
    unknown_errors: ClassVar[tuple[type[Exception], ...]] = ()
    #: Retries of ``verify``; None: five times in about half a minute.
    verify_retry: ClassVar[RetryPolicy | None] = None
    #: Whether an act that may have begun can be run again, with the same idempotency key. False: it is unknown instead.
    rerun: ClassVar[bool] = True

    @abc.abstractmethod
    async def act(self, context: ContextT) -> Any:
        """Does the step's work. Returns a `Response`, a `SagaStepResult` or None; may change the context."""

    async def compensate(self, context: ContextT) -> None:
        """Undoes what ``act`` may have done. Not overridden: the step has nothing to undo."""

    async def verify(self, context: ContextT) -> Verified:
        """Finds out what came of an act whose outcome is unknown: it may set the fields that the act would have set.

        `current_step().idempotency_key` is the act's. Whatever it raises means that it is still unknown. Not
        overridden: the act is tried again while attempts remain, else compensated.
        """
        return Verified.STILL_UNKNOWN

    def _generate_step_result(
        self,
        response: ResponseT,
        with_error: bool = False,
        error_message: str | None = None,
        error_traceback: list[str] | None = None,
        error_type: type[Exception] | None = None,
        *,
        events: Sequence[StepEvent] = (),
    ) -> SagaStepResult[ContextT, ResponseT]:
        """The result to return from ``act``. ``with_error`` marks it; only a raised exception fails a step."""
        return SagaStepResult(
            response, type(self), with_error, error_message, error_traceback, error_type, events=tuple(events)
        )


class RemoteStep(SagaStepHandler[Any, Any]):
    """A step whose code lives in another service. Made by `Remote`."""

    remote_compensable: ClassVar[bool] = True
    remote_verify: ClassVar[bool] = False

    async def act(self, context: Any) -> Any:
        """Never runs here."""
        raise ConfigurationError(
            f"step {step_name(type(self))} is Remote: its code lives in another service, so this process cannot run it"
        )


def Remote(  # noqa: N802 - it makes a class, and reads as one in a list of steps
    name: str,
    *,
    queue: str | None = None,
    response: type[Any] | None = None,
    retry: RetryPolicy | None = None,
    compensation_retry: RetryPolicy | None = None,
    timeout_s: float = 60.0,
    queue_within_s: float = 300.0,
    compensable: bool = True,
    verify: bool = False,
    verify_retry: RetryPolicy | None = None,
    rerun: bool = True,
) -> type[RemoteStep]:
    """A step whose code lives in another service: its class, for a saga's ``steps``.

    ``response`` is the type into which its response is parsed for ``stream``; None leaves it as JSON data.
    ``compensable`` and ``verify``: whether its handler has a ``compensate``, and a ``verify``.
    """
    return type(
        name,
        (RemoteStep,),
        {
            "__doc__": f"{name}, whose code lives in another service.",
            "name": name,
            "queue": queue,
            "retry": retry,
            "compensation_retry": compensation_retry,
            "timeout_s": timeout_s,
            "queue_within_s": queue_within_s,
            "verify_retry": verify_retry,
            "rerun": rerun,
            "remote_response": response,
            "remote_compensable": compensable,
            "remote_verify": verify,
        },
    )


def step_name(step: type[SagaStepHandler[Any, Any]]) -> str:
    """The step's name: its ``name``, else its class's."""
    return step.name or step.__name__


def step_source(step: type[SagaStepHandler[Any, Any]]) -> str:
    """Where its class is: what tells two handlers of one name apart."""
    return f"{step.__module__}:{step.__qualname__}"


def has_compensation(step: type[SagaStepHandler[Any, Any]]) -> bool:
    """Whether there is something to send: it overrides ``compensate``, or its code is elsewhere."""
    if issubclass(step, RemoteStep):
        return step.remote_compensable
    return step.compensate is not SagaStepHandler.compensate


def has_verification(step: type[SagaStepHandler[Any, Any]]) -> bool:
    """Whether an unknown act can be asked about: it overrides ``verify``, or its `Remote` says so."""
    if issubclass(step, RemoteStep):
        return step.remote_verify
    return step.verify is not SagaStepHandler.verify


def declared_types(step: type[SagaStepHandler[Any, Any]]) -> tuple[Any, Any]:
    """The step's context and response type, from ``SagaStepHandler[Context, Response]``.

    Where it does not say: None for the context (``Any`` would pass for a class), Any for the response.
    """
    remote = getattr(step, "remote_response", None)
    if remote is not None:
        return None, remote
    for cls in step.__mro__:
        for base in getattr(cls, "__orig_bases__", ()):
            origin, args = getattr(base, "__origin__", None), get_args(base)
            if isinstance(origin, type) and issubclass(origin, SagaStepHandler) and len(args) == 2:
                context, response = (Any if isinstance(arg, TypeVar) else arg for arg in args)
                return (None if context is Any else context), response
    return None, Any


@value
class StepRun:
    """The run that a handler is in. ``idempotency_key`` is the same for every attempt and every redelivery.

    ``generation`` is 1 for an act; a compensation that must be done again has a new one.
    """

    saga_id: uuid.UUID
    saga: str
    step: str
    action: str
    attempt: int
    idempotency_key: str
    generation: int = 1


_current: ContextVar[StepRun | None] = ContextVar("watership_current_step", default=None)


def current_step() -> StepRun:
    """The run that the calling handler is in. Raises `LookupError` outside a handler."""
    run = _current.get()
    if run is None:
        raise LookupError("current_step() is known only inside a handler's act or compensate")
    return run
