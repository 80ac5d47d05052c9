"""A saga whose steps keep their books in a database, behind the barrier: right, and wrong in the ways that a barrier allows."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from watership import Response, Saga, SagaContext, SagaStepHandler, barrier
from watership.barrier import BarrierBase
from watership.testing import database
from watership.testing.torturing.report import TorturedSaga

T = TypeVar("T")


@dataclasses.dataclass
class Transfer(SagaContext):
    amount_cents: int = 4_200
    debit_id: int | None = None


class BankBase(DeclarativeBase):
    pass


class Account(BankBase):
    __tablename__ = "account"
    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class BankStep(SagaStepHandler[Transfer, Response]):
    account = ""
    sign = 1

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def move(self, cents: int) -> None:
        account = sa.update(Account).where(Account.name == self.account)
        await self.session.execute(account.values(cents=Account.cents + cents))


class Debit(BankStep):
    account, sign = "ann", -1

    async def act(self, context: Transfer) -> None:
        async with self.session.begin(), barrier(self.session):
            await self.move(self.sign * context.amount_cents)
            context.debit_id = 7

    async def compensate(self, context: Transfer) -> None:
        async with self.session.begin(), barrier(self.session):
            await self.move(-self.sign * context.amount_cents)


class Credit(Debit):
    account, sign = "ben", 1


class TransferSaga(Saga[Transfer]):
    steps = [Debit, Credit]


class HalfOutsideDebit(Debit):
    """A part of its effect comes after the block: a duplicate is answered, and that part is lost."""

    name = "Debit"

    async def act(self, context: Transfer) -> None:
        half = self.sign * context.amount_cents // 2
        async with self.session.begin(), barrier(self.session):
            await self.move(half)
        async with self.session.begin():
            await self.move(half)


class HalfOutsideSaga(Saga[Transfer]):
    steps = [HalfOutsideDebit, Credit]


class PlainDebit(Debit):
    """It knows of no barrier: its worker has one around each handler."""

    name = "Debit"

    async def act(self, context: Transfer) -> None:
        await self.move(self.sign * context.amount_cents)

    async def compensate(self, context: Transfer) -> None:
        await self.move(-self.sign * context.amount_cents)


class PlainCredit(PlainDebit):
    name = "Credit"
    account, sign = "ben", 1


class PlainSaga(Saga[Transfer]):
    steps = [PlainDebit, PlainCredit]


class _Scope:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def resolve(self, wanted: type[T]) -> T:
        if issubclass(wanted, AsyncSession):
            return cast("T", self.session)
        return cast("T", cast("Any", wanted)(self.session))


class BankContainer:
    """A session for each command."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[_Scope]:
        """It ends with the command."""
        async with AsyncSession(self.engine) as session:
            yield _Scope(session)


async def fresh() -> tuple[BankContainer, Any]:
    """Two accounts for each run, and what must be on them."""
    engine = database(BankBase.metadata, BarrierBase.metadata)
    async with AsyncSession(engine) as session, session.begin():
        session.add_all([Account(name="ann", cents=10_000), Account(name="ben", cents=0)])

    async def check(saga: TorturedSaga[Transfer]) -> None:
        async with AsyncSession(engine) as session:
            found = {account.name: account.cents for account in await session.scalars(sa.select(Account))}
        moved = 4_200 if saga.status == "COMPLETED" else 0
        assert found == {"ann": 10_000 - moved, "ben": moved}, f"the accounts are {found}"

    return BankContainer(engine), check
