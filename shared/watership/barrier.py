"""The barrier: a handler's effect in its own database happens once, and never after its compensation.

Theory of operation
===================

A command may be delivered twice, and late. Three faults come of that, in every saga system:

* a **duplicate**: an act, or a compensation, runs again, and has its effect twice;
* an **empty compensation**: the act timed out before it began, and what never happened is undone;
* a **late act**: that act begins after all, behind its compensation, and nothing will ever undo it.

All three are decided by one row in the participant's own database, written in the transaction of the effect itself: the
*act's row*, under (saga, step, "act"). It is there if the effect is, since both are committed or neither. Nobody reads it
first and then writes: each move is one statement, and its **row count** is the decision::

    act          insert the act's row, begun           1: run     0: what does the row say?
                                                                     done          duplicate: answer what it stored
                                                                     undone, empty late: refused, it had no effect

    compensate   insert the act's row, empty           1: empty compensation: run nothing, keep the row, done
                 move the act's row, done -> undone    1: run, under a row of its own for its generation
                                                       0: duplicate: answer what the compensation's row stored

    at the end of the block: begun -> done, with the patch, the response and the events, and then the handler commits

**Two at once.** The second insert waits on the unique index until the first transaction ends. If that commits, it counts
0 and the second answers what was stored; if that rolls back, it counts 1 and the second runs. The move waits on the row's
lock in the same way. SQLite has one writer at a time, which is the same with a wider lock; who waits there too long gets
"database is locked", an ordinary error of a run that had no effect. A deadlock, or a transaction that a stricter isolation
refuses, is one too. So contention ends in an attempt that failed, never in a wrong answer.

**Attempts and generations.** The rows know no attempts: a retry of an act that is done answers done. An act has one row,
and so one effect, which is undone once: a compensation of a later generation finds the act's row moved, and answers what
the earlier one stored.

**A failed block leaves nothing.** An error that leaves the block rolls the transaction back, the row with it: so the next
attempt runs. A row that stays *begun* can only come of a commit that went by without SQLAlchemy, such as one of the driver's
or of a stored procedure; what it guards may be half done, so a duplicate of it is *unknown*. What commits as text, or by
itself as a DDL statement does on MariaDB, is refused before it is sent.

**What the saga knows, and the rows do not.** A command says whether the saga's log has the act as done (``acted``).

* If it has, a compensation that finds no row is not an empty one: the row was pruned, or the act ran before there was a
  barrier. The row is inserted as *undone*, and the compensation runs; so it does if the row is *empty*.
* If it has not, but the row is done, then the act's reply was lost, and with it what the act changed in the context. The
  compensation gets those changes back before it runs: it could not refund a payment whose number it was never told.

**Why the end of a run is judged by the commit.** Between the end of the block and the end of the handler lies the commit,
and the run is *done* only if that came back without an error: the commit of the transaction that the block was in, whatever
else the session commits after it. So it makes no difference whether the handler lets an error out or swallows it:

* An error before the commit means a rollback: *failed*. So has a handler that returns though its block failed, or though its
  transaction was rolled back or never committed; what it left open is refused a commit from then on.
* One at the commit or after it leaves the effect in doubt: *unknown*. So does a commit that the database itself refuses:
  SQLite leaves the transaction open then, and whoever has the connection next may commit it after all.
* A database can roll back by itself, when a statement fails: PostgreSQL then takes COMMIT for ROLLBACK, without an error. So
  if one failed behind the block, the block's row is looked for before the commit, which without it is refused: *failed*.
* A savepoint could be rolled back behind the block and leave the commit in place. So the block must not be inside of one,
  nor leave one open at its end; one that begins and ends inside of it is safe.

A context that is changed behind the block is *unknown*, with the patch that was stored: the commit took place, so it cannot
be failed; and it must not be done, because that would keep a change that no duplicate could answer, or drop one that the
handler counts on.

Not guarded: what is outside of this database. Pass the idempotency key on to it. And the block must hold the handler's whole
effect: what is written before it or behind it is not in its transaction, and happens twice, or half.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from watership.errors import ActRefused, AlreadyHandled, BarrierMisused, LimitExceeded
from watership.response import Response
from watership.saga.run import Block, HandlerRun, current_run
from watership.saga.step import StepEvent

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from watership.barrier_table import BarrierBase, Row, StepRows, barrier_table

__all__ = ["RETENTION", "RETENTION_MIN", "Barrier", "BarrierBase", "barrier", "barrier_table", "prune_barrier"]

log = logging.getLogger("watership.barrier")

ACT, COMPENSATE = "act", "compensate"

# No row may go before the last message that it could keep out: a command waits in its queue for 7 days at the most and is
# sent again for a retry 7 days later at the most; a run takes less than an hour. A dead letter never comes back as it was.
RETENTION_MIN = timedelta(days=14)
RETENTION = timedelta(days=30)
PRUNE_CHUNK = 500

ValueT = TypeVar("ValueT")


def barrier(session: AsyncSession | AsyncConnection) -> Barrier:
    """A block that has its effect once, in the handler's own transaction. In ``act`` and ``compensate``, or in neither.

    ::

        async def act(self, context: OrderContext) -> StockReserved:
            async with self.session.begin(), barrier(self.session) as block:
                self.session.add(Reservation(order_id=context.order_id, amount=context.amount))
                context.reserved = True
                block.response = StockReserved(amount=context.amount)
            return block.response

    **The block must hold the handler's whole effect**: everything that it writes to the database, and every change of the
    context. What is outside of it happens again with a duplicate, and is not undone with a late act. A call to another
    service is never in the transaction: give it ``current_step().idempotency_key``.

    A run that must not happen leaves the handler at the ``async with``, by `AlreadyHandled`, and the saga gets the answer
    of the run that did happen: its patch, and the response and the events that were set in its block (none if none were).
    An error that leaves the block rolls the transaction back. The commit is the handler's, after the block.

    ``session`` is on PostgreSQL, SQLite (a file, or one connection in memory), MariaDB or MySQL, and its database has the
    table `BarrierBase` (``docs/guide.md`` shows the DDL). Entering raises `LookupError` outside a handler,
    `ConfigurationError` without the table, in autocommit or in two phases, `BarrierMisused` for a second block in one run and
    inside a savepoint.
    """
    return Barrier(session)


class Barrier:
    """One block. Made by `barrier`."""

    def __init__(self, session: AsyncSession | AsyncConnection, *, commits: bool = False) -> None:
        self._session = session
        self._commits = commits  # in the greenlet that settles: to enter another one costs a third of a statement
        self._block = Block()
        self._run: HandlerRun | None = None
        self._rows: StepRows | None = None

    @property
    def response(self) -> Any:
        """What this run and every duplicate of it answer: set it inside the block, to a `Response` or None."""
        return self._block.answer

    @response.setter
    def response(self, response: Response | None) -> None:
        if self._block.ended:
            raise BarrierMisused("the response was set after the barrier's block; set it inside, where it is stored")
        self._block.answers, self._block.answer = True, response

    @property
    def events(self) -> Sequence[StepEvent]:
        """What this run and every duplicate of it tell the world: set them inside the block."""
        return self._block.events

    @events.setter
    def events(self, events: Sequence[StepEvent]) -> None:
        if self._block.ended:
            raise BarrierMisused("events were set after the barrier's block; set them inside, where they are stored")
        self._block.events = tuple(events)

    async def __aenter__(self) -> Self:
        run = self._run = _run_for_a_block()
        from watership.barrier_transaction import explain_missing_table, on_connection_of

        run.block = self._block
        try:
            handled, keep = await on_connection_of(self._session, functools.partial(self._claim, run))
            if handled is not None and keep:
                await self._commit_nothing_else()
        except BaseException as error:
            run.block_error = error
            await self._give_up(run)
            explain_missing_table(error)
            raise
        if handled is None:
            return self
        if not keep:
            await self._give_up(run)
        run.block = None
        run.handled = handled
        raise handled

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run = self._run
        assert run is not None, "it was entered"
        if error is None:
            try:
                await self._settle(run)
            except BaseException as unfit:
                if self._block.ended:  # the commit's own
                    raise
                run.block_error = unfit
                await self._give_up(run)
                raise
        else:
            run.block_error = error
            await self._give_up(run)

    def _claim(self, run: HandlerRun, connection: Connection) -> tuple[AlreadyHandled | None, bool]:
        """How the run was handled already, if it was, and whether what was written of that must be kept."""
        from watership.barrier_table import StepRows
        from watership.barrier_transaction import refuse_unfit, watch

        refuse_unfit(connection)
        rows = self._rows = StepRows(connection, run.step.saga_id, run.step.step, run.step.attempt)
        handled, keep = _claim_act(rows, run) if run.step.action == ACT else _claim_compensation(rows, run)
        if handled is None:
            settled_row = functools.partial(rows.settled, run.step.action, run.step.generation)
            watch(connection, self._block, settled_row)
        return handled, keep

    async def _commit_nothing_else(self) -> None:
        from watership.barrier_transaction import connection_of

        forget = getattr(self._session, "expunge_all", None)
        if forget is not None:  # what the handler put into its session before the block is not to be written
            forget()
        connection = await connection_of(self._session)
        await self._session.commit()
        if not connection.closed and connection.in_transaction():  # the session does not own it, and commits nothing
            await connection.commit()

    async def _settle(self, run: HandlerRun) -> None:
        from watership.barrier_transaction import flushed

        block = self._block
        patch, response, events = run.patch(), run.response_data(block.answer), run.events_data(block.events)
        run.check_reply(patch, response, events)
        settle = functools.partial(self._store, run, patch, response, events)
        if block.rolled_back or not await flushed(self._session, settle, commits=self._commits):
            raise BarrierMisused(
                f"{run.where}: the transaction was rolled back inside the barrier's block, and a part of the effect with "
                f"it; let the error leave the block, or use session.begin_nested() for what may fail"
            )

    def _store(self, run: HandlerRun, patch: dict[str, Any], response: Any, events: tuple[dict[str, Any], ...]) -> bool:
        """Whether the row was there still to be settled."""
        from watership.barrier_transaction import refuse_open_savepoint

        rows, step = self._rows, run.step
        assert rows is not None, "it was entered"
        refuse_open_savepoint(rows.connection)
        block = self._block
        if block.rolled_back or not rows.settle(step.action, step.generation, patch, response, events):
            return False
        block.patch, block.response, block.told, block.ended = patch, response, events, True
        return True

    async def _give_up(self, run: HandlerRun) -> None:
        """Nothing of a block that did not end may be committed, whatever the handler makes of the error."""
        self._block.failed = True
        with contextlib.suppress(Exception):  # a connection that is gone has nothing to roll back
            await self._session.rollback()
        run.block = None  # the handler may try again


async def run_behind(
    session: AsyncSession | AsyncConnection, call: Callable[[], Awaitable[tuple[ValueT, Any, Sequence[StepEvent]]]]
) -> ValueT:
    """Runs ``call`` in a barrier's block on ``session`` and commits; it gives a value, and what to store: response, events."""
    from watership.barrier_transaction import commits_plainly

    commits = commits_plainly(session)
    async with Barrier(session, commits=commits) as block:
        value, block.response, block.events = await call()
    if not commits:
        await session.commit()
    return value


