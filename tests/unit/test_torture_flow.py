"""Torture, and everything that can stand among a saga's steps: groups, fallbacks, pauses, a pivot, verification."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from watership import (
    AioBreakerAdapter,
    Fallback,
    Parallel,
    Response,
    Saga,
    SagaStepHandler,
    Sleep,
    StepError,
    Verified,
    current_step,
)
from watership.testing import TorturedSaga, torture

from tests.support.tortured_shop import Order

T = TypeVar("T")


class Books:
    def __init__(self) -> None:
        self.acted: set[str] = set()
        self.closed: set[str] = set()


class Forward(SagaStepHandler[Order, Response]):
    """Acts once for its key."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def act(self, context: Order) -> None:
        assert current_step().idempotency_key
        if current_step().step in self.books.closed:
            raise StepError("its compensation came first")
        self.books.acted.add(current_step().step)


class Careful(Forward):
    """Can be undone as well."""

    async def compensate(self, context: Order) -> None:
        assert current_step().idempotency_key
        self.books.closed.add(current_step().step)
        self.books.acted.discard(current_step().step)


class Reserve(Careful):
    pass


class CheckFraud(Careful):
    pass


class Courier(Careful):
    pass


class Post(Careful):
    pass


class Pay(Forward):
    async def verify(self, context: Order) -> Verified:
        return Verified.DONE if "Pay" in self.books.acted else Verified.NOT_DONE


class Notify(Forward):
    pass


class ShippingSaga(Saga[Order]):
    steps = [
        Parallel(Reserve, CheckFraud),
        Fallback(Courier, Post, circuit_breaker=AioBreakerAdapter(fail_max=2, timeout_duration=60)),
    ]


class PayingSaga(Saga[Order]):
    steps = [Reserve, Sleep(3_600), Pay, Notify]
    pivot = Pay


class Container:
    def __init__(self, books: Books) -> None:
        self.books = books

    async def resolve(self, handler: type[T]) -> T:
        return cast("T", cast("Any", handler)(self.books))


def fresh_for(*complete: set[str]) -> Any:
    """Clean books; a saga that completes has one of these sets of steps in them."""

    def fresh() -> tuple[Container, Any]:
        books = Books()

        def check(saga: TorturedSaga[Order]) -> None:
            assert books.acted in (complete if saga.status == "COMPLETED" else ({*()},)), sorted(books.acted)

        return Container(books), check

    return fresh


async def test_groups_fallbacks_and_breakers() -> None:
    fresh = fresh_for({"Reserve", "CheckFraud", "Courier"}, {"Reserve", "CheckFraud", "Post"})
    report = await torture(ShippingSaga, Order(), fresh=fresh, only="crash worker")
    assert report.ok, report
    assert {run.status for run in report.runs} == {"COMPLETED", "COMPENSATED"}
    assert {"Post.act", "Post.compensate"} <= {cell.stage for run in report.runs for cell in run.cells}


async def test_pivots_pauses_and_verification() -> None:
    report = await torture(PayingSaga, Order(), fresh=fresh_for({"Reserve", "Pay", "Notify"}), only="Pay")
    assert report.ok, report
    alone = {run.key: run.status for run in report.runs if not run.cells}
    assert alone["Pay unknown but acted"] == "COMPLETED"
    assert alone["Pay unknown and did not act"] == "COMPENSATED"
    assert report.parked, "a pivot that may have run twice is a person's affair, and no finding"
    assert "Pay.verify" in {cell.stage for run in report.runs for cell in run.cells}
