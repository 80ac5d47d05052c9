"""The payment service: charges cards, and refunds them.

watership worker examples.orders.payments:worker
"""

import dataclasses

from watership import SagaContext, SagaStepHandler, StepError, current_step
from watership_worker import Worker

from examples.orders.order_saga import CardCharged
from examples.orders.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS charge (
    id TEXT PRIMARY KEY, order_id TEXT NOT NULL, amount_cents INTEGER NOT NULL, currency TEXT NOT NULL,
    refunded INTEGER NOT NULL DEFAULT 0
)
"""
store = Store("payments", SCHEMA)


@dataclasses.dataclass
class Charge(SagaContext):
    """What this service needs of an order."""

    order_id: str
    total_cents: int
    currency: str
    card: str
    payment_id: str | None = None


class CardDeclined(StepError):
    code = "card_declined"


class ChargeCard(SagaStepHandler[Charge, CardCharged]):
    queue = "payments"

    async def act(self, context: Charge) -> CardCharged:
        if context.card == "declined":
            raise CardDeclined(f"the bank declined {context.total_cents} {context.currency} cents")
        # A payment provider takes this key too, under a header such as Idempotency-Key, and charges once.
        payment_id = current_step().idempotency_key
        row = (payment_id, context.order_id, context.total_cents, context.currency)
        async with store.transaction() as db:
            await db.execute("INSERT OR IGNORE INTO charge VALUES (?, ?, ?, ?, 0)", row)
        context.payment_id = payment_id
        return CardCharged(payment_id=payment_id)

    async def compensate(self, context: Charge) -> None:
        async with store.transaction() as db:  # a second refund of the same charge changes nothing
            await db.execute("UPDATE charge SET refunded = 1 WHERE order_id = ?", (context.order_id,))


worker = Worker(handlers=[ChargeCard])
