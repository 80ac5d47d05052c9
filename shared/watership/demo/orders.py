"""The saga of the demo: an order takes its stock, charges a card and ships a parcel, or undoes what it did.

This is all that a program writes: the data, the steps, the saga. Nothing here knows that processes die.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from importlib.resources import files

from watership import Fallback, Response, Saga, SagaContext, SagaMap, SagaStepHandler, current_step
from watership.demo.shop import CourierDown, Shop

ORDER_IDS = uuid.UUID("6f1d4c52-0b1e-4a57-9a39-3f0b6d0c7e11")


@dataclasses.dataclass(frozen=True)
class Item:
    """One line of an order. Money is in the currency's smallest unit: cents, yen."""

    sku: str
    name: str
    quantity: int
    price_minor: int


@dataclasses.dataclass
class Order(SagaContext):
    """What the saga knows. The last two fields are filled in by its steps."""

    number: str
    customer: str
    email: str
    city: str
    country: str
    items: list[Item]
    currency: str
    total_minor: int
    card: str
    courier: str
    weight_g: int
    charge_id: str | None = None
    tracking: str | None = None


class CardCharged(Response):
    """The answer of `ChargeCard`."""

    charge_id: str


class ReserveStock(SagaStepHandler[Order, Response]):
    """Takes the items from the shelf."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def act(self, context: Order) -> None:
        pieces = {item.sku: item.quantity for item in context.items}
        await self.shop.reserve(current_step().idempotency_key, context.number, pieces)

    async def compensate(self, context: Order) -> None:
        await self.shop.release(current_step().idempotency_key, context.number)


class ChargeCard(SagaStepHandler[Order, CardCharged]):
    """Takes the money."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def act(self, context: Order) -> CardCharged:
        # The same key for every attempt, also after a crash: the shop charges once.
        key = current_step().idempotency_key
        context.charge_id = await self.shop.charge(
            key, context.number, context.card, context.currency, context.total_minor
        )
        return CardCharged(charge_id=context.charge_id)

    async def compensate(self, context: Order) -> None:
        await self.shop.refund(current_step().idempotency_key, context.number)


class ShipByCourier(SagaStepHandler[Order, Response]):
    """Hands the parcel to the courier that the customer chose."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    async def act(self, context: Order) -> None:
        key = current_step().idempotency_key
        context.tracking = await self.shop.ship(key, context.number, context.courier, context.weight_g)

    async def compensate(self, context: Order) -> None:
        await self.shop.call_back_parcel(current_step().idempotency_key, context.number)


class ShipByPost(ShipByCourier):
    """The stand-in: the post takes what the courier cannot."""

    async def act(self, context: Order) -> None:
        key = current_step().idempotency_key
        context.tracking = await self.shop.ship(key, context.number, "Post", context.weight_g)


class OrderSaga(Saga[Order]):
    """Every step acts, or every step that acted is undone, in reverse order."""

    steps = [
        ReserveStock,
        ChargeCard,
        Fallback(ShipByCourier, ShipByPost, failure_exceptions=(CourierDown,)),
    ]


def sagas_mapper(saga_map: SagaMap) -> None:
    """An order starts an `OrderSaga`."""
    saga_map.bind(Order, OrderSaga)


def read_orders(limit: int) -> dict[uuid.UUID, Order]:
    """The first orders of ``orders.jsonl`` by their sagas' ids. An order has the same id in every run."""
    lines = files("watership.demo").joinpath("orders.jsonl").read_text(encoding="utf-8").splitlines()
    orders = [Order.from_dict(json.loads(line)) for line in lines[:limit]]
    return {uuid.uuid5(ORDER_IDS, order.number): order for order in orders}
