"""The error tree. Expected outcomes of a saga are values; what is raised says what happened, where, and what to do.

::

    WatershipError
    ├── DefinitionError            a saga, a step or a plan is written wrong: raised when the class is made
    ├── ConfigurationError         a setting, a missing extra, a database that is not migrated
    ├── LimitExceeded              a value crossed a limit: names the limit, the value and the setting
    ├── InvalidPayload             JSON that cannot be stored safely: NaN, NUL, an integer over 64 bits
    ├── StartRejected              a saga was refused at its start
    │   ├── SagaConflict           same id, other saga or other input
    │   └── UnknownSaga            nothing is bound to this context, or nobody registered this saga
    ├── SagaNotFound               no saga has this id
    │   └── SagaPruned             there was one; it ended, and was pruned
    ├── SignalRefused              the saga does not wait for this signal, or its data does not fit
    ├── SagaParked                 the saga needs a person; the reason is in words
    ├── SagaCompensated            recovery found it being undone, and finished that
    ├── SagaCancelled              a person, its deadline or a signal had the saga undone: no step of it failed
    ├── ResultTimeout              the saga has not ended within the time that the caller would wait
    ├── LeaseLost                  another process drives this saga now; this one wrote nothing
    ├── BrokerUnavailable          RabbitMQ cannot be reached, or refuses us
    ├── StoreUnavailable           the database cannot be reached, or refuses us
    ├── OperationRefused           an operator's verb does not fit where the saga stands
    ├── HandlerUnavailable         the container cannot make a step's handler: nothing ran
    ├── BarrierMisused             a handler's transaction and its barrier do not fit together
    └── StepError                  a business failure with a stable code: subclass it, raise it from a step
        ├── OutcomeUnknown         the step may have had its effect: raise it when you cannot know
        ├── ActRefused             an act came after its compensation: the barrier kept it out, it had no effect
        └── StepFailed             a failure that arrived over the wire, of no registered StepError

Every class has a stable ``code``: what goes over the wire and into ``--json``, never a Python class name.

`AlreadyHandled` stands beside the tree: it is a `BaseException`, and no error. A barrier leaves a handler by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

_STEP_ERRORS: dict[str, type[StepError]] = {}


class WatershipError(Exception):
    """The root of everything that Watership raises on purpose."""

    code: ClassVar[str] = "error"


class DefinitionError(WatershipError, TypeError):
    """A saga or a step is written wrong. Raised when the class is made; names the saga and the step."""

    code = "definition_error"


class ConfigurationError(WatershipError):
    """A setting is missing or wrong. The message names the setting and says what to do."""

    code = "configuration_error"


class LimitExceeded(WatershipError, ValueError):
    """A value crossed a limit. Names the limit, the value, and the setting that moves it where there is one."""

    code = "limit_exceeded"

    def __init__(self, what: str, *, value: int, limit: int, setting: str | None = None) -> None:
        self.what, self.value, self.limit, self.setting = what, value, limit, setting
        moved_by = f"the setting is {setting}" if setting else "this version has no setting for it"
        super().__init__(f"{what} is {value}, the limit is {limit}; {moved_by}")


class InvalidPayload(WatershipError, ValueError):
    """JSON that some store or reader would refuse or change: refused at the edge, with the field's name."""

    code = "invalid_payload"


class StartRejected(WatershipError):
    """A saga was refused at its start: nothing was written and nothing was sent."""

    code = "start_rejected"


class SagaConflict(StartRejected):
    """The id is taken by another saga, or by the same saga with other input."""

    code = "saga_conflict"


class UnknownSaga(StartRejected, LookupError):
    """No saga is bound to this context type, or no such saga was registered."""

    code = "unknown_saga"


class SagaNotFound(WatershipError, ValueError):
    """No saga has this id in this store and namespace."""

    code = "saga_not_found"


class SagaPruned(SagaNotFound):
    """The saga ended long ago and was pruned: its steps and its context are gone, its id stays taken."""

    code = "saga_pruned"


class SignalRefused(WatershipError):
    """The saga does not wait for this signal, does not wait for it any more, or its data does not fit."""

    code = "signal_refused"


class SagaParked(WatershipError, RuntimeError):
    """The saga stopped for a person. ``__cause__`` is the step's original error where there is one.

    It is *not* undone: `reason` says what stands in the way. ``watership retry`` goes on once that is mended.
    """

    code = "saga_parked"

    def __init__(self, message: str, *, reason: str = "") -> None:
        self.reason = reason
        super().__init__(message)


class SagaCompensated(WatershipError, RuntimeError):
    """Recovery found the saga being compensated, and finished that. It does not go forward again."""

    code = "saga_compensated"