# --- the decisions: see the theory above ----------------------------------------------------------------------------


def _claim_act(rows: StepRows, run: HandlerRun) -> tuple[AlreadyHandled | None, bool]:
    from watership.barrier_table import BEGUN

    if rows.insert(ACT, 1, BEGUN):
        return None, False
    row = rows.read(ACT, 1)
    if row is None:
        raise _vanished(run)
    return _answer_to_act(row, run), False


def _answer_to_act(row: Row, run: HandlerRun) -> AlreadyHandled:
    from watership.barrier_table import BEGUN, DONE, EMPTY

    if row.state == DONE:
        return AlreadyHandled("done", patch=row.patch, response=row.response, events=row.events)
    if row.state == BEGUN:
        return _half_done(run)
    undone = "its compensation came first" if row.state == EMPTY else "it was done before, and undone since"
    return AlreadyHandled("failed", error=ActRefused(f"{run.where}: this act is late: {undone}"), certain=True)


def _claim_compensation(rows: StepRows, run: HandlerRun) -> tuple[AlreadyHandled | None, bool]:
    from watership.barrier_table import BEGUN, DONE, EMPTY, UNDONE

    generation = run.step.generation
    if rows.insert(ACT, 1, UNDONE if run.acted else EMPTY):
        if not run.acted:
            rows.insert(COMPENSATE, generation, EMPTY)
            log.info("%s: an empty compensation: its act never ran, and is refused from now on", run.where)
            return AlreadyHandled("done"), True
    elif not rows.move(ACT, 1, before=(DONE, BEGUN, EMPTY) if run.acted else (DONE, BEGUN), after=UNDONE):
        return _answer_to_compensation(rows.read(COMPENSATE), run), False
    elif not run.acted:
        act = rows.read(ACT, 1)
        if act is not None and act.patch is not None:
            run.restore(act.patch)
    if not rows.insert(COMPENSATE, generation, BEGUN):
        return _answer_to_compensation(rows.read(COMPENSATE, generation), run), False
    return None, False


