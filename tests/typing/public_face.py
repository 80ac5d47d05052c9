"""What a type checker says of the public face. Never run: read by mypy and pyright, each in its strictest mode.

A line that is wrong on purpose is marked for both, and both are told to complain of a mark that marks nothing: so each
mark is a promise that the mistake is found while it is written.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any, assert_type

import watership
from watership import (
    AioBreakerAdapter,
    Fallback,
    MemorySagaStorage,
    Parallel,
    Remote,
    Response,
    RetryPolicy,
    Saga,
    SagaContext,
    SagaMap,
    SagaMediator,
    SagaResult,
    SagaStepHandler,
    SagaStepResult,
    Sleep,
    SqlAlchemySagaStorage,
    StepRun,
    Wait,
    bootstrap,
    current_step,
    recover_saga,
)
from watership_worker import Worker


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    reservation_id: str | None = None


@dataclasses.dataclass
class InvoiceContext(SagaContext):
    number: int


class Reserved(Response):
    reservation_id: str


class ReserveStock(SagaStepHandler[OrderContext, Reserved]):
    retry = RetryPolicy(max_attempts=5, delay_s=0.5)
    timeout_s = 10

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Reserved]:
        assert_type(current_step(), StepRun)
        assert_type(current_step().saga_id, uuid.UUID)
        result = self._generate_step_result(Reserved(reservation_id=context.order_id))
        assert_type(result, SagaStepResult[OrderContext, Reserved])
        assert_type(result.response, Reserved)
        return result

    async def compensate(self, context: OrderContext) -> None:
        assert_type(context.reservation_id, str | None)


class ShipParcel(SagaStepHandler[OrderContext, Response]):
    async def act(self, context: OrderContext) -> None:  # a step may answer with nothing
        context.reservation_id = None


class OrderSaga(Saga[OrderContext]):
    steps = [
        ReserveStock,
        Remote("ChargeCard", queue="payments", response=Reserved),
        Fallback(step=ShipParcel, fallback=Remote("ShipByPost"), circuit_breaker=AioBreakerAdapter(fail_max=2)),
    ]


def sagas_mapper(mapper: SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)


async def one_face(mediator: SagaMediator, context: OrderContext) -> None:
    assert_type(await mediator.start(context), uuid.UUID)
    assert_type(await mediator.run(context, timeout_s=5), SagaResult[OrderContext])
    result = await mediator.run(context)
    assert_type(result.context, OrderContext)
    assert_type(result.error, Exception | None)
    assert_type(result.completed, bool)
    assert_type(await mediator.result(result.saga_id), SagaResult[Any])
    async for step_result in mediator.stream(context, saga_id=uuid.uuid4()):
        assert_type(step_result.step_type.__name__, str)
        assert_type(step_result.saga_id, uuid.UUID | None)


async def every_way_in(url: str) -> None:
    assert_type(bootstrap(sagas_mapper=sagas_mapper), SagaMediator)
    bootstrap(sagas_mapper=sagas_mapper, saga_storage=MemorySagaStorage())
    bootstrap(sagas_mapper=sagas_mapper, saga_storage=SqlAlchemySagaStorage(url))
    bootstrap(sagas_mapper=sagas_mapper, database_url=url, recover_every_s=0)
    async with bootstrap(sagas_mapper=sagas_mapper, broker_url=url) as mediator:
        assert_type(mediator, SagaMediator)
    Worker(sagas_mapper=sagas_mapper)
    Worker(handlers=[ReserveStock, ShipParcel])


async def sagas_in_hand(context: OrderContext, storage: MemorySagaStorage) -> None:
    saga = OrderSaga()
    assert_type(saga.steps_count, int)
    async with saga.transaction(context=context, storage=storage, compensation_retry_count=5) as transaction:
        async for result in transaction:
            assert_type(result, SagaStepResult[OrderContext, Any])
    await recover_saga(saga=saga, saga_id=uuid.uuid4(), context_builder=OrderContext, container=None, storage=storage)
    steps: Sequence[type[SagaStepHandler[Any, Any]] | Fallback | Parallel | Sleep | Wait] = saga.steps
    assert steps


# --- mistakes that are found while they are written


class WrongContext(SagaStepHandler[OrderContext, Response]):
    async def act(self, context: InvoiceContext) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """It would be given an order."""


class WrongResponse(SagaStepHandler[OrderContext, Reserved]):
    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Reserved]:
        return self._generate_step_result(Response())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class NoAct(SagaStepHandler[OrderContext, Response]):
    """It says nothing of what it does."""


class NotSteps(Saga[OrderContext]):
    steps = ["ReserveStock"]  # type: ignore[list-item]  # pyright: ignore[reportAssignmentType]


async def mistakes(mediator: SagaMediator) -> None:
    NoAct()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]
    OrderSaga().transaction(context=InvoiceContext(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Fallback(step=OrderContext, fallback=ShipParcel)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bootstrap(sagas_mapper=OrderSaga)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bootstrap(saga_storage="orders.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await mediator.run(OrderContext("1"), saga_id="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    result = await mediator.run(OrderContext("1"))
    assert result.context.number  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    result.status = watership.Saga  # type: ignore[misc, assignment]  # pyright: ignore[reportAttributeAccessIssue]
