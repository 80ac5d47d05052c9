"""The one face of running sagas, in this process or through the distributed system."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Generic, Self

from watership.errors import InvalidPayload, ResultTimeout, UnknownSaga
from watership.execution import response_from_data
from watership.machine.state import Status
from watership.saga.compile import Definition, compile_saga
from watership.saga.models import ContextT, shape_of
from watership.saga.retry import RetryPolicy
from watership.saga.saga import SagaMap
from watership.saga.step import Remote, SagaStepResult, declared_types
from watership.saga.watch import Runner, SagaWatch, StepDone


@dataclasses.dataclass(frozen=True)
class SagaResult(Generic[ContextT]):
    """How a saga ended. ``status`` with ``parked_reason`` set: it needs a person, and is not undone.

    ``failed_step`` and ``error`` are set where a step failed; ``error`` is what ``stream`` would raise.
    """

    saga_id: uuid.UUID
    name: str
    status: Status
    context: ContextT
    failed_step: str | None = None
    error: Exception | None = None
    parked_reason: str | None = None

    @property
    def completed(self) -> bool:
        """Every step acted."""
        return self.status is Status.COMPLETED and self.parked_reason is None

    @property
    def compensated(self) -> bool:
        """Everything that may have acted is undone."""
        return self.status is Status.COMPENSATED and self.parked_reason is None


class SagaMediator:
    """Starts sagas and watches them. Made by `bootstrap`; cheap, and safe to share between tasks of one event loop."""

    def __init__(self, saga_map: SagaMap, runner: Runner, *, compensation_retry: RetryPolicy | None = None) -> None:
        self._runner = runner
        self._map = saga_map
        self._definitions = {
            saga: compile_saga(saga, default_compensation_retry=compensation_retry) for saga in saga_map.sagas()
        }
        self._runner.bind(self._definitions.values())

    def _definition_for(self, context: object) -> Definition:
        saga = self._map.saga_for(type(context))
        if saga is None:
            raise UnknownSaga(
                f"no saga is bound to {type(context).__name__}; bind one in sagas_mapper: "
                f"mapper.bind({type(context).__name__}, YourSaga)"
            )
        return self._definitions[saga]

    async def start(self, context: Any, saga_id: uuid.UUID | None = None) -> uuid.UUID:
        """Starts the saga that ``context`` is bound to, and returns its id once the start is durable.

        The same id with the same input again is the same saga. Raises `SagaConflict` on other input, `UnknownSaga`,
        `InvalidPayload`, `LimitExceeded`. In the distributed system a conflict shows when the result is asked for.
        """
        wanted = _id_of(saga_id)
        await self._runner.start(self._definition_for(context), context, wanted)
        return wanted

    async def stream(
        self, context: ContextT, saga_id: uuid.UUID | None = None
    ) -> AsyncGenerator[SagaStepResult[ContextT, Any], None]:
        """Runs the saga and yields each step's result as it is done; ``context`` shows what the steps changed.

        When a step fails, what acted is compensated, and then the step's error is raised. Raises `SagaParked` if a
        person is needed first: then not everything is undone. Leaving early changes nothing: the saga goes on.
        Called again with the same id, it tells the same saga from its first step.
        """
        definition = self._definition_for(context)
        wanted = _id_of(saga_id)
        watch = await self._runner.start(definition, context, wanted)
        shape = shape_of(type(context))
        whole = shape.dump(context)
        async for done in watch.steps():
            whole = done.context if done.context is not None else {**whole, **done.patch}
            shape.assign(context, whole, done.patch)
            yield step_result(definition, wanted, done)
        end = await watch.end()
        error = end.exception(wanted)
        if error is not None:
            raise error

    async def run(
        self, context: ContextT, saga_id: uuid.UUID | None = None, timeout_s: float | None = None
    ) -> SagaResult[ContextT]:
        """Runs the saga to its end. Does not raise for a saga that was compensated or parked: look at the result."""
        definition = self._definition_for(context)
        watch = await self._runner.start(definition, context, _id_of(saga_id))
        return await _result(watch, definition, timeout_s, type(context))

    async def result(self, saga_id: uuid.UUID, timeout_s: float | None = None) -> SagaResult[Any]:
        """Waits for the end of a saga that was started anywhere. Raises `SagaNotFound`, `ResultTimeout`."""
        by_name = {definition.plan.saga: definition for definition in self._definitions.values()}
        watch = await self._runner.find(_id_of(saga_id))
        return await _result(watch, by_name, timeout_s, None)

    async def close(self) -> None:
        """Closes connections and lets go of what runs here; recovery, or the orchestrator, goes on with it."""
        await self._runner.close()

    async def __aenter__(self) -> Self:
        await self._runner.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _id_of(saga_id: uuid.UUID | None) -> uuid.UUID:
    if saga_id is None:
        return uuid.uuid4()
    if not isinstance(saga_id, uuid.UUID):
        raise InvalidPayload(f"saga_id must be a uuid.UUID, it is {saga_id!r}")
    return saga_id


def step_result(definition: Definition, saga_id: uuid.UUID, done: StepDone) -> SagaStepResult[Any, Any]:
    """What ``stream`` yields for a step that is done."""
    if done.result is not None:
        return done.result
    step_type = definition.steps.get(done.step)
    if step_type is None:  # the saga runs on an older plan: a step that this process has no class for any more
        step_type = Remote(done.step)
    response = response_from_data(declared_types(step_type)[1], done.response)
    return SagaStepResult(response=response, step_type=step_type, saga_id=saga_id)


async def _result(
    watch: SagaWatch,
    definitions: Definition | dict[str, Definition],
    timeout_s: float | None,
    context_type: type[Any] | None,
) -> SagaResult[Any]:
    try:
        async with asyncio.timeout(timeout_s):
            end = await watch.end()
    except TimeoutError as error:
        raise ResultTimeout(
            f"saga {watch.saga_id} has not ended within {timeout_s} s; it goes on: ask again with result(saga_id)"
        ) from error
    definition = definitions if isinstance(definitions, Definition) else definitions[end.name]
    failure = end.failure
    return SagaResult(
        saga_id=watch.saga_id,
        name=definition.plan.saga,
        status=end.status,
        context=shape_of(context_type or definition.context_type).load(end.context),
        failed_step=failure.step if failure is not None else None,
        error=end.exception(watch.saga_id),
        parked_reason=end.parked_reason,
    )
