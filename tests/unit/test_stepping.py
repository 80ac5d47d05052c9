"""A coroutine that is stepped by hand cannot tell: its task, its time limit and its variables are as they would be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from watership.stepping import Begun, Limited, begin

ASKED = ContextVar("ASKED", default="nothing")


async def in_context(work: Coroutine[Any, Any, Any], context: Context) -> Any:
    """Begins it there, and goes on with it if it waits."""
    begun = begin(work, context)
    return await begun if type(begun) is Begun else begun


async def test_what_never_waits_gets_its_value_and_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> str:
        return "done"

    monkeypatch.setattr(asyncio, "timeout_at", None)
    assert await Limited(1.0).run(work()) == "done"
    assert await in_context(work(), copy_context()) == "done"


async def test_the_variables_that_it_sets_stay_in_its_context() -> None:
    async def work() -> str:
        ASKED.set("first")
        await asyncio.sleep(0)
        before = ASKED.get()
        ASKED.set("second")
        inner = asyncio.get_running_loop().create_task(asyncio.sleep(0, result=ASKED.get()))
        return f"{before}, {await inner}, {ASKED.get()}"

    assert await in_context(work(), copy_context()) == "first, second, second"
    assert ASKED.get() == "nothing"


async def test_it_waits_and_is_answered_as_often_as_it_likes() -> None:
    async def work() -> int:
        loop, total = asyncio.get_running_loop(), 0
        for number in range(5):
            future = loop.create_future()
            loop.call_soon(future.set_result, number)
            total += await future
            await asyncio.sleep(0)
        return total

    assert await Limited(5.0).run(in_context(work(), copy_context())) == 10


async def test_its_time_is_limited_from_its_beginning() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(limited.expired)

    limited = Limited(0.01)
    with pytest.raises(TimeoutError):
        await limited.run(work())
    assert ended == [True]
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_limits_of_its_own_reach_the_task_that_it_is_in() -> None:
    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(_fail())
                await asyncio.sleep(60)
        return "went on"

    assert await Limited(30.0).run(in_context(work(), copy_context())) == "went on"


async def _fail() -> None:
    raise ValueError


async def test_errors_and_cancellations_go_both_ways() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it may clean up
            raise
        return "never"

    task = asyncio.get_running_loop().create_task(Limited(30.0).run(in_context(work(), copy_context())))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ValueError):  # raised before it ever waited
        await Limited(1.0).run(in_context(_fail(), copy_context()))
