"""A saga of two steps to be tortured, with its participants in memory, right and wrong in every way that a test plants."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

from watership import Response, Saga, SagaContext, SagaStepHandler, StepError, current_step
from watership.testing.torturing.report import TorturedSaga

T = TypeVar("T")


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str = "A-1"
    amount_cents: int = 4_200
    payment_id: str | None = None
    parcel_id: str | None = None


class Books:
    """What the participants have: who reserved, who was charged. Each entry under the idempotency key that it came with."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}  # effects by key
        self.undone: set[str] = set()  # steps whose acts must not come any more

    def act(self, step: str, *, idempotent: bool) -> None:
        key = current_step().idempotency_key if idempotent else f"{step}:{len(self.done)}"
        if idempotent and step in self.undone:
            return  # it comes late
        self.done[key] = 1

    def undo(self, step: str, *, careful: bool) -> None:
        if careful:
            assert current_step().idempotency_key
            self.undone.add(step)
            self.done = {key: value for key, value in self.done.items() if not _is_of(key, step)}
        else:
            self.done[f"{step}:undo:{len(self.done)}"] = -1

    def balance(self, step: str) -> int:
        """How often the step's effect stands."""
        return sum(value for key, value in self.done.items() if _is_of(key, step))

    def check(self, saga: TorturedSaga[Order]) -> str | None:
        wanted = 1 if saga.status == "COMPLETED" else 0
        found = {step: self.balance(step) for step in ("ReserveStock", "ChargeCard")}
        if set(found.values()) == {wanted}:
            return None
        return f"{found}, and each should be {wanted}"


def _is_of(key: str, step: str) -> bool:
    return step in key.split(":")


class BookedStep(SagaStepHandler[Order, Response]):
    idempotent = True
    careful = True

    def __init__(self, books: Books) -> None:
        self.books = books

    async def act(self, context: Order) -> None:
        self.books.act(type(self).name or type(self).__name__, idempotent=self.idempotent)

    async def compensate(self, context: Order) -> None:
        self.books.undo(type(self).name or type(self).__name__, careful=self.careful)


class ReserveStock(BookedStep):
    pass


class ChargeCard(BookedStep):
    async def act(self, context: Order) -> None:
        await super().act(context)
        context.payment_id = f"payment of {context.order_id}"


class OrderSaga(Saga[Order]):
    steps = [ReserveStock, ChargeCard]


class CarelessCharge(ChargeCard):
    """Not idempotent."""

    name = "ChargeCard"
    idempotent = False


class CarelessSaga(Saga[Order]):
    steps = [ReserveStock, CarelessCharge]


class PlusOne(BookedStep):
    """Its compensation gives back what was perhaps never taken."""

    name = "ReserveStock"
    careful = False


class PlusOneSaga(Saga[Order]):
    steps = [PlusOne, ChargeCard]


class TrustingCharge(ChargeCard):
    """Its compensation assumes that the act ran."""

    name = "ChargeCard"

    async def compensate(self, context: Order) -> None:
        if context.payment_id is None:
            raise StepError("there is no payment to give back")
        await super().compensate(context)


class TrustingSaga(Saga[Order]):
    steps = [ReserveStock, TrustingCharge]


class ForesightedReserve(BookedStep):
    """Its compensation reads what only a later step writes."""

    name = "ReserveStock"

    async def compensate(self, context: Order) -> None:
        assert context.payment_id is not None, "which payment was it?"
        await super().compensate(context)


class ForesightedSaga(Saga[Order]):
    steps = [ForesightedReserve, ChargeCard]


class StubbornReserve(BookedStep):
    name = "ReserveStock"

    async def compensate(self, context: Order) -> None:
        raise StepError("never")


class StubbornSaga(Saga[Order]):
    steps = [StubbornReserve, ChargeCard]


class StrictCharge(ChargeCard):
    """Refuses a duplicate with an error, as a unique index does."""

    name = "ChargeCard"

    async def act(self, context: Order) -> None:
        if self.books.balance("ChargeCard"):
            raise StepError("this order is charged already")
        await super().act(context)


class StrictSaga(Saga[Order]):
    steps = [ReserveStock, StrictCharge]


class ShopContainer:
    """Makes handlers on one set of books."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def resolve(self, handler: type[T]) -> T:
        return cast("T", cast("Any", handler)(self.books))


def fresh() -> tuple[ShopContainer, Any]:
    """A clean shop for each run, and the check of its books."""
    books = Books()
    return ShopContainer(books), books.check


def order() -> Order:
    """What to torture it with."""
    return Order()
