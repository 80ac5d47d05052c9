"""The saga that is measured: three steps that do nothing, so that what is measured is the machinery."""

from __future__ import annotations

import dataclasses

from watership.response import Response
from watership.saga.models import SagaContext
from watership.saga.saga import Saga, SagaMap
from watership.saga.step import SagaStepHandler

STEPS = ("Reserve", "Charge", "Ship")


@dataclasses.dataclass
class BenchContext(SagaContext):
    """A context of about 300 bytes."""

    order_id: str = "o-1"
    padding: str = "x" * 220
    reservation_id: str | None = None
    payment_id: str | None = None


class Reserve(SagaStepHandler[BenchContext, Response]):
    """Does nothing."""

    async def act(self, context: BenchContext) -> None:
        """Nothing."""

    async def compensate(self, context: BenchContext) -> None:
        """Nothing."""


class Charge(Reserve):
    """Does nothing."""


class Ship(Reserve):
    """Does nothing."""


class BenchSaga(Saga[BenchContext]):
    """Three steps with empty handlers."""

    steps = [Reserve, Charge, Ship]


def sagas(mapper: SagaMap) -> None:
    """Binds the one saga."""
    mapper.bind(BenchContext, BenchSaga)
