"""The one face of running sagas, in this process or through the distributed system."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from watership.chance import new_saga_id
from watership.errors import InvalidPayload, UnknownSaga
from watership.saga.compile import Definition, compile_saga
from watership.saga.models import ContextT, shape_of
from watership.saga.results import SagaResult, result_of, signals_between, step_result
from watership.saga.retry import RetryPolicy
from watership.saga.saga import SagaMap
from watership.saga.signals import make_signal
from watership.saga.step import SagaStepResult
from watership.saga.watch import Runner

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession


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

    async def start(
        self,
        context: Any,
        saga_id: uuid.UUID | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> uuid.UUID:
        """Starts the saga that ``context`` is bound to, and returns its id once the start is durable.

        With ``session``, the start is one row in that transaction of yours: if you commit, the saga starts soon after
        (`recover_every_s`; in the distributed system, a reaper's next look), and if you roll back, it never does.
        Nothing is sent. The session must be on the database that sagas live in: PostgreSQL in the distributed system,
        and the orchestrators' own. A start that turns out wrong then (its id is taken, its context does not fit) is in
        the ledger, or parked. `result` knows the saga once it was taken up.

        The same id with the same input again is the same saga. Raises `SagaConflict` on other input, `UnknownSaga`,
        `InvalidPayload`, `LimitExceeded`. In the distributed system a conflict shows when the result is asked for.
        """
        wanted, definition = _id_of(saga_id), self._definition_for(context)
        if session is not None:
            await self._runner.write_start(definition, context, wanted, session)
        else:
            await self._runner.start(definition, shape_of(type(context)).dump(context), wanted)
        return wanted

    async def stream(
        self, context: ContextT, saga_id: uuid.UUID | None = None
    ) -> AsyncGenerator[SagaStepResult[ContextT, Any], None]:
        """Runs the saga and yields each step's result as it is done; ``context`` shows what the steps changed, and at the
        end, at the latest, what signals put there.

        When a step fails, what acted is compensated, and then the step's error is raised. Raises `SagaParked` if a
        person is needed first: then not everything is undone. Leaving early changes nothing: the saga goes on.
        Called again with the same id, it tells the same saga from its first step.
        """
        definition = self._definition_for(context)
        wanted = _id_of(saga_id)
        shape = shape_of(type(context))
        whole = shape.dump(context)
        watch = await self._runner.start(definition, whole, wanted)
        async for done in watch.steps():
            before = whole
            whole = done.context if done.context is not None else {**whole, **done.patch}
            shape.assign(context, whole, {**done.patch, **signals_between(definition, before, whole)})
            yield step_result(definition, wanted, done)
        end = await watch.end()
        shape.assign(context, end.context, signals_between(definition, whole, end.context))
        error = end.exception(wanted)
        if error is not None:
            raise error

    async def run(
        self, context: ContextT, saga_id: uuid.UUID | None = None, timeout_s: float | None = None
    ) -> SagaResult[ContextT]:
        """Runs the saga to its end. Does not raise for a saga that was compensated or parked: look at the result."""
        definition = self._definition_for(context)
        data = shape_of(type(context)).dump(context)
        watch = await self._runner.start(definition, data, _id_of(saga_id), progress=False)
        return await result_of(watch, definition, timeout_s, type(context))

    async def result(self, saga_id: uuid.UUID, timeout_s: float | None = None) -> SagaResult[Any]:
        """Waits for the end of a saga that was started anywhere. Raises `SagaNotFound`, `ResultTimeout`."""
        by_name = {definition.plan.saga: definition for definition in self._definitions.values()}
        watch = await self._runner.find(_id_of(saga_id))
        return await result_of(watch, by_name, timeout_s, None)

    async def signal(self, saga_id: uuid.UUID, name: str, data: Any = None, *, signal_id: str | None = None) -> None:
        """Gives a saga what its ``Wait(name)`` waits for; on return it is durable.

        ``data``: JSON data, a dataclass or a pydantic model, which fits the field that the wait puts it into. A signal
        that comes before the wait, or before the saga, is kept. ``signal_id``: of two signals with the same one, the
        second changes nothing. Raises `SignalRefused`, `InvalidPayload`, `LimitExceeded`.
        """
        await self._runner.signal(make_signal(_id_of(saga_id), name, data, signal_id))

    async def cancel(self, saga_id: uuid.UUID, reason: str, *, actor: str = "client") -> None:
        """Has a saga that goes forward undone. Raises `SagaNotFound`; `OperationRefused` past its pivot or its end."""
        await self._runner.cancel(_id_of(saga_id), actor=actor, reason=reason)

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
        return new_saga_id()
    if not isinstance(saga_id, uuid.UUID):
        raise InvalidPayload(f"saga_id must be a uuid.UUID, it is {saga_id!r}")
    return saga_id
