"""Sagas for tests of the command line: one that completes, fails or parks, as its context says. Run by a worker too."""

from __future__ import annotations

import dataclasses

from watership import Response, RetryPolicy, Saga, SagaContext, SagaMap, SagaStepHandler, StepError
from watership_worker import Worker


@dataclasses.dataclass
class Purchase(SagaContext):
    """What a test buys."""

    order: str
    cents: int
    reserved: bool = False
    closed: bool = False


class CardDeclined(StepError):
    """The card will not pay so much."""

    code = "card_declined"


class Reserved(Response):
    """What the first step answers."""

    shelf: str


class ReserveGoods(SagaStepHandler[Purchase, Reserved]):
    """Undone, unless the warehouse is closed."""

    async def act(self, context: Purchase) -> Reserved:
        context.reserved = True
        return Reserved(shelf="B7")

    async def compensate(self, context: Purchase) -> None:
        if context.closed:
            raise RuntimeError("the warehouse is [red]closed[/]")
        context.reserved = False


class ChargeMoney(SagaStepHandler[Purchase, None]):
    """Declines what is dear."""

    async def act(self, context: Purchase) -> None:
        if context.cents > 10_000:
            raise CardDeclined("too dear")


class PurchaseSaga(Saga[Purchase]):
    """Two steps."""

    steps = [ReserveGoods, ChargeMoney]
    compensation_retry = RetryPolicy(max_attempts=1)


def bind(mapper: SagaMap) -> None:
    """For `bootstrap` and `Worker`."""
    mapper.bind(Purchase, PurchaseSaga)


worker = Worker(sagas_mapper=bind)
