"""An order in three steps: every step acts, or every step that acted is undone, in reverse order.

Two orders are placed. The first one goes through. The second one's card is declined, so its stock is given back.

    python examples/saga.py
"""

import asyncio
import dataclasses
import uuid

import di
from di import bind_by_type
from di.dependent import Dependent

import watership
from watership.response import Response
from watership.saga import bootstrap
from watership.saga.models import SagaContext
from watership.saga.saga import Saga
from watership.saga.step import SagaStepHandler, SagaStepResult
from watership.saga.storage.memory import MemorySagaStorage


@dataclasses.dataclass
class OrderContext(SagaContext):
    """The saga's data. Every step sees it, and what a step changes in it is kept."""

    order_id: str
    items: list[str]
    total_cents: int
    inventory_reservation_id: str | None = None
    payment_id: str | None = None
    shipment_id: str | None = None


class CardDeclined(watership.StepError):
    code = "card_declined"  # what the log says, and what other services see


# --- the services that the steps call


class InventoryService:
    def __init__(self) -> None:
        self.reserved: dict[str, list[str]] = {}

    async def reserve_items(self, order_id: str, items: list[str]) -> str:
        self.reserved[f"reservation-{order_id}"] = items
        return f"reservation-{order_id}"

    async def release_items(self, reservation_id: str) -> None:
        self.reserved.pop(reservation_id, None)


class PaymentService:
    LIMIT_CENTS = 50_000

    async def charge(self, order_id: str, amount_cents: int) -> str:
        if amount_cents > self.LIMIT_CENTS:
            raise CardDeclined(f"{amount_cents} cents is over the card's limit of {self.LIMIT_CENTS}")
        return f"payment-{order_id}"

    async def refund(self, payment_id: str) -> None:
        """Not called here: a payment that was declined has nothing to give back."""


# --- the steps: a container makes each one afresh for every run, with what its constructor asks for


class ReserveInventoryStep(SagaStepHandler[OrderContext, Response]):
    def __init__(self, inventory_service: InventoryService) -> None:
        self._inventory_service = inventory_service

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        context.inventory_reservation_id = await self._inventory_service.reserve_items(context.order_id, context.items)
        return self._generate_step_result(Response())

    async def compensate(self, context: OrderContext) -> None:
        if context.inventory_reservation_id:
            await self._inventory_service.release_items(context.inventory_reservation_id)


class ProcessPaymentStep(SagaStepHandler[OrderContext, Response]):
    def __init__(self, payment_service: PaymentService) -> None:
        self._payment_service = payment_service

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Response]:
        context.payment_id = await self._payment_service.charge(context.order_id, context.total_cents)
        return self._generate_step_result(Response())

    async def compensate(self, context: OrderContext) -> None:
        if context.payment_id:
            await self._payment_service.refund(context.payment_id)


class OrderShipped(Response):
    shipment_id: str


class ShipOrderStep(SagaStepHandler[OrderContext, OrderShipped]):
    """The last step: nothing can fail after it, so it needs no `compensate`."""

    async def act(self, context: OrderContext) -> SagaStepResult[OrderContext, OrderShipped]:
        context.shipment_id = f"shipment-{context.order_id}"
        return self._generate_step_result(OrderShipped(shipment_id=context.shipment_id))


class OrderSaga(Saga[OrderContext]):
    steps = [ReserveInventoryStep, ProcessPaymentStep, ShipOrderStep]


def saga_mapper(mapper: watership.SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)


async def main() -> None:
    inventory = InventoryService()
    di_container = di.Container()
    di_container.bind(bind_by_type(Dependent(lambda: inventory, scope="request"), InventoryService))
    di_container.bind(bind_by_type(Dependent(PaymentService, scope="request"), PaymentService))
    mediator = bootstrap.bootstrap(
        di_container=di_container, sagas_mapper=saga_mapper, saga_storage=MemorySagaStorage()
    )
    async with mediator:
        for order_id, total_cents in (("123", 10_000), ("124", 99_900)):
            context = OrderContext(order_id=order_id, items=["item_1"], total_cents=total_cents)
            print(f"order {order_id}:")
            try:
                async for step_result in mediator.stream(context, saga_id=uuid.uuid4()):
                    print(f"  Step completed: {step_result.step_type.__name__}")
                print(f"  shipped as {context.shipment_id}")
            except CardDeclined as error:
                print(f"  undone, because {error}")
    print(f"still reserved: {', '.join(inventory.reserved)}")


if __name__ == "__main__":
    asyncio.run(main())
