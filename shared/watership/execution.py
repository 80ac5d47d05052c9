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

from watership import codec
from watership.adapters.circuit_breaker import CircuitBreaker
from watership.chance import SYSTEM_CHANCE, new_token
from watership.container import Container, PlainContainer, Scope, built
from watership.errors import (
    AlreadyHandled,
    BarrierMisused,
    ConfigurationError,
    HandlerUnavailable,
    InvalidPayload,
    LimitExceeded,
    OutcomeUnknown,
)
from watership.failing import failure_of, words_of
from watership.machine.events import StepReplied
from watership.machine.state import ACT, COMPENSATE, DONE, FAILED, UNKNOWN, VERIFY, Action, Failure, Outcome
from watership.response import Response
from watership.saga.compile import Step
from watership.saga.models import shape_of
from watership.saga.run import Block, HandlerRun, _run, response_from_data
from watership.saga.step import SagaStepHandler, SagaStepResult, StepRun, Verified, _current, declared_types
from watership.stepping import Begun, Limited
from watership.values import value


@value
class Command:
    """One action of one step, as a worker is told it. ``context`` is the saga's whole context, JSON data.

    ``acted``: the saga's log has the step's act as done, so that what it changed is in ``context``.
    """

    saga_id: uuid.UUID
    saga: str
    step: str
    action: Action
    attempt: int
    idempotency_key: str
    context: Mapping[str, Any]
    timeout_ms: int
    generation: int = 1
    acted: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Hands:
    """What a command is run with: the handler's class, how its context is made, its breaker.

    ``build_context`` None: by the context class, which is ``context_type``. ``barrier``: the type of the session, from the
    command's scope, in whose transaction the handler runs behind the barrier; None: the handler sees to that itself.
    """

    handler: Step
    context_type: type[Any]
    container: Container
    breaker: CircuitBreaker | None = None
    build_context: Callable[[dict[str, Any]], Any] | None = None
    barrier: type[Any] | None = None


def checked_barrier(barrier: type[Any] | None, di_container: object | None) -> type[Any] | None:
    """The session's type, where it can be had. Raises `ConfigurationError` if nothing could make one."""
    if barrier is None:
        return None
    if not isinstance(barrier, type):
        raise ConfigurationError(
            f"barrier is a {type(barrier).__name__}; pass the session's type: barrier=AsyncSession"
        )
    if di_container is None:
        raise ConfigurationError(
            f"barrier={barrier.__name__} needs di_container: the handler and the barrier share the {barrier.__name__} that "
            f"it makes for each command"
        )
    return barrier


@value
class Execution:
    """What one run came to. ``error`` and ``result`` are this process's objects; the rest can go over the wire.

    ``result`` None: it has nothing to it that ``response`` does not say.
    ``certain``: a barrier vouches that the outcome holds for every run of this action, whatever was delivered twice.
    ``misfit``: the context no longer fits the handler's class, and nothing ran.
    """

    run: str
    outcome: Outcome
    patch: dict[str, Any] | None = None
    response: Any = None
    failure: Failure | None = None
    error: Exception | None = None
    result: SagaStepResult[Any, Any] | None = None
    certain: bool = False
    events: tuple[dict[str, Any], ...] = ()
    misfit: str | None = None

    def event(self, step: str, action: Action, attempt: int) -> StepReplied:
        """The run as the machine hears of it, in the process that it was in."""
        return StepReplied(
            step,
            action,
            attempt,
            self.run,
            self.outcome,
            self.patch,
            self.response,
            self.failure,
            False,
            False,
            self.certain,
            self.events,
        )


