"""A step whose effect is a row in a table, behind the barrier; and commands for it, as the saga's machine would send them."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from watership import Response, SagaContext, SagaStepHandler, StepError, barrier, current_step
from watership.barrier import BarrierBase, barrier_table
from watership.container import PlainContainer
from watership.execution import Command, Execution, Hands, execute
from watership.machine.state import Action, Outcome, idempotency_key


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """What a run did: an act reserves, a compensation releases. ``saw``: the reservation that a compensation was told of."""

    __tablename__ = "effect"
    effect_id: Mapped[int] = mapped_column(primary_key=True)
    saga_id: Mapped[str] = mapped_column(sa.String(36))
    action: Mapped[str] = mapped_column(sa.String(16))
    run: Mapped[str] = mapped_column(sa.String(40))
    saw: Mapped[str | None] = mapped_column(sa.String(40))


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str = "o-1"
    reservation: str | None = None
    released: bool = False


class Reserved(Response):
    reservation: str


class SoldOut(StepError):
    code = "barred_sold_out"


Session = AsyncSession | AsyncConnection
Body = Callable[[Order], Awaitable[Any]]


async def create_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(BarrierBase.metadata.create_all)


_held_at_commit = sa.MetaData()
_parent = sa.Table("parent", _held_at_commit, sa.Column("parent_id", sa.Integer, primary_key=True))
_child = sa.Table(
    "child",
    _held_at_commit,
    sa.Column("child_id", sa.Integer, primary_key=True),
    sa.Column("parent_id", sa.ForeignKey("parent.parent_id", deferrable=True, initially="DEFERRED")),
)


async def foreign_keys_at_commit(engine: AsyncEngine) -> None:
    """A table whose foreign key is looked at by the commit, so that the commit is what fails."""
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine.sync_engine, "connect")
        def look(dbapi_connection: Any, _: Any) -> None:
            dbapi_connection.execute("PRAGMA foreign_keys=ON")

        await engine.dispose()  # its connections so far do not look
    async with engine.begin() as connection:
        await connection.run_sync(_held_at_commit.create_all)


def orphan(parent_id: int = 7) -> sa.Insert:
    """A row that no commit takes, unless its parent is there by then."""
    return sa.insert(_child).values(parent_id=parent_id)


async def take_effect(session: Session, context: Order, run: str) -> Reserved | None:
    """The business code of both actions; what it answers."""
    step = current_step()
    values = {"saga_id": str(step.saga_id), "action": step.action, "run": run}
    if step.action == "compensate":
        values["saw"] = context.reservation or ""
    await session.execute(sa.insert(Effect).values(values))
    if step.action == "compensate":
        context.released = True
        return None
    context.reservation = run
    return Reserved(reservation=run)


def usual(engine: AsyncEngine, run: str = "usual") -> Body:
    """The handler as a user would write it."""

    async def body(context: Order) -> Any:
        async with AsyncSession(engine) as session, session.begin(), barrier(session) as block:
            block.response = await take_effect(session, context, run)
        return block.response

    return body


@dataclasses.dataclass
class Bench:
    """One saga's step on one database."""

    engine: AsyncEngine
    saga_id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)

    async def run(
        self,
        action: Action,
        body: Body | None = None,
        *,
        run: str = "usual",
        attempt: int = 1,
        generation: int = 1,
        acted: bool = False,
        context: dict[str, Any] | None = None,
        timeout_ms: int = 30_000,
    ) -> Execution:
        """What one delivery of a command comes to."""
        chosen = body or usual(self.engine, run)

        class Reserve(SagaStepHandler[Order, Reserved]):
            async def act(self, context: Order) -> Any:
                return await chosen(context)

            async def compensate(self, context: Order) -> None:
                await chosen(context)

        key = idempotency_key(self.saga_id, "Reserve", action, generation)
        data = {"order_id": "o-1", "of_others": 7} if context is None else context
        command = Command(
            self.saga_id,
            "OrderSaga",
            "Reserve",
            action,
            attempt,
            key,
            data,
            timeout_ms,
            generation=generation,
            acted=acted,
        )
        return await execute(command, Hands(Reserve, Order, PlainContainer()))

    async def act(self, body: Body | None = None, **how: Any) -> Execution:
        return await self.run(Action.ACT, body, **how)

    async def compensate(self, body: Body | None = None, **how: Any) -> Execution:
        return await self.run(Action.COMPENSATE, body, **how)

    async def effects(self) -> list[tuple[str, str, str | None]]:
        """Each effect of this saga: its action, the run that had it, and what that saw."""
        query = sa.select(Effect.action, Effect.run, Effect.saw).where(Effect.saga_id == str(self.saga_id))
        async with self.engine.connect() as connection:
            return [
                (action, run, saw) for action, run, saw in await connection.execute(query.order_by(Effect.effect_id))
            ]

    async def actions(self) -> list[str]:
        return [action for action, _, _ in await self.effects()]

    async def states(self) -> dict[tuple[str, int], str]:
        """The barrier's rows of this saga: the state by action and generation."""
        row = barrier_table.c
        query = sa.select(row.action, row.generation, row.state).where(row.saga_id == self.saga_id)
        async with self.engine.connect() as connection:
            return {(action, number): state for action, number, state in (await connection.execute(query)).all()}

    async def had_none(self, ended: Execution, outcome: Outcome, words: str) -> None:
        """The run says so, had no effect, and the next one is free to have it."""
        assert ended.outcome is outcome
        assert ended.failure is not None
        assert words in ended.failure.message, ended.failure.message
        assert (await self.effects(), await self.states()) == ([], {})
        assert (await self.act()).outcome is Outcome.DONE
