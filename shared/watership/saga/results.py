"""What a caller gets of a saga: each step's result, and how it ended."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Generic

from watership.errors import ResultTimeout, UnknownSaga
from watership.machine.state import Status
from watership.saga.compile import Definition
from watership.saga.models import ContextT, shape_of
from watership.saga.run import response_from_data
from watership.saga.step import Remote, SagaStepResult, declared_types
from watership.saga.watch import SagaEnd, SagaWatch, StepDone
from watership.values import value


@value
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


def step_result(definition: Definition, saga_id: uuid.UUID, done: StepDone) -> SagaStepResult[Any, Any]:
    """What ``stream`` yields for a step that is done."""
    if done.result is not None:
        return done.result
    step_type = definition.steps.get(done.step)
    if step_type is None:  # the saga runs on an older plan: a step that this process has no class for any more
        step_type = Remote(done.step)
    response = response_from_data(declared_types(step_type)[1], done.response)
    return SagaStepResult(response=response, step_type=step_type, saga_id=saga_id)


def signals_between(definition: Definition, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The fields of the context that signals filled between these two, with their data."""
    if not definition.plan.waits:
        return {}
    fields = {wait.into for wait in definition.plan.waits.values() if wait.into is not None}
    return {field: after[field] for field in fields if field in after and before.get(field) != after[field]}


async def _end_within(watch: SagaWatch, timeout_s: float) -> SagaEnd:
    try:
        async with asyncio.timeout(timeout_s):
            return await watch.end()
    except TimeoutError as error:
        raise ResultTimeout(
            f"saga {watch.saga_id} has not ended within {timeout_s} s; it goes on: ask again with result(saga_id)"
        ) from error


async def result_of(
    watch: SagaWatch,
    definitions: Definition | dict[str, Definition],
    timeout_s: float | None,
    context_type: type[Any] | None,
) -> SagaResult[Any]:
    """Waits for a saga's end, at most ``timeout_s``. ``definitions``: its own, or all that it may be of, by name."""
    end = await (watch.end() if timeout_s is None else _end_within(watch, timeout_s))
    definition = definitions if isinstance(definitions, Definition) else definitions.get(end.name)
    if definition is None:
        raise UnknownSaga(f"saga {watch.saga_id} belongs to {end.name}, and no saga of that name is bound here")
    failure = end.failure
    return SagaResult(
        saga_id=watch.saga_id,
        name=definition.plan.saga,
        status=end.status,
        context=shape_of(context_type or definition.context_type).load_still(end.context)[0],
        failed_step=failure.step if failure is not None else None,
        error=end.exception(watch.saga_id),
        parked_reason=end.parked_reason,
    )
