"""A saga whose handlers only do their business: transaction and barrier are the worker's, the session is the container's."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import dishka
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from watership import RetryPolicy, Saga, SagaMap, SagaStepHandler, StepError

from tests.support.barred_step import Order, Reserved, take_effect


class Declined(StepError):
    code = "barred_declined"


class Reserve(SagaStepHandler[Order, Reserved]):
    retry = RetryPolicy(max_attempts=2, delay_s=0, jitter=0)

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def act(self, context: Order) -> Reserved | None:
        return await take_effect(self._session, context, "saga")

    async def compensate(self, context: Order) -> None:
        await take_effect(self._session, context, "saga")


class Charge(SagaStepHandler[Order, None]):
    async def act(self, context: Order) -> None:
        if context.order_id == "declined":
            raise Declined("no money")


class OrderSaga(Saga[Order]):
    steps = [Reserve, Charge]


def sagas(mapper: SagaMap) -> None:
    mapper.bind(Order, OrderSaga)


@contextlib.asynccontextmanager
async def container_on(
    engine: AsyncEngine, *, handler: type[Any] = Reserve, session_class: type[AsyncSession] = AsyncSession
) -> AsyncIterator[dishka.AsyncContainer]:
    """One session for each command, closed after it."""

    async def session() -> AsyncIterator[AsyncSession]:
        async with session_class(engine) as opened:
            yield opened

    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(session, provides=AsyncSession)
    provider.provide(handler)
    container = dishka.make_async_container(provider)
    yield container
    await container.close()
