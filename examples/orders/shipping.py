"""The shipping service: two carriers, the second where the first cannot deliver. It also announces the order saga.

watership worker examples.orders.shipping:worker
"""

import dataclasses

from watership import SagaContext, SagaStepHandler, StepError, current_step
from watership_worker import Worker

from examples.orders.order_saga import ParcelShipped, sagas_mapper
from examples.orders.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS parcel (id TEXT PRIMARY KEY, order_id TEXT NOT NULL, carrier TEXT NOT NULL)
"""
store = Store("shipping", SCHEMA)


@dataclasses.dataclass
class Delivery(SagaContext):
    """What this service needs of an order."""

    order_id: str
    address: str
    carrier: str | None = None
    tracking_code: str | None = None


class CarrierUnavailable(StepError):
    code = "carrier_unavailable"


class ShipParcel(SagaStepHandler[Delivery, ParcelShipped]):
    queue = "shipping"

    async def act(self, context: Delivery) -> ParcelShipped:
        if "island" in context.address:
            raise CarrierUnavailable(f"Swift does not deliver to {context.address!r}")
        return await ship(context, "Swift")

    async def compensate(self, context: Delivery) -> None:
        await recall(context)


class ShipParcelByPost(SagaStepHandler[Delivery, ParcelShipped]):
    queue = "shipping"

    async def act(self, context: Delivery) -> ParcelShipped:
        return await ship(context, "Post")

    async def compensate(self, context: Delivery) -> None:
        await recall(context)


async def ship(context: Delivery, carrier: str) -> ParcelShipped:
    """Hand the parcel to a carrier, once for each idempotency key."""
    row = (current_step().idempotency_key, context.order_id, carrier)
    async with store.transaction() as db:
        await db.execute("INSERT OR IGNORE INTO parcel VALUES (?, ?, ?)", row)
    context.carrier, context.tracking_code = carrier, f"{carrier.upper()}-{context.order_id}"
    return ParcelShipped(carrier=carrier, tracking_code=context.tracking_code)


async def recall(context: Delivery) -> None:
    """Call the parcel back, if there is one."""
    async with store.transaction() as db:
        await db.execute("DELETE FROM parcel WHERE order_id = ?", (context.order_id,))


# One worker of the system announces the saga, so that anyone can start it by its name.
worker = Worker(sagas_mapper=sagas_mapper, handlers=[ShipParcel, ShipParcelByPost])
