"""One saga in this process under its caller's eyes: it takes a step forward only when the caller asks for the next."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, Self

from watership.adapters.containers import as_container
from watership.chance import new_saga_id
from watership.errors import WatershipError
from watership.execution import checked_barrier
from watership.machine import events as e
from watership.saga.compile import Definition, SagaClass, compile_saga
from watership.saga.driver import Drive
from watership.saga.drivers import Drivers, drivers_for
from watership.saga.job import Job
from watership.saga.models import ContextT, shape_of
from watership.saga.results import signals_between, step_result
from watership.saga.retry import RetryPolicy
from watership.saga.step import SagaStepResult
from watership.saga.storage.memory import MemorySagaStorage
from watership.saga.storage.protocol import SagaStorage


class SagaTransaction(Generic[ContextT]):
    """An async context manager and an async iterable of step results. Made by `Saga.transaction`.

    Leaving the block by an exception compensates what acted, and lets the exception through. Leaving it otherwise
    before the saga has ended lets the saga go on to its end, and waits for it.
    """

    def __init__(
        self,
        saga: SagaClass,
        context: ContextT,
        container: object | None,
        storage: SagaStorage | None,
        saga_id: uuid.UUID | None,
        compensation_retry: RetryPolicy | None,
        barrier: type[Any] | None = None,
    ) -> None:
        self.saga_id = saga_id or new_saga_id()
        self.completed_steps: list[type[Any]] = []
        self._definition: Definition = compile_saga(saga, compensation_retry=compensation_retry)
        self._job = Job(self._definition, as_container(container), barrier=checked_barrier(barrier, container))
        self._context = context
        self._storage = storage or MemorySagaStorage()
        self._drivers: Drivers | None = None
        self._drive: Drive | None = None

    async def __aenter__(self) -> Self:
        drivers = self._drivers = drivers_for(self._storage)
        drivers.used_by(self)
        data = shape_of(type(self._context)).dump(self._context)
        self._drive = await drivers.start(self._job, data, self.saga_id, gated=True)
        return self

    def __aiter__(self) -> AsyncIterator[SagaStepResult[ContextT, Any]]:
        return self._results()

    async def _results(self) -> AsyncIterator[SagaStepResult[ContextT, Any]]:
        drive = self._entered()
        shape = shape_of(type(self._context))
        drive.let_one_act()
        whole = shape.dump(self._context)
        async for done in drive.watch.steps():
            if done.context is not None:
                signalled = signals_between(self._definition, whole, done.context)
                shape.assign(self._context, done.context, {**done.patch, **signalled})
                whole = done.context
            result = step_result(self._definition, self.saga_id, done)
            self.completed_steps.append(result.step_type)
            yield result
            drive.let_one_act()
        error = (await drive.watch.end()).exception(self.saga_id)
        if error is not None:
            raise error

    def _entered(self) -> Drive:
        if self._drive is None:
            raise WatershipError("a transaction is iterated inside its block: async with saga.transaction(...) as tx")
        return self._drive

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._leave(error)
        finally:
            if self._drivers is not None:
                await self._drivers.left_by(self)

    async def _leave(self, error: BaseException | None) -> None:
        drive = self._entered()
        over = drive.watch.over
        if not over and error is not None:
            drive.request(e.CompensateRequested("transaction", f"{type(error).__name__} left its block"))
        drive.open_gate()
        end = await drive.watch.end()
        if not over and error is None:
            failure = end.exception(self.saga_id)
            if failure is not None:
                raise failure
