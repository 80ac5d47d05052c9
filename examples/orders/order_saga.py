"""The order saga: what belongs together, and in which order. No code of the services is imported here.

Each service has its own module, its own worker process and its own data. The saga knows a step of another service by
its name and queue alone.
"""

import dataclasses

from watership import AioBreakerAdapter, Fallback, Remote, Response, RetryPolicy, Saga, SagaContext, SagaMap


@dataclasses.dataclass
class OrderContext(SagaContext):
    """All of an order's data. A service's own context names only the fields that the service uses."""

    order_id: str
    sku: str
    quantity: int
    total_cents: int
    currency: str
    card: str
    address: str
    reservation_id: str | None = None
    payment_id: str | None = None
    carrier: str | None = None
    tracking_code: str | None = None


class CardCharged(Response):
    payment_id: str


class ParcelShipped(Response):
    carrier: str
    tracking_code: str


class OrderSaga(Saga[OrderContext]):
    steps = [
        Remote("ReserveStock", queue="inventory"),
        Remote("ChargeCard", queue="payments", response=CardCharged, timeout_s=20, retry=RetryPolicy(max_attempts=3)),
        Fallback(
            step=Remote("ShipParcel", queue="shipping", response=ParcelShipped),
            fallback=Remote("ShipParcelByPost", queue="shipping", response=ParcelShipped),
            circuit_breaker=AioBreakerAdapter(fail_max=5, timeout_duration=30),
        ),
    ]


def sagas_mapper(mapper: SagaMap) -> None:
    mapper.bind(OrderContext, OrderSaga)
