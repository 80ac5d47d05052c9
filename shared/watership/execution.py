"""Runs one command on one handler: scope, time limit, circuit breaker, and what it came to as an outcome.

It must never know a broker, a store or the saga's other steps.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pydantic

from watership import codec
from watership.adapters.circuit_breaker import CircuitBreaker
from watership.chance import SYSTEM_CHANCE, new_token
from watership.container import Container
from watership.errors import InvalidPayload, LimitExceeded, OutcomeUnknown, error_code, error_lineage
from watership.machine.state import Action, Failure, Outcome
from watership.response import Response
from watership.saga.compile import Step
from watership.saga.models import Shape, patch_between, shape_of
from watership.saga.step import SagaStepHandler, SagaStepResult, StepRun, Verified, _current

ERROR_MESSAGE_MAX = 2_000
CODE_MAX = 200
EVENTS_MAX = 100
RETRY_AFTER_S_MAX = 604_800


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One action of one step, as a worker is told it. ``context`` is the saga's whole context, JSON data."""

    saga_id: uuid.UUID
    saga: str
    step: str
    action: Action
    attempt: int
    idempotency_key: str
    context: Mapping[str, Any]
    timeout_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Hands:
    """What a command is run with: the handler's class, how its context is made, its breaker.

    ``build_context`` None: by the context class, which is ``context_type``.
    """

    handler: Step
    context_type: type[Any]
    container: Container
    breaker: CircuitBreaker | None = None
    build_context: Callable[[dict[str, Any]], Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """What one run came to. ``error`` and ``result`` are this process's objects; the rest can go over the wire.

    ``misfit``: the context no longer fits the handler's class, and nothing ran.
    """

    run: str
    outcome: Outcome
    patch: dict[str, Any] | None = None
    response: Any = None
    failure: Failure | None = None
    error: Exception | None = None
    result: SagaStepResult[Any, Any] | None = None
    events: tuple[dict[str, Any], ...] = ()
    misfit: str | None = None


async def execute(command: Command, hands: Hands, chance: random.Random = SYSTEM_CHANCE) -> Execution:
    """Runs the command once. Raises only what is not an `Exception`: a real cancellation, an exit."""
    run = new_token(chance)
    token = _current.set(
        StepRun(
            command.saga_id,
            command.saga,
            command.step,
            command.action.value,
            command.attempt,
            command.idempotency_key,
        )
    )
    try:
        return await _execute(run, command, hands)
    except Exception as error:  # noqa: BLE001 - whatever is left: without an outcome, a command is never acknowledged
        return _failed(run, command, error, Outcome.UNKNOWN)
    finally:
        _current.reset(token)


async def _execute(run: str, command: Command, hands: Hands) -> Execution:
    try:
        context = _build_context(command, hands)
        shape = shape_of(type(context))
        before = shape.dump(context)
    except Exception as error:  # noqa: BLE001 - the user's builder may raise anything; nothing ran yet
        return _misfit(run, command, hands, error)
    try:
        value = await _run_handler(command, hands, context)
    except Exception as error:  # noqa: BLE001 - a handler may raise anything: that is how it says "failed"
        unknown = command.action is Action.VERIFY or _may_have_acted(error, hands)
        outcome = Outcome.UNKNOWN if unknown else Outcome.FAILED
        patch = _patch_if_possible(command, shape, before, context) if outcome is Outcome.UNKNOWN else None
        return _failed(run, command, error, outcome, patch)
    # From here the handler has run: whatever is wrong with what it left behind, it may have had its effect.
    patch = None
    try:
        patch = _checked_patch(command, shape, before, context)
        if command.action is Action.VERIFY:
            return Execution(run, _found(command, value), patch or None)
        result = _result_of(command, hands.handler, value)
        response = _response_to_data(command, result)
        events = _events_to_data(command, result)
    except (InvalidPayload, LimitExceeded, TypeError) as error:
        return _failed(run, command, error, Outcome.UNKNOWN, patch)
    return Execution(run, Outcome.DONE, patch or None, response, result=result, events=events)


def _may_have_acted(error: Exception, hands: Hands) -> bool:
    """An exception says that the step had no effect, but for those that say that nobody knows."""
    return isinstance(error, (OutcomeUnknown, TimeoutError, *hands.handler.unknown_errors))


def _found(command: Command, value: object) -> Outcome:
    """What a verification says of its act."""
    if not isinstance(value, Verified):
        raise TypeError(
            f"verify of step {command.step} returned a {type(value).__name__}; return Verified.DONE, Verified.NOT_DONE "
            f"or Verified.STILL_UNKNOWN"
        )
    if value is Verified.DONE:
        return Outcome.DONE
    return Outcome.FAILED if value is Verified.NOT_DONE else Outcome.UNKNOWN


def _build_context(command: Command, hands: Hands) -> Any:
    if hands.build_context is not None:
        return hands.build_context(dict(command.context))
    return shape_of(hands.context_type).load(command.context)


async def _run_handler(command: Command, hands: Hands, context: Any) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(command.timeout_ms / 1000) as limit:
            try:
                async with hands.container.scope() as scope:
                    handler = await scope.resolve(hands.handler)
                    return await _method(handler, command.action)(context)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if limit.expired() or limit.when() is None or (task is not None and task.cancelling()):
                    raise
                # Nobody cancelled us: a library inside the handler raised it (a stuck broker link does).
                raise OutcomeUnknown(f"step {command.step} ended by a CancelledError that nobody asked for") from error

    guarded: Callable[[], Awaitable[Any]] = run
    try:
        if hands.breaker is not None and command.action is Action.ACT:
            return await hands.breaker.call(command.step, guarded)
        return await guarded()
    except TimeoutError as error:
        if not str(error):
            raise TimeoutError(
                f"step {command.step} of saga {command.saga_id} did not end within {command.timeout_ms / 1000:g} s"
            ) from error
        raise


def _method(handler: SagaStepHandler[Any, Any], action: Action) -> Callable[[Any], Awaitable[Any]]:
    if action is Action.ACT:
        return handler.act
    return handler.compensate if action is Action.COMPENSATE else handler.verify


def _checked_patch(command: Command, shape: Shape[Any], before: dict[str, Any], context: Any) -> dict[str, Any]:
    patch = patch_between(before, shape.dump(context))
    if patch:
        whole = {**command.context, **patch}
        codec.encode_context(whole, what=f"saga {command.saga_id}, step {command.step}: the context")
    return patch


def _patch_if_possible(
    command: Command, shape: Shape[Any], before: dict[str, Any], context: Any
) -> dict[str, Any] | None:
    try:
        return _checked_patch(command, shape, before, context) or None
    except (InvalidPayload, LimitExceeded):
        return None


def _result_of(command: Command, handler: Step, value: Any) -> SagaStepResult[Any, Any]:
    if isinstance(value, SagaStepResult):
        return dataclasses.replace(value, saga_id=command.saga_id)
    if value is None or isinstance(value, Response):
        return SagaStepResult(response=value, step_type=handler, saga_id=command.saga_id)
    raise TypeError(
        f"{command.action} of step {command.step} returned a {type(value).__name__}; "
        f"return a Response, a SagaStepResult or None"
    )


def _response_to_data(command: Command, result: SagaStepResult[Any, Any]) -> Any:
    response = result.response
    if response is None:
        return None
    if isinstance(response, pydantic.BaseModel):
        data: Any = response.model_dump(mode="json")
    else:
        try:
            data = _adapter_of(type(response)).dump_python(response, mode="json")
        except (pydantic.errors.PydanticUserError, ValueError, TypeError) as error:
            raise TypeError(f"the response of step {command.step} cannot be written as JSON: {error}") from error
    codec.encode_response(data, what=f"saga {command.saga_id}, step {command.step}: the response")
    return data


def _events_to_data(command: Command, result: SagaStepResult[Any, Any]) -> tuple[dict[str, Any], ...]:
    if not result.events:
        return ()
    if len(result.events) > EVENTS_MAX:
        what = f"saga {command.saga_id}, step {command.step}: its events"
        raise LimitExceeded(what, value=len(result.events), limit=EVENTS_MAX)
    found = []
    for event in result.events:
        data = event.data.model_dump(mode="json") if isinstance(event.data, pydantic.BaseModel) else event.data
        codec.encode_response(data, what=f"saga {command.saga_id}, step {command.step}: the event {event.name}")
        found.append({"name": event.name, "data": data})
    return tuple(found)


_adapters: dict[Any, pydantic.TypeAdapter[Any]] = {}


def _adapter_of(cls: Any) -> pydantic.TypeAdapter[Any]:
    adapter = _adapters.get(cls)
    if adapter is None:
        adapter = _adapters[cls] = pydantic.TypeAdapter(cls)
    return adapter


def response_from_data(declared: Any, data: Any) -> Any:
    """A response from the wire, as the handler's declared type; as JSON data where that does not say or not fit."""
    if data is None or declared is Any or declared is None or declared is Response:
        return Response() if declared is Response and data == {} else data
    try:
        return _adapter_of(declared).validate_python(data)
    except pydantic.ValidationError:
        return data


def _misfit(run: str, command: Command, hands: Hands, error: Exception) -> Execution:
    """Nothing ran: this process cannot make the handler's context of the saga's."""
    failed = _failed(run, command, error, Outcome.FAILED)
    if isinstance(error, InvalidPayload):
        reason = (
            f"the saga's context no longer fits {hands.context_type.__name__}, the context of step {command.step} "
            f"({_words(error)}): deploy a worker whose class takes it"
        )
        return dataclasses.replace(failed, misfit=reason)
    return failed


def _failed(
    run: str, command: Command, error: Exception, outcome: Outcome, patch: dict[str, Any] | None = None
) -> Execution:
    failure = Failure(
        code=str(error_code(type(error)))[:CODE_MAX],
        type_name=type(error).__name__[:CODE_MAX],
        message=_words(error),
        lineage=tuple(str(code)[:CODE_MAX] for code in error_lineage(type(error))),
        step=command.step,
        retry_after_ms=_retry_after_ms(error),
    )
    error.add_note(f"in {command.action} of step {command.step}, saga {command.saga} {command.saga_id}")
    return Execution(run, outcome, patch, failure=failure, error=error)


def _retry_after_ms(error: Exception) -> int | None:
    """What an error that carries ``retry_after_s`` asks for."""
    seconds = getattr(error, "retry_after_s", None)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= RETRY_AFTER_S_MAX:
        return None
    return round(seconds * 1000)


def _words(error: Exception) -> str:
    """The error's message, as it can be stored. An exception's own ``__str__`` may fail as well."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - see above
        text = "its message cannot be read"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:ERROR_MESSAGE_MAX]
