"""A fallback acts where a step failed. A circuit breaker stops calling a step that keeps failing.

Four orders are placed while the warehouse is down. After `fail_max` failures the breaker is open: from then on
the fallback acts at once, and the warehouse is left in peace until `timeout_duration` seconds have passed.

    python examples/saga_fallback.py
"""

import asyncio
import dataclasses
import uuid

import di
from di import bind_by_type
from di.dependent import Dependent

import watership
from watership.adapters.circuit_breaker import AioBreakerAdapter
from watership.response import Response
from watership.saga import bootstrap
from watership.saga.fallback import Fallback
from watership.saga.models import SagaContext
from watership.saga.saga import Saga
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.memory import MemorySagaStorage


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    reservation_id: str | None = None


class ReserveInventoryResponse(Response):
    reservation_id: str
    source: str


class Warehouse:
    """A service that is down, and counts who asks it all the same."""

    def __init__(self) -> None:
        self.calls = 0

    async def reserve(self, order_id: str) -> str:
        self.calls += 1
        raise RuntimeError(f"the warehouse did not answer for order {order_id}")


class PrimaryStep(SagaStepHandler[OrderContext, ReserveInventoryResponse]):
    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, ReserveInventoryResponse]:
        # A failed step had no effect, so this change never reaches the fallback.
        context.reservation_id = "half done"
        context.reservation_id = await self._warehouse.reserve(context.order_id)
        return self._generate_step_result(
            ReserveInventoryResponse(reservation_id=context.reservation_id, source="warehouse")
        )


class FallbackStep(SagaStepHandler[OrderContext, ReserveInventoryResponse]):
    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, ReserveInventoryResponse]:
        assert context.reservation_id is None
        context.reservation_id = f"fallback_reservation_{context.order_id}"
        return self._generate_step_result(
            ReserveInventoryResponse(reservation_id=context.reservation_id, source="fallback")
        )


class OrderSaga(Saga[OrderContext]):
    steps = [
        Fallback(
            step=PrimaryStep,
            fallback=FallbackStep,
            circuit_breaker=AioBreakerAdapter(fail_max=2, timeout_duration=60),
        ),
    ]


def saga_mapper(mapper: watership.SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)


async def main() -> None:
    warehouse = Warehouse()
    di_container = di.Container()
    di_container.bind(bind_by_type(Dependent(lambda: warehouse, scope="request"), Warehouse))
    mediator = bootstrap.bootstrap(
        di_container=di_container, sagas_mapper=saga_mapper, saga_storage=MemorySagaStorage()
    )
    async with mediator:
        for order_id in ("1", "2", "3", "4"):
            asked_before = warehouse.calls
            context = OrderContext(order_id=order_id)
            async for step_result in mediator.stream(context, saga_id=uuid.uuid4()):
                asked = "was asked" if warehouse.calls > asked_before else "was not asked: its breaker is open"
                print(f"order {order_id}: the warehouse {asked}")
                print(f"  Step: {step_result.step_type.__name__}, {context.reservation_id}")
    print(f"4 orders, {warehouse.calls} calls of the warehouse")


if __name__ == "__main__":
    asyncio.run(main())
