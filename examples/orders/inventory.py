"""The inventory service: reserves stock, and gives it back.

watership worker examples.orders.inventory:worker
"""

import dataclasses

from watership import Response, SagaContext, SagaStepHandler, StepError, current_step
from watership_worker import Worker

from examples.orders.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, available INTEGER NOT NULL CHECK (available >= 0));
INSERT OR IGNORE INTO stock VALUES ('book', 1000000), ('lamp', 1000000), ('unicorn', 0);
CREATE TABLE IF NOT EXISTS reservation (
    id TEXT PRIMARY KEY, order_id TEXT NOT NULL UNIQUE, sku TEXT NOT NULL, quantity INTEGER NOT NULL
)
"""
store = Store("inventory", SCHEMA)


@dataclasses.dataclass
class Reservation(SagaContext):
    """What this service needs of an order. The other fields pass by untouched."""

    order_id: str
    sku: str
    quantity: int
    reservation_id: str | None = None


class OutOfStock(StepError):
    code = "out_of_stock"


class ReserveStock(SagaStepHandler[Reservation, Response]):
    queue = "inventory"

    async def act(self, context: Reservation) -> None:
        # The same for every attempt: an act that is run again finds what it did before.
        context.reservation_id = current_step().idempotency_key
        row = (context.reservation_id, context.order_id, context.sku, context.quantity)
        async with store.transaction() as db:
            if (await db.execute("INSERT OR IGNORE INTO reservation VALUES (?, ?, ?, ?)", row)).rowcount == 0:
                return
            taken = await db.execute(
                "UPDATE stock SET available = available - ? WHERE sku = ? AND available >= ?",
                (context.quantity, context.sku, context.quantity),
            )
            if taken.rowcount == 0:  # the exception takes the reservation back with it
                raise OutOfStock(f"there are not {context.quantity} of {context.sku!r}")

    async def compensate(self, context: Reservation) -> None:
        async with store.transaction() as db:
            query = "DELETE FROM reservation WHERE order_id = ? RETURNING sku, quantity"
            for sku, quantity in await db.execute_fetchall(query, (context.order_id,)):
                await db.execute("UPDATE stock SET available = available + ? WHERE sku = ?", (quantity, sku))


worker = Worker(handlers=[ReserveStock])
