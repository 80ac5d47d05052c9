"""The participants of the chaos runs, and their worker: `watership worker tests.chaos.steps:worker`.

``BOOKS_URL`` names their database. Every effect and its line in the ledger are one transaction. A careful participant
remembers what it handled in that transaction too; a plain one does what it is told, each time.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar

import asyncpg

from watership import (
    OutcomeUnknown,
    Response,
    RetryPolicy,
    Saga,
    SagaMap,
    SagaStepHandler,
    StepError,
    StepRun,
    current_step,
)
from watership_worker import Worker

from tests.chaos.orders import CarefulOrder, Kind, Order, PlainOrder, StuckOrder, Trouble

TIMEOUT_S = 2.0
# Short, so that what was lost is due soon; a long run, which has more waiting in its queues, allows for more.
QUEUE_WITHIN_S = float(os.environ.get("CHAOS_QUEUE_WITHIN_S", "5"))
EFFECT = """
INSERT INTO effect (saga_id, kind, step, action, attempt, idempotency_key, pid) VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
HANDLED = """
INSERT INTO handled (saga_id, step, action, refused) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING saga_id
"""
# A participant that stops in the middle of a transaction must not hold up the others either.
PATIENCE = {
    "application_name": "participant",
    "lock_timeout": "1500ms",
    "idle_in_transaction_session_timeout": "3000ms",
    "statement_timeout": "3000ms",
}
Connection = Any  # asyncpg's, from its pool


class Declined(StepError):
    """The step has no effect, and says so."""

    code = "chaos_declined"


class Participant(SagaStepHandler[Order, Response]):
    """One step: ``take`` has its effect, ``give_back`` undoes it, each on a transaction's connection."""

    timeout_s = TIMEOUT_S
    queue_within_s = QUEUE_WITHIN_S
    retry = RetryPolicy(max_attempts=4, delay_s=0.2, max_delay_s=1.0)
    opening: ClassVar[asyncio.Task[Any] | None] = None

    async def act(self, context: Order) -> Response:
        """Has its effect, and the trouble that the context says."""
        run = current_step()
        role = run.step.removeprefix("Plain").removeprefix("Careful").removeprefix("Stuck")
        trouble = context.trouble if context.trouble_at == role and run.attempt <= context.trouble_runs else ""
        if trouble == Trouble.FAILS:
            raise Declined(f"declined at {role}")
        if trouble == Trouble.UNKNOWN_BEFORE:
            raise OutcomeUnknown("nothing was done, and nobody can tell")
        if trouble == Trouble.SLOW_BEFORE:
            await asyncio.sleep(2 * self.timeout_s)
        await self._in_one_transaction(run, context)
        if trouble == Trouble.UNKNOWN_AFTER:
            raise OutcomeUnknown("it was done, and nobody can tell")
        if trouble == Trouble.SLOW_AFTER:
            await asyncio.sleep(2 * self.timeout_s)
        context.trail.append(role)
        return Response()

    async def compensate(self, context: Order) -> None:
        """Undoes it."""
        await self._in_one_transaction(current_step(), context)

    async def _in_one_transaction(self, run: StepRun, context: Order) -> None:
        pool = await _pool()
        try:
            async with pool.acquire(timeout=1.5) as connection, connection.transaction():
                if context.kind != Kind.PLAIN and not await _is_new(connection, run):
                    return
                if run.action == "act":
                    await self.take(connection, run, context)
                else:
                    await self.give_back(connection, run, context)
                where = (run.saga_id, context.kind, run.step, run.action, run.attempt, run.idempotency_key)
                await connection.execute(EFFECT, *where, os.getpid())
        except (
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
        ) as error:  # the link may have gone in the middle of the commit
            raise OutcomeUnknown(f"the participant's database: {type(error).__name__}: {error}") from error

    async def take(self, connection: Connection, run: StepRun, context: Order) -> None:
        """The effect."""
        raise NotImplementedError

    async def give_back(self, connection: Connection, run: StepRun, context: Order) -> None:
        """Its undoing."""
        raise NotImplementedError


async def _is_new(connection: Connection, run: StepRun) -> bool:
    """Whether this must be done, and is noted as done now. Not a second time; not undone if it never acted (then the act
    must not come later either); not acted once it is undone."""
    if run.action == "act":
        if await connection.fetchval(HANDLED, run.saga_id, run.step, "act", False) is not None:
            return True
        refused = "SELECT refused FROM handled WHERE saga_id = $1 AND step = $2 AND action = 'act'"
        if await connection.fetchval(refused, run.saga_id, run.step):
            raise Declined("it was undone before it came")
        return False
    never_acted = await connection.fetchval(HANDLED, run.saga_id, run.step, "act", True) is not None
    first = await connection.fetchval(HANDLED, run.saga_id, run.step, "compensate", never_acted) is not None
    return first and not never_acted


async def _pool() -> Any:
    if Participant.opening is None or (Participant.opening.done() and Participant.opening.exception() is not None):
        Participant.opening = asyncio.create_task(_open_pool())
    return await asyncio.shield(Participant.opening)


async def _open_pool() -> Any:
    return await asyncpg.create_pool(
        os.environ["BOOKS_URL"], min_size=0, max_size=8, timeout=2, command_timeout=4, server_settings=PATIENCE
    )


class Reserve(Participant):
    """Takes pieces from a shelf."""

    async def take(self, connection: Connection, run: StepRun, context: Order) -> None:
        await _add(connection, "stock", "pieces", context, -context.pieces)

    async def give_back(self, connection: Connection, run: StepRun, context: Order) -> None:
        await _add(connection, "stock", "pieces", context, context.pieces)


class Charge(Participant):
    """Takes money from an account into the till."""

    async def take(self, connection: Connection, run: StepRun, context: Order) -> None:
        await _add(connection, "account", "cents", context, -context.cents)
        await _add(connection, "till", "cents", context, context.cents)

    async def give_back(self, connection: Connection, run: StepRun, context: Order) -> None:
        await _add(connection, "account", "cents", context, context.cents)
        await _add(connection, "till", "cents", context, -context.cents)


class Ship(Participant):
    """Hands a parcel over."""

    async def take(self, connection: Connection, run: StepRun, context: Order) -> None:
        parcel = "INSERT INTO shipment (saga_id, pieces, kind) VALUES ($1, $2, $3)"
        await connection.execute(parcel, run.saga_id, context.pieces, context.kind)

    async def give_back(self, connection: Connection, run: StepRun, context: Order) -> None:
        await connection.execute("DELETE FROM shipment WHERE saga_id = $1", run.saga_id)


async def _add(connection: Connection, table: str, column: str, context: Order, amount: int) -> None:
    change = f"UPDATE {table} SET {column} = {column} + $3 WHERE kind = $1 AND shelf = $2"
    await connection.execute(change, context.kind, context.shelf, amount)


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
