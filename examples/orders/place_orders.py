"""Places some orders through the broker, and prints how each one ended.

python -m examples.orders.place_orders --broker-url amqp://guest:guest@localhost:5672/
"""

import argparse
import asyncio
import os
import uuid

from watership import SagaMediator, SagaResult, WatershipError, bootstrap

from examples.orders.order_saga import OrderContext, sagas_mapper

ORDERS = [
    # what, how many, cents, currency, card, address
    ("book", 1, 2_450, "EUR", "visa", "12 Hazel Lane"),
    ("lamp", 2, 8_900, "USD", "visa", "3 Down Road"),
    ("unicorn", 1, 99_900, "GBP", "visa", "7 Meadow Way"),
    ("book", 3, 7_350, "EUR", "declined", "5 River Walk"),
    ("lamp", 1, 4_450, "USD", "visa", "1 Harbour, Gull island"),
]


async def place(mediator: SagaMediator, number: int) -> SagaResult[OrderContext]:
    sku, quantity, total_cents, currency, card, address = ORDERS[number]
    context = OrderContext(
        order_id=f"{uuid.uuid4().hex[:6]}-{number + 1}",
        sku=sku,
        quantity=quantity,
        total_cents=total_cents,
        currency=currency,
        card=card,
        address=address,
    )
    return await mediator.run(context, timeout_s=120)


def in_words(result: SagaResult[OrderContext]) -> str:
    order = result.context
    if result.completed:
        return f"shipped by {order.carrier} as {order.tracking_code}"
    if result.compensated:
        return f"undone: {result.failed_step} failed, {result.error}"
    return f"waits for a person: {result.parked_reason or result.error}"


async def main(broker_url: str, namespace: str) -> None:
    async with bootstrap(sagas_mapper=sagas_mapper, broker_url=broker_url, namespace=namespace) as mediator:
        for result in await asyncio.gather(*(place(mediator, number) for number in range(len(ORDERS)))):
            order = result.context
            print(f"{result.saga_id}  {order.quantity} x {order.sku:8} {result.status:12} {in_words(result)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Place some orders.")
    default_url = os.environ.get("WATERSHIP_BROKER_URL", "amqp://guest:guest@localhost:5672/")
    parser.add_argument("--broker-url", default=default_url)
    parser.add_argument("--namespace", default=os.environ.get("WATERSHIP_NAMESPACE", "watership"))
    arguments = parser.parse_args()
    try:
        asyncio.run(main(arguments.broker_url, arguments.namespace))
    except WatershipError as error:
        raise SystemExit(f"error: {error}") from error
