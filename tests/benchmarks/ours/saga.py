"""The saga that all are measured with: three steps with empty handlers, and a context of about 300 bytes."""

from __future__ import annotations

import dataclasses

from watership import Response, Saga, SagaContext, SagaMap, SagaStepHandler
from watership_worker import Worker

STEPS = ("Reserve", "Charge", "Ship")
WARMING = 200  # sagas that are run before any is counted, and one before them


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


worker = Worker(sagas_mapper=sagas)