async def execute(
    command: Command,
    hands: Hands,
    chance: random.Random = SYSTEM_CHANCE,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Execution:
    """Runs the command once. Raises only what is not an `Exception`: a real cancellation, an exit. ``loop``: this one."""
    run = new_token(chance)
    step = StepRun(
        command.saga_id,
        command.saga,
        command.step,
        str(command.action),
        command.attempt,
        command.idempotency_key,
        command.generation,
    )
    token, running = _current.set(step), None
    try:
        try:
            inside = _inside(step, command, hands)
        except Exception as error:  # noqa: BLE001 - the user's builder may raise anything; nothing ran yet
            return _misfit(run, command, hands, error)
        running = _run.set(inside)
        try:
            limited = Limited(command.timeout_ms / 1000, loop)
            if hands.breaker is None or command.action is not ACT:
                begun = limited.begin(_handled(command, hands, inside, limited))
                value = await limited.rest(begun) if type(begun) is Begun else begun
            else:
                value = await hands.breaker.call(
                    command.step, lambda: limited.run(_handled(command, hands, inside, limited))
                )
        except Exception as error:  # noqa: BLE001 - a handler may raise anything: that is how it says "failed"
            return _raised(run, command, hands.handler, inside, error)
        finally:
            if inside.block is not None:
                inside.block.abandoned = True
        return _ended(run, command, hands.handler, inside, value)
    except Exception as error:  # noqa: BLE001 - whatever is left: without an outcome, a command is never acknowledged
        return _failed(run, command, error, UNKNOWN)
    finally:
        if running is not None:
            _run.reset(running)
        _current.reset(token)


def _inside(step: StepRun, command: Command, hands: Hands) -> HandlerRun:
    if hands.build_context is not None:
        context = hands.build_context(codec.copied(dict(command.context)))
        shape = shape_of(type(context))
        still = shape.still(context)
    else:
        shape = shape_of(hands.context_type)
        context, still = shape.load_still(command.context)
    return HandlerRun.of(step, context, shape, command.context, still, acted=command.acted)


def _raised(run: str, command: Command, handler: Step, inside: HandlerRun, error: Exception) -> Execution:
    if inside.handled is not None:
        return _already_handled(run, command, handler, inside.handled)
    if isinstance(error, TimeoutError) and not str(error):
        within = f"within {command.timeout_ms / 1000:g} s"
        passed = TimeoutError(f"step {command.step} of saga {command.saga_id} did not end {within}")
        passed.__cause__, error = error, passed
    unknown = command.action is VERIFY or _may_have_acted(error, inside, handler)
    outcome = UNKNOWN if unknown else FAILED
    patch = inside.patch_if_possible() if outcome is UNKNOWN else None
    return _failed(run, command, error, outcome, patch)


def _ended(run: str, command: Command, handler: Step, inside: HandlerRun, value: Any) -> Execution:
    """The handler returned: whatever is wrong with what it left behind, it may have had its effect."""
    if inside.handled is not None:
        return _already_handled(run, command, handler, inside.handled)
    block = inside.block
    uncommitted = inside.uncommitted() if block is not None or inside.block_error is not None else None
    if uncommitted is not None:
        said, cause = uncommitted
        caused = f" ({type(cause).__name__}: {words_of(cause)})" if cause is not None else ""
        error = BarrierMisused(f"{inside.where}: the handler returned, but {said}{caused}")
        error.__cause__ = cause
        if _may_have_acted(cause or error, inside, handler):
            return _failed(run, command, error, UNKNOWN, inside.patch_if_possible())
        return _failed(run, command, error, FAILED)
    try:
        patch = inside.patch()
        if block is not None and block.ended and patch != block.patch:
            names = {*patch, *block.patch}
            changed = sorted(name for name in names if patch.get(name) != block.patch.get(name)) or sorted(names)
            raise BarrierMisused(
                f"{inside.where}: the context was changed after the barrier's block ({', '.join(changed)}), and a "
                f"duplicate would not know of it; change the context inside the block"
            )
        if command.action is VERIFY:
            return Execution(run, _found(command, value), patch or None)
        if value is None and block is None:
            return Execution(run, DONE, patch or None)
        result = _result_of(command, handler, value)
        events = inside.events_data(result.events)
        if block is not None and block.ended:
            events = _told(inside, block, events)
            result = dataclasses.replace(result, events=block.events)
        if block is not None and block.answers:
            result, response = dataclasses.replace(result, response=block.answer), block.response
        else:
            response = inside.response_data(result.response)
        inside.check_reply(patch, response, events)
    except (BarrierMisused, InvalidPayload, LimitExceeded, TypeError) as error:
        return _failed(run, command, error, UNKNOWN, inside.patch_if_possible())
    return Execution(run, DONE, patch or None, response, result=result, events=events)


def _told(inside: HandlerRun, block: Block, returned: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The events of a run behind a barrier: those that its duplicates tell, too."""
    if returned and returned != block.told:
        raise BarrierMisused(
            f"{inside.where}: events were returned that its barrier's block does not know ("
            f"{', '.join(event['name'] for event in returned)}), so that a duplicate would not tell them; inside the "
            f"block, set block.events"
        )
    return block.told


def _found(command: Command, value: object) -> Outcome:
    """What a verification says of its act."""
    if not isinstance(value, Verified):
        raise TypeError(
            f"verify of step {command.step} returned a {type(value).__name__}; return Verified.DONE, Verified.NOT_DONE "
            f"or Verified.STILL_UNKNOWN"
        )
    if value is Verified.DONE:
        return DONE
    return FAILED if value is Verified.NOT_DONE else UNKNOWN


def _may_have_acted(error: BaseException, inside: HandlerRun, handler: Step) -> bool:
    """An exception says that the step had no effect, but for those that say that nobody knows; so does a cancellation."""
    # A commit that was begun may have taken place, whatever was raised by it or after it.
    in_doubt = inside.block is not None and inside.block.ended and inside.block.committing
    in_doubt = in_doubt or not isinstance(error, Exception)
    return in_doubt or isinstance(error, (OutcomeUnknown, TimeoutError, *handler.unknown_errors))


def _already_handled(run: str, command: Command, handler: Step, handled: AlreadyHandled) -> Execution:
    """The answer that an earlier run of the same action left behind the barrier."""
    outcome = Outcome(handled.outcome)
    if handled.error is not None:
        refused = _failed(run, command, handled.error, outcome, handled.patch)
        return dataclasses.replace(refused, certain=handled.certain)
    response = response_from_data(declared_types(handler)[1], handled.response)
    result = SagaStepResult(response=response, step_type=handler, saga_id=command.saga_id)
    return Execution(
        run, outcome, handled.patch, handled.response, result=result, certain=handled.certain, events=handled.events
    )


async def _handled(command: Command, hands: Hands, inside: HandlerRun, limited: Limited) -> Any:
    """Runs the handler in a scope of its own, and sees what its end means."""
    try:
        if type(hands.container) is PlainContainer and hands.barrier is None:  # nothing to open, await or close
            return await _method(command, hands.handler, _built(command, hands.handler))(inside.context)
        async with hands.container.scope() as scope:
            return await _call(command, hands, inside, scope)
    except (AlreadyHandled, BaseExceptionGroup):  # a group: the handler has a TaskGroup around its barrier
        if inside.handled is None:
            raise
        return None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if limited.expired or (task is not None and task.cancelling()):
            raise
        # Nobody cancelled us: a library inside the handler raised it (a stuck broker link does).
        raise OutcomeUnknown(f"step {command.step} ended by a CancelledError that nobody asked for") from error


async def _call(command: Command, hands: Hands, inside: HandlerRun, scope: Scope) -> Any:
    method = _method(command, hands.handler, await _made(command, hands.handler, scope))
    if hands.barrier is None or command.action is VERIFY:
        return await method(inside.context)
    from watership.barrier import run_behind  # with SQLAlchemy, which not every process needs

    async def answered() -> Any:
        value = await method(inside.context)
        result = _result_of(command, hands.handler, value)
        return value, result.response, result.events

    return await run_behind(await _session_of(scope, hands.barrier), answered)


async def _made(command: Command, kind: Step, scope: Scope) -> SagaStepHandler[Any, Any]:
    try:
        return await scope.resolve(kind)
    except Exception as error:
        raise _unavailable(command, kind, error) from error


def _built(command: Command, kind: Step) -> SagaStepHandler[Any, Any]:
    try:
        return built(kind)
    except Exception as error:
        raise _unavailable(command, kind, error) from error


def _unavailable(command: Command, kind: Step, error: Exception) -> HandlerUnavailable:
    return HandlerUnavailable(
        f"the container cannot make {kind.__name__}, the handler of step {command.step}: {type(error).__name__}: {error}"
    )


def _method(command: Command, kind: Step, handler: SagaStepHandler[Any, Any]) -> Callable[[Any], Awaitable[Any]]:
    try:
        if command.action is ACT:
            return handler.act
        return handler.compensate if command.action is COMPENSATE else handler.verify
    except AttributeError:
        raise HandlerUnavailable(
            f"the container gave a {type(handler).__name__} for {kind.__name__}, the handler of step {command.step}"
        ) from None


async def _session_of(scope: Scope, kind: type[Any]) -> Any:
    """The session of a command's scope. Raises `ConfigurationError` if the handler would get another one."""
    session = await scope.resolve(kind)
    if session is not await scope.resolve(kind):
        raise ConfigurationError(
            f"barrier={kind.__name__}: the container makes a new one each time that it is asked for one, so a handler's "
            f"changes would not be in the barrier's transaction; bind it in the scope of a command"
        )
    return session


def _result_of(command: Command, handler: Step, value: Any) -> SagaStepResult[Any, Any]:
    if isinstance(value, SagaStepResult):
        return value.of_saga(command.saga_id)
    if value is None or isinstance(value, Response):
        return SagaStepResult(response=value, step_type=handler, saga_id=command.saga_id)
    raise TypeError(
        f"{command.action} of step {command.step} returned a {type(value).__name__}; "
        f"return a Response, a SagaStepResult or None"
    )


def _misfit(run: str, command: Command, hands: Hands, error: Exception) -> Execution:
    """Nothing ran: this process cannot make the handler's context of the saga's."""
    failed = _failed(run, command, error, FAILED)
    if isinstance(error, InvalidPayload):
        reason = (
            f"the saga's context no longer fits {hands.context_type.__name__}, the context of step {command.step} "
            f"({words_of(error)}): deploy a worker whose class takes it"
        )
        return dataclasses.replace(failed, misfit=reason)
    return failed


def _failed(
    run: str, command: Command, error: Exception, outcome: Outcome, patch: dict[str, Any] | None = None
) -> Execution:
    failure = failure_of(error, command.step)
    error.add_note(f"in {command.action} of step {command.step}, saga {command.saga} {command.saga_id}")
    return Execution(run, outcome, patch, failure=failure, error=error)
