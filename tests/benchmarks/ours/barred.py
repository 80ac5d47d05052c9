"""The same saga with handlers that do business: each writes a row on Postgres. ``BARRIER=on`` puts them behind the barrier."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import di
import sqlalchemy as sa
from di.dependent import Dependent
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from watership import Response, Saga, SagaMap, SagaStepHandler
from watership_worker import Worker

from tests.benchmarks.ours.saga import BenchContext

EFFECT = sa.text("INSERT INTO bench_effect VALUES (:order_id, :step)")
IS_BARRED = os.environ.get("BARRIER") == "on"


class Reserve(SagaStepHandler[BenchContext, Response]):
    """Writes a row."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def act(self, context: BenchContext) -> None:
        """Writes it; behind the barrier, the worker commits."""
        await self._session.execute(EFFECT, {"order_id": context.order_id, "step": type(self).__name__})
        if not IS_BARRED:
            await self._session.commit()

    async def compensate(self, context: BenchContext) -> None:
        """Never called here."""


class Charge(Reserve):
    """Writes a row."""


class Ship(Reserve):
    """Writes a row."""


class BenchSaga(Saga[BenchContext]):
    """Three steps that write a row each."""

    steps = [Reserve, Charge, Ship]


def sagas(mapper: SagaMap) -> None:
    """Binds the one saga."""
    mapper.bind(BenchContext, BenchSaga)


def container() -> di.Container:
    """A container with a session for each command."""
    engine = create_async_engine(os.environ["PARTICIPANT_URL"], pool_size=20, max_overflow=0)

    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as opened:
            yield opened

    made = di.Container()
    made.bind(di.bind_by_type(Dependent(session, scope="request"), AsyncSession))
    return made


worker = Worker(di_container=container(), sagas_mapper=sagas, barrier=AsyncSession if IS_BARRED else None)