def _answer_to_compensation(row: Row | None, run: HandlerRun) -> AlreadyHandled:
    from watership.barrier_table import BEGUN

    if row is None:  # pruned a moment before the act's row, which says enough
        return AlreadyHandled("done")
    if row.state == BEGUN:
        return _half_done(run)
    return AlreadyHandled("done", patch=row.patch, response=row.response, events=row.events)


def _half_done(run: HandlerRun) -> AlreadyHandled:
    error = BarrierMisused(
        f"{run.where}: an earlier run of this {run.step.action} was committed before its barrier's block had ended, so its "
        f"effect may be half done; keep commits and DDL statements out of the block"
    )
    return AlreadyHandled("unknown", error=error)


def _vanished(run: HandlerRun) -> BarrierMisused:
    return BarrierMisused(
        f"{run.where}: the barrier's row was deleted while it was read; the next attempt looks afresh"
    )


def _run_for_a_block() -> HandlerRun:
    run = current_run()
    if run is None:
        raise LookupError(
            "a barrier belongs into a handler's act or compensate: outside, there is no step that it guards"
        )
    if run.step.action not in (ACT, COMPENSATE):
        raise BarrierMisused(
            f"{run.where}: a barrier guards an act or a compensation; in a {run.step.action}, only read"
        )
    if run.block is not None:
        raise BarrierMisused(
            f"{run.where}: a second barrier in one run; put the whole effect into one block (Worker(barrier=...) has one "
            f"around every handler already)"
        )
    return run


