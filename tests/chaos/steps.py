"""The steps of the chaos runs, their sagas and their worker: `watership worker tests.chaos.steps:worker`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from watership import Parallel, RetryPolicy, Saga, SagaMap, Sleep, StepRun, Wait
from watership_worker import Worker

from tests.chaos.orders import CarefulOrder, FlowOrder, Order, PlainOrder, StuckOrder
from tests.chaos.participants import Declined, Participant, Undoable, Verifiable

WAIT_S = 8.0


class Reserve(Undoable):
    """Takes pieces from a shelf."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "stock", "pieces", context, -context.pieces)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "stock", "pieces", context, context.pieces)


class Charge(Undoable):
    """Takes money from an account into the till."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "account", "cents", context, -context.cents)
        await _add(session, "till", "cents", context, context.cents)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "account", "cents", context, context.cents)
        await _add(session, "till", "cents", context, -context.cents)


class Hand(Participant):
    """Hands a parcel over."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        parcel = sa.text("INSERT INTO shipment (saga_id, pieces, kind) VALUES (:saga_id, :pieces, :kind)")
        values = {"saga_id": run.saga_id, "pieces": context.pieces, "kind": context.kind}
        await session.execute(parcel, values)


class Ship(Hand, Undoable):
    """And gets it back."""

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


class FlowReserve(Reserve):
    """Beside the charge."""

    def mark(self, context: Order) -> None:
        assert isinstance(context, FlowOrder)
        context.reserved = True


class FlowCharge(Charge, Verifiable):
    """Beside the reservation; can be asked."""

    def mark(self, context: Order) -> None:
        assert isinstance(context, FlowOrder)
        context.charged = True


class FlowCapture(Verifiable):
    """The pivot: the money goes where nobody takes it out again. It can decline; else it is tried until it is done."""

    retry = RetryPolicy(max_attempts=10_000, delay_s=0.2, max_delay_s=1.0, non_retryable=(Declined,))

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        await _add(session, "till", "cents", context, -context.cents)
        await _add(session, "vault", "cents", context, context.cents)


class FlowShip(Hand):
    """Behind the pivot: tried until it is done."""

    retry = RetryPolicy(max_attempts=None, delay_s=0.2, max_delay_s=1.0)


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


class FlowSaga(Saga[FlowOrder]):
    """All that may stand among steps."""

    steps = [
        Parallel(FlowReserve, FlowCharge),
        Wait("approval", into="approval", timeout_s=WAIT_S, on_timeout="compensate", reject_if=("approved", False)),
        Sleep(0.3, name="cooling off"),
        FlowCapture,
        FlowShip,
    ]
    pivot = FlowCapture
    compensation_retry = PATIENT


def sagas(mapper: SagaMap) -> None:
    """For `bootstrap` and `Worker`."""
    mapper.bind(CarefulOrder, CarefulSaga)
    mapper.bind(PlainOrder, PlainSaga)
    mapper.bind(StuckOrder, StuckSaga)
    mapper.bind(FlowOrder, FlowSaga)


worker = Worker(sagas_mapper=sagas)
