"""How a participant of the chaos runs goes about its work, whatever the work is.

``BOOKS_URL`` names their database. Every effect and its line in the ledger are one transaction. A careful participant has
it behind the product's barrier, and nothing else that would keep out a duplicate; a plain one does what it is told, each
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import AsyncIterator
from typing import ClassVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from watership import (
    OutcomeUnknown,
    Response,
    RetryPolicy,
    SagaStepHandler,
    StepError,
    StepRun,
    Verified,
    barrier,
    current_step,
)

from tests.chaos.orders import Kind, Order, Trouble, role_of

TIMEOUT_S = 2.0
# Short, so that what was lost is due soon; a long run, which has more waiting in its queues, allows for more.
QUEUE_WITHIN_S = float(os.environ.get("CHAOS_QUEUE_WITHIN_S", "5"))
EFFECT = sa.text("""
INSERT INTO effect (saga_id, kind, step, action, attempt, idempotency_key, pid)
VALUES (:saga_id, :kind, :step, :action, :attempt, :idempotency_key, :pid)
""")
LOCK = sa.text("SELECT pg_advisory_xact_lock(:key)")
TRY_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(:key)")
ACTED = sa.text("SELECT count(*) FROM effect WHERE saga_id = :saga_id AND step = :step AND action = 'act'")
# A participant that stops in the middle of a transaction must not hold up the others either.
PATIENCE = {
    "application_name": "participant",
    "lock_timeout": "1500ms",
    "idle_in_transaction_session_timeout": "3000ms",
    "statement_timeout": "3000ms",
}


class Declined(StepError):
    """The step has no effect, and says so."""

    code = "chaos_declined"


class Participant(SagaStepHandler[Order, Response]):
    """One step: ``take`` has its effect, in a session's transaction, and ``mark`` writes it into the context."""

    timeout_s = TIMEOUT_S
    queue_within_s = QUEUE_WITHIN_S
    retry = RetryPolicy(max_attempts=4, delay_s=0.2, max_delay_s=1.0)
    engine: ClassVar[AsyncEngine | None] = None

    async def act(self, context: Order) -> Response:
        """Has its effect, and the trouble that the context says."""
        run = current_step()
        role = role_of(run.step)
        trouble = context.trouble if context.trouble_at == role and run.attempt <= context.trouble_runs else ""
        if trouble == Trouble.FAILS:
            raise Declined(f"declined at {role}")
        if trouble == Trouble.UNKNOWN_BEFORE:
            raise OutcomeUnknown("nothing was done, and nobody can tell")
        if trouble == Trouble.SLOW_BEFORE:
            await asyncio.sleep(2 * self.timeout_s)
        async with self._transaction(run, context) as session:
            await self.take(session, run, context)
            self.mark(context)
        if trouble == Trouble.UNKNOWN_AFTER:
            raise OutcomeUnknown("it was done, and nobody can tell")
        if trouble == Trouble.SLOW_AFTER:
            await asyncio.sleep(2 * self.timeout_s)
        return Response()

    @contextlib.asynccontextmanager
    async def _transaction(self, run: StepRun, context: Order) -> AsyncIterator[AsyncSession]:
        """One transaction for all that the block does, with its line in the ledger."""
        async with AsyncSession(_engine()) as session:
            if context.kind == Kind.PLAIN:
                async with _in_doubt(), session.begin():
                    yield session
                    await _note(session, run, context)
            else:
                async with session.begin(), barrier(session):
                    await self.begin(session, run)
                    yield session
                    await _note(session, run, context)

    async def begin(self, session: AsyncSession, run: StepRun) -> None:
        """What comes first in a guarded transaction."""

    async def take(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        """The effect."""
        raise NotImplementedError

    def mark(self, context: Order) -> None:
        """The step acted."""
        context.trail.append(role_of(type(self).__name__))


class Undoable(Participant):
    """``give_back`` undoes it."""

    async def compensate(self, context: Order) -> None:
        """Undoes it."""
        run = current_step()
        async with self._transaction(run, context) as session:
            await self.give_back(session, run, context)

    async def give_back(self, session: AsyncSession, run: StepRun, context: Order) -> None:
        """The undoing."""
        raise NotImplementedError


class Verifiable(Participant):
    """Can be asked whether it acted. A lock tells whether a commit of it is on its way: the act has it to its end."""

    verify_retry = RetryPolicy(max_attempts=10_000, delay_s=0.2, max_delay_s=1.0)

    async def begin(self, session: AsyncSession, run: StepRun) -> None:
        await session.execute(LOCK, {"key": _key(run)})

    async def verify(self, context: Order) -> Verified:
        """What the books say."""
        run = current_step()
        async with AsyncSession(_engine()) as session, session.begin():
            if not await session.scalar(TRY_LOCK, {"key": _key(run)}):
                return Verified.STILL_UNKNOWN
            if not await session.scalar(ACTED, {"saga_id": run.saga_id, "step": run.step}):
                return Verified.NOT_DONE
        self.mark(context)
        return Verified.DONE


def _key(run: StepRun) -> int:
    return zlib.crc32(f"{run.saga_id}:{run.step}".encode())


@contextlib.asynccontextmanager
async def _in_doubt() -> AsyncIterator[None]:
    """Without a barrier, the link may have gone in the middle of the commit for all that anybody knows."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise OutcomeUnknown(f"the participants' database: {type(error).__name__}: {error}") from error


async def _note(session: AsyncSession, run: StepRun, context: Order) -> None:
    where = {"saga_id": run.saga_id, "kind": context.kind, "step": run.step, "action": run.action}
    how = {"attempt": run.attempt, "idempotency_key": run.idempotency_key, "pid": os.getpid()}
    await session.execute(EFFECT, where | how)


def _engine() -> AsyncEngine:
    if Participant.engine is None:
        url = sa.make_url(os.environ["BOOKS_URL"]).set(drivername="postgresql+asyncpg")
        Participant.engine = create_async_engine(
            url,
            pool_size=8,
            max_overflow=0,
            pool_timeout=1.5,
            connect_args={"timeout": 2, "command_timeout": 4, "server_settings": PATIENCE},
        )
    return Participant.engine
