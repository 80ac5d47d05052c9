"""`watership.testing.database`: SQLite in a virtual loop, with the manners of a server towards processes that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from watership.testing import database
from watership.testing.inline_sqlite import before_write
from watership.testing.virtual_loop import Lane, VirtualLoop, new_loop


class ShopBase(DeclarativeBase):
    pass


class Stock(ShopBase):
    __tablename__ = "stock"
    item: Mapped[str] = mapped_column(primary_key=True)
    free: Mapped[int]


def virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    """Runs a test in a virtual loop."""
    loop = new_loop(random.Random(1))
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def in_lane(loop: VirtualLoop, name: str, work: Coroutine[Any, Any, None]) -> Lane:
    lane = Lane(name)
    loop.create_task(work, context=lane.context)
    return lane


async def stocked() -> AsyncEngine:
    engine = database(ShopBase.metadata)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Stock(item="bolt", free=10))
    return engine


async def free(engine: AsyncEngine) -> int:
    async with AsyncSession(engine) as session:
        return (await session.scalars(sa.select(Stock.free))).one()


async def test_it_works_in_an_ordinary_loop_with_orm_and_constraints() -> None:
    engine = await stocked()
    with pytest.raises(IntegrityError):
        async with AsyncSession(engine) as session, session.begin():
            session.add(Stock(item="bolt", free=1))
    assert await free(engine) == 10
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.execute(sa.update(Stock).values(free=3))
    assert await free(engine) == 3


async def test_two_databases_know_nothing_of_each_other() -> None:
    one, other = await stocked(), database(ShopBase.metadata)
    assert await free(one) == 10
    async with AsyncSession(other) as session:
        assert (await session.scalars(sa.select(Stock))).all() == []


def test_who_meets_a_lock_waits_in_virtual_time() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine, order = await stocked(), list[str]()

        async def take(name: str, hold_s: float) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(sa.update(Stock).values(free=Stock.free - 1))
                await asyncio.sleep(hold_s)
            order.append(f"{name} at {loop.time() - 1_000:.0f}")

        await asyncio.gather(take("first", 5.0), take("second", 0.0))
        assert order == ["first at 5", "second at 5"]
        assert await free(engine) == 8

    virtually(main)


def test_a_lock_that_is_held_for_too_long_is_an_ordinary_error() -> None:
    async def main(_: VirtualLoop) -> None:
        engine = await stocked()

        async def take(hold_s: float) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(sa.update(Stock).values(free=Stock.free - 1))
                await asyncio.sleep(hold_s)

        holder = asyncio.create_task(take(100.0))
        await asyncio.sleep(1.0)
        with pytest.raises(OperationalError, match="locked"):
            await take(0.0)
        await holder
        assert await free(engine) == 9

    virtually(main)


def test_what_a_dead_process_has_not_committed_is_rolled_back() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine = await stocked()
        session = AsyncSession(engine)

        async def die() -> None:
            await session.execute(sa.update(Stock).values(free=0))
            loop.kill(lane)
            await asyncio.sleep(0)

        lane = in_lane(loop, "worker", die())
        await asyncio.sleep(1.0)
        assert await free(engine) == 10
        async with AsyncSession(engine) as other, other.begin():
            await other.execute(sa.update(Stock).values(free=7))
        assert await free(engine) == 7
        await session.close()

    virtually(main)


def test_a_process_that_stands_still_in_a_transaction_loses_it() -> None:
    async def main(loop: VirtualLoop) -> None:
        engine, told = await stocked(), asyncio.get_running_loop().create_future()

        async def stop() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(sa.update(Stock).values(free=0))
                loop.halt(lane)
                await asyncio.sleep(0)
                try:
                    await session.commit()
                except OperationalError as error:
                    told.set_result(str(error))

        lane = in_lane(loop, "worker", stop())
        await asyncio.sleep(1.0)
        async with AsyncSession(engine) as other, other.begin():
            await other.execute(sa.update(Stock).values(free=7))
        loop.resume(lane)
        assert "connection closed" in await told
        assert await free(engine) == 7

    virtually(main)


async def test_each_write_and_commit_is_told_before_it_takes_place() -> None:
    engine, told = await stocked(), list[str]()

    async def tell(what: str) -> None:
        told.append(what)

    hook: Callable[[str], Awaitable[None]] = tell
    token = before_write.set(hook)
    try:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(sa.select(Stock))
            session.add(Stock(item="nut", free=1))
            await session.flush()
            await session.execute(sa.delete(Stock).where(Stock.item == "nut"))
        assert await free(engine) == 10
    finally:
        before_write.reset(token)
    assert told == ["INSERT stock", "DELETE stock", "COMMIT"]
