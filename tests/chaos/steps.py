"""The steps of the chaos runs, their sagas and their worker: `watership worker tests.chaos.steps:worker`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from watership import RetryPolicy, Saga, SagaMap, StepRun
from watership_worker import Worker

from tests.chaos.orders import CarefulOrder, Order, PlainOrder, StuckOrder
from tests.chaos.participants import Participant


class Reserve(Participant):
    """Takes pieces from a shelf."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "stock", "pieces", context, -context.pieces)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "stock", "pieces", context, context.pieces)


class Charge(Participant):
    """Takes money from an account into the till."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "account", "cents", context, -context.cents)
        await _add(session, "till", "cents", context, context.cents)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "account", "cents", context, context.cents)
        await _add(session, "till", "cents", context, -context.cents)


class Ship(Participant):
    """Hands a parcel over."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        parcel = sa.text("INSERT INTO shipment (saga_id, pieces, kind) VALUES (:saga_id, :pieces, :kind)")
        values = {"saga_id": run.saga_id, "pieces": context.pieces, "kind": context.kind}
        await session.execute(parcel, values)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await session.execute(sa.text("DELETE FROM shipment WHERE saga_id = :saga_id"), {"saga_id": run.saga_id})


async def _add(session: AsyncSession, table: str, column: str, context: Order, amount: int) -> None:
    change = sa.text(f"UPDATE {table} SET {column} = {column} + :amount WHERE kind = :kind AND shelf = :shelf")
    await session.execute(change, {"amount": amount, "kind": context.kind, "shelf": context.shelf})


class CarefulReserve(Reserve):
    """Once."""


class CarefulCharge(Charge):
    """Once."""


class CarefulShip(Ship):
    """Once."""


class PlainReserve(Reserve):
    """As often as told."""


class PlainCharge(Charge):
    """As often as told."""


class PlainShip(Ship):
    """As often as told."""


class StuckReserve(Reserve):
    """Cannot be undone."""

    compensation_retry = RetryPolicy(max_attempts=2, delay_s=0.2)

    async def compensate(self, context: Order) -> None:
        raise RuntimeError("the warehouse is closed")


class StuckShip(Ship):
    """Always fails: the context says so."""


PATIENT = RetryPolicy(max_attempts=10_000, delay_s=0.2, max_delay_s=1.0)


class CarefulSaga(Saga[CarefulOrder]):
    """Its books always balance."""

    steps = [CarefulReserve, CarefulCharge, CarefulShip]
    compensation_retry = PATIENT


class PlainSaga(Saga[PlainOrder]):
    """Its books balance but for what was done twice."""

    steps = [PlainReserve, PlainCharge, PlainShip]
    compensation_retry = PATIENT


class StuckSaga(Saga[StuckOrder]):
    """Ends parked."""

    steps = [StuckReserve, StuckShip]
    compensation_retry = PATIENT


def sagas(mapper: SagaMap) -> None:
    """For `bootstrap` and `Worker`."""
    mapper.bind(CarefulOrder, CarefulSaga)
    mapper.bind(PlainOrder, PlainSaga)
    mapper.bind(StuckOrder, StuckSaga)


worker = Worker(sagas_mapper=sagas)
