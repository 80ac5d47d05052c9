"""The saga on python-cqrs, in this process: its SQLAlchemy storage on Postgres, or its memory storage."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from typing import Any

import di
from cqrs import Response, Saga, SagaMap, SagaStepHandler, SagaStepResult
from cqrs.bootstrap.saga import bootstrap
from cqrs.saga.models import SagaContext
from cqrs.saga.storage.memory import MemorySagaStorage
from cqrs.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.benchmarks.closed_loop import arguments, closed_loop


@dataclasses.dataclass
class BenchContext(SagaContext):
    """About 300 bytes."""

    order_id: str = "o-1"
    padding: str = "x" * 220
    reservation_id: str | None = None
    payment_id: str | None = None


class Reserve(SagaStepHandler[BenchContext, Response]):
    """Does nothing."""

    async def act(self, context: BenchContext) -> SagaStepResult[BenchContext, Response]:
        """Nothing."""
        return self._generate_step_result(Response())

    async def compensate(self, context: BenchContext) -> None:
        """Nothing."""


class Charge(Reserve):
    """Does nothing."""


class Ship(Reserve):
    """Does nothing."""


class BenchSaga(Saga[BenchContext]):
    """Three steps with empty handlers."""

    steps = [Reserve, Charge, Ship]


async def storage_of(database_url: str, at_once: int) -> Any:
    """Memory without an address; else a pool as large as what runs at once."""
    if not database_url:
        return MemorySagaStorage()
    engine = create_async_engine(database_url, pool_size=at_once, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return SqlAlchemySagaStorage(async_sessionmaker(engine, expire_on_commit=False))


async def main() -> None:
    """Runs them."""
    logging.getLogger("cqrs").setLevel(logging.WARNING)
    given = arguments("database-url")
    storage = await storage_of(given.database_url, given.at_once)

    def sagas(mapper: SagaMap) -> None:
        mapper.bind(BenchContext, BenchSaga)

    mediator = bootstrap(di_container=di.Container(), sagas_mapper=sagas, saga_storage=storage)

    async def run_one() -> None:
        async for _ in mediator.execute(BenchContext(), saga_id=uuid.uuid4()):
            pass

    await closed_loop(run_one, given.at_once, given.seconds)


asyncio.run(main())
