"""Steps a coroutine by hand, in the task that awaits it: what a handler needs that ends without ever waiting.

A task and a timer for each were a third of what a saga costs. It must never know what it steps.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_Step = Callable[[], Any]


async def in_context(work: Coroutine[Any, Any, T], context: Context) -> T:
    """Awaits ``work`` in ``context``, as a task of its own would: the variables that it sets stay there."""
    try:
        awaited = context.run(work.send, None)
    except StopIteration as end:
        found: T = end.value
        return found
    return await _go_on(work, awaited, context.run)


class Limited:
    """Awaits work for so many seconds, like `asyncio.timeout`; for work that never waits, no timer is set."""

    __slots__ = ("_limit", "_seconds")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit: asyncio.Timeout | None = None

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self._limit is not None and self._limit.expired()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it. Raises `TimeoutError` when its time is up; it has been cancelled then."""
        begun_at = asyncio.get_running_loop().time()
        try:
            awaited = work.send(None)
        except StopIteration as end:
            found: T = end.value
            return found
        async with asyncio.timeout_at(begun_at + self._seconds) as self._limit:
            return await _go_on(work, awaited, _directly)


def _directly(step: _Step) -> Any:
    return step()


@types.coroutine
def _go_on(work: Coroutine[Any, Any, T], awaited: Any, run: Callable[[_Step], Any]) -> Generator[Any, Any, T]:
    """Awaits ``work``, which has begun and waits for ``awaited``. Each of its steps is given to ``run``."""
    while True:
        try:
            yield awaited
            step: _Step = partial(work.send, None)
        except BaseException as error:  # noqa: BLE001  # a cancellation, say: it is the work's
            step = partial(work.throw, error)
        try:
            awaited = run(step)
        except StopIteration as end:
            found: T = end.value
            return found
