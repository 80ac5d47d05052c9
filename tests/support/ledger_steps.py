"""Sagas whose every effect is on record: steps that write to a table of effects, once for each idempotency key.

Worker processes import this module; the test reads the table. The database is named by ``LEDGER_URL``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import ClassVar

import asyncpg

from watership import Response, Saga, SagaContext, SagaMap, SagaStepHandler, StepError, current_step
from watership_worker import Worker

CREATE = """
CREATE TABLE effect (
    effect_id bigserial PRIMARY KEY, saga_id uuid NOT NULL, step text NOT NULL, action text NOT NULL,
    key text NOT NULL UNIQUE, runs int NOT NULL DEFAULT 1
)
"""
RECORD = """
INSERT INTO effect (saga_id, step, action, key) VALUES ($1, $2, $3, $4)
ON CONFLICT (key) DO UPDATE SET runs = effect.runs + 1
"""


class Declined(StepError):
    """The step that the context names fails."""

    code = "declined"


@dataclasses.dataclass
class OrderContext(SagaContext):
    """``fail_at``: the step whose act fails, before it has any effect."""

    order_id: str
    fail_at: str | None = None
    trail: list[str] = dataclasses.field(default_factory=list)


class Recorded(SagaStepHandler[OrderContext, Response]):
    """A step that records what it did."""

    opening: ClassVar[asyncio.Task[asyncpg.Pool] | None] = None

    async def act(self, context: OrderContext) -> Response:
        """Fails if the context says so; else records an effect."""
        if context.fail_at == current_step().step:
            raise Declined(f"order {context.order_id} is declined at {context.fail_at}")
        await self._record()
        context.trail.append(current_step().step)
        return Response()

    async def compensate(self, context: OrderContext) -> None:
        """Records that it was undone."""
        await self._record()

    async def _record(self) -> None:
        run = current_step()
        pool = await self._pool()
        await pool.execute(RECORD, run.saga_id, run.step, run.action, run.idempotency_key)

    async def _pool(self) -> asyncpg.Pool:
        if Recorded.opening is None:
            Recorded.opening = asyncio.create_task(_open_pool())
        return await asyncio.shield(Recorded.opening)


async def _open_pool() -> asyncpg.Pool:
    return await asyncpg.create_pool(os.environ["LEDGER_URL"], min_size=1, max_size=5)


class Reserve(Recorded):
    """The first step."""


class Charge(Recorded):
    """The second step."""


class Ship(Recorded):
    """The third step."""


class OrderSaga(Saga[OrderContext]):
    """Three recorded steps."""

    steps = [Reserve, Charge, Ship]


def sagas(mapper: SagaMap) -> None:
    """Binds the one saga."""
    mapper.bind(OrderContext, OrderSaga)


worker = Worker(sagas_mapper=sagas)