class SagaCancelled(WatershipError):
    """The saga was undone though no step of it failed: by a person, by its deadline, or by a signal that said no or did
    not come. The message says which.
    """

    code = "saga_cancelled"


class ResultTimeout(WatershipError, TimeoutError):
    """The saga had not ended within ``timeout_s``. It goes on: ask again with ``result(saga_id)``."""

    code = "result_timeout"


class LeaseLost(WatershipError):
    """Another process drives this saga now. This one wrote nothing after that."""

    code = "lease_lost"


class BrokerUnavailable(WatershipError, ConnectionError):
    """RabbitMQ cannot be reached, or refuses us. The message says which, and where."""

    code = "broker_unavailable"


class StoreUnavailable(WatershipError, ConnectionError):
    """The database cannot be reached, or refuses us. The message says which, and where."""

    code = "store_unavailable"


class OperationRefused(WatershipError):
    """An operator's verb does not fit where the saga stands now. The message says where it stands."""

    code = "operation_refused"


class BarrierMisused(WatershipError, RuntimeError):
    """A handler's transaction and its barrier do not fit together. The message says how, and what to write instead."""

    code = "barrier_misused"


class StepError(WatershipError):
    """A business failure. Subclass it with a ``code`` of your own and raise it from ``act``.

    The code is what other services and the log see; the subclass is registered by it, so that a client in another
    process that imports the subclass gets the same class back::

        class CardDeclined(StepError):
            code = "card_declined"
    """

    code = "step_error"
    #: Seconds before which no further attempt shall begin, on the class or on the instance; None: as the retry policy says.
    retry_after_s: float | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            _STEP_ERRORS[cls.code] = cls


class OutcomeUnknown(StepError):
    """The step may have had its effect. Raise it when you cannot know; what may have acted is undone."""

    code = "outcome_unknown"


class ActRefused(StepError):
    """An act came after its compensation, and the barrier kept it out: no run of it had an effect that stands."""

    code = "act_refused"


class StepFailed(StepError):
    """A step failed in another process, with an error whose code no `StepError` of this process has."""

    code = "step_failed"

    def __init__(self, code: str, type_name: str, message: str) -> None:
        self.code = code  # type: ignore[misc]  # the instance tells the code that came over the wire
        self.type_name, self.message = type_name, message
        super().__init__(f"{type_name}: {message}" if message else type_name)


class HandlerUnavailable(WatershipError):
    """The container could not make a step's handler: nothing ran. A worker hands its command back, to be tried later."""

    code = "handler_unavailable"


class AlreadyHandled(BaseException):
    """A barrier's way out of a handler that must not run: what is answered instead was decided by an earlier run.

    A `BaseException`, so that a handler's ``except Exception`` does not take it for a failure of its own. Let it pass.
    ``outcome``: done, failed or unknown. ``patch``, ``response`` and ``events`` are JSON data, as they were stored; ``error``
    says why where the outcome is not done. ``certain``: the outcome speaks for every run of this action, not for one alone.
    """

    def __init__(
        self,
        outcome: str,
        *,
        patch: dict[str, Any] | None = None,
        response: Any = None,
        events: Sequence[dict[str, Any]] = (),
        error: WatershipError | None = None,
        certain: bool = False,
    ) -> None:
        self.outcome, self.patch, self.response, self.events = outcome, patch, response, tuple(events)
        self.error, self.certain = error, certain
        super().__init__(f"already handled: {outcome}")


def step_error_for(code: str, type_name: str, message: str) -> StepError:
    """The registered `StepError` subclass of ``code``, made with ``message``; else `StepFailed`."""
    known = _STEP_ERRORS.get(code)
    if known is None or known is StepFailed:
        return StepFailed(code, type_name, message)
    try:
        return known(message)
    except TypeError:  # its constructor wants more than a message
        return StepFailed(code, type_name, message)


def error_code(error: type[BaseException]) -> str:
    """The stable name of an exception class: its code if it is a `StepError`, else its class's name."""
    return error.code if issubclass(error, StepError) else error.__name__


def error_lineage(error: type[BaseException]) -> tuple[str, ...]:
    """The names of the class and of those that it derives from, most specific first, up to ``Exception``."""
    classes = [cls for cls in error.__mro__ if issubclass(cls, Exception) and cls is not WatershipError]
    return tuple(dict.fromkeys(error_code(cls) for cls in classes))


_TOLD = {
    cls.code: cls
    for cls in (
        SagaConflict,
        SagaNotFound,
        SagaPruned,
        SignalRefused,
        InvalidPayload,
        OperationRefused,
        StartRejected,
        StoreUnavailable,
    )
}


def error_told(code: str | None, words: str, otherwise: type[WatershipError] = WatershipError) -> WatershipError:
    """The error that another process told by its code."""
    return _TOLD.get(code or "", otherwise)(words)