# --- retention ------------------------------------------------------------------------------------------------------


async def prune_barrier(
    session: AsyncSession | AsyncConnection, older_than: timedelta = RETENTION, *, chunk: int = PRUNE_CHUNK
) -> int:
    """Deletes rows that have not changed for ``older_than``, ``chunk`` at a time, each chunk committed; how many.

    ``older_than`` is longer than any of your sagas lives, the time that one may be parked for a person included: without
    its row, an act whose outcome the saga never learnt counts as one that never ran. Raises `LimitExceeded` below
    `RETENTION_MIN`, 14 days: a row must outlive every queue and every dead letter that may still bring its command.
    """
    if older_than < RETENTION_MIN:
        raise LimitExceeded(
            "prune_barrier: older_than in seconds (at least the limit)",
            value=int(older_than.total_seconds()),
            limit=int(RETENTION_MIN.total_seconds()),
        )
    from watership.barrier_table import delete_older
    from watership.barrier_transaction import connection_of

    older_than_ms, deleted = int(older_than.total_seconds() * 1000), 0
    while True:
        gone = await delete_older(await connection_of(session), older_than_ms, chunk)
        await session.commit()
        deleted += gone
        if gone == 0:
            return deleted


def __getattr__(name: str) -> Any:
    """The table at first use: importing SQLAlchemy takes longer than all the rest."""
    if name in ("BarrierBase", "barrier_table"):
        from watership import barrier_table as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
