"""A web service that places orders, and tells the browser of each step as it is done (server-sent events).

In one process, on SQLite:

    uvicorn examples.saga_fastapi_sse:app
    curl -N localhost:8000/process-order --json '{"order_id": "123", "items": ["item_1"], "total_cents": 10000}'

The same program over RabbitMQ and PostgreSQL: set WATERSHIP_BROKER_URL for it, and run beside it
`watership orchestrator`, `watership reaper` and `watership worker examples.saga_fastapi_sse:worker`.
"""

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated

import di
import fastapi
import fastapi.responses
import pydantic
from di import bind_by_type
from di.dependent import Dependent

import watership
from watership.response import Response
from watership.saga import bootstrap
from watership.saga.models import SagaContext
from watership.saga.saga import Saga
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from watership_worker import Worker

BROKER_URL = os.environ.get("WATERSHIP_BROKER_URL")  # the library reads no environment: a program does
NAMESPACE = os.environ.get("WATERSHIP_NAMESPACE", "watership")
DATABASE_URL = os.environ.get("WATERSHIP_DATABASE_URL", "sqlite+aiosqlite:///orders.db")


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    items: list[str]
    total_cents: int
    reservation_id: str | None = None
    payment_id: str | None = None


class CardDeclined(watership.StepError):
    """With a code, it comes back as this class even from a worker's process."""

    code = "card_declined"


class PaymentService:
    async def charge(self, order_id: str, amount_cents: int) -> str:
        if amount_cents > 50_000:
            raise CardDeclined(f"the card of order {order_id} was declined")
        return f"payment-{order_id}"


class ReserveInventoryStep(SagaStepHandler[OrderContext, Response]):
    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        context.reservation_id = f"reservation-{context.order_id}"
        return self._generate_step_result(Response())

    async def compensate(self, context: OrderContext) -> None:
        print(f"released {context.reservation_id}", flush=True)


class ProcessPaymentStep(SagaStepHandler[OrderContext, Response]):
    def __init__(self, payment_service: PaymentService) -> None:
        self._payment_service = payment_service

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        context.payment_id = await self._payment_service.charge(context.order_id, context.total_cents)
        return self._generate_step_result(Response())


class OrderSaga(Saga[OrderContext]):
    steps = [ReserveInventoryStep, ProcessPaymentStep]


def saga_mapper(mapper: watership.SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)


di_container = di.Container()
di_container.bind(bind_by_type(Dependent(PaymentService, scope="request"), PaymentService))
storage = SqlAlchemySagaStorage(DATABASE_URL)
worker = Worker(di_container=di_container, sagas_mapper=saga_mapper)


def mediator_factory() -> watership.SagaMediator:
    """One for each request: making one opens nothing, and all of them share their connections."""
    if BROKER_URL:
        return bootstrap.bootstrap(sagas_mapper=saga_mapper, broker_url=BROKER_URL, namespace=NAMESPACE)
    return bootstrap.bootstrap(di_container=di_container, sagas_mapper=saga_mapper, saga_storage=storage)


@contextlib.asynccontextmanager
async def lifespan(_: fastapi.FastAPI) -> AsyncGenerator[None]:
    if not BROKER_URL:
        await storage.create_tables()
    async with mediator_factory():  # closed last, and with it what all of them share
        yield


app = fastapi.FastAPI(lifespan=lifespan)


class ProcessOrderRequest(pydantic.BaseModel):
    order_id: str
    items: list[str]
    total_cents: int


def frame(**data: str | None) -> str:
    return f"data: {json.dumps(data)}\n\n"


@app.post("/process-order")
async def process_order(
    request: ProcessOrderRequest, mediator: Annotated[watership.SagaMediator, fastapi.Depends(mediator_factory)]
) -> fastapi.responses.StreamingResponse:
    async def generate_sse() -> AsyncGenerator[str]:
        saga_id = uuid.uuid4()
        context = OrderContext(order_id=request.order_id, items=request.items, total_cents=request.total_cents)
        yield frame(type="start", saga_id=str(saga_id))
        try:
            # A browser that goes away does not stop the saga: only the watching ends.
            async for step_result in mediator.stream(context, saga_id=saga_id):
                yield frame(type="step_progress", step=step_result.step_type.__name__)
            yield frame(type="complete", payment_id=context.payment_id)
        except watership.WatershipError as error:  # a step's own failure, or what kept the saga from running
            yield frame(type="error", code=error.code, message=str(error))

    return fastapi.responses.StreamingResponse(generate_sse(), media_type="text/event-stream")
