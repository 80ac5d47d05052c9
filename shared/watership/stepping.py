"""Steps a coroutine by hand, in the task that awaits it: what a handler needs that ends without ever waiting.

A task and a timer for each were a third of what a saga costs. It must never know what it steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

_Step = Callable[[], Any]


class _TwoTurns:
    """Awaited, it comes back two turns of the loop later.

    What was begun just before, in a task of its own, has had its first turn then, and so has what others began beside it: to
    do the same for all of them in a row is quicker than to go to and fro. A future would do that, too, for more.
    """

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield
        yield


TWO_TURNS = _TwoTurns()


class Begun:
    """Work that has begun and waits for something: to be awaited, by whoever goes on with it."""

    __slots__ = ("_awaited", "_run", "_work")

    def __init__(self, work: Coroutine[Any, Any, Any], awaited: Any, run: Callable[[_Step], Any]) -> None:
        self._work, self._awaited, self._run = work, awaited, run

    def __await__(self) -> Generator[Any, Any, Any]:
        return _go_on(self._work, self._awaited, self._run)


def begin(work: Coroutine[Any, Any, Any], context: Context | None = None) -> Any:
    """Runs ``work`` up to where it first waits: what it came to, if it never does; else a `Begun`.

    In ``context``, as a task of its own would be, if there is one: the variables that it sets stay there.
    """
    try:
        awaited = work.send(None) if context is None else context.run(work.send, None)
    except StopIteration as end:
        return end.value
    return Begun(work, awaited, _directly if context is None else context.run)


class Limited:
    """Awaits work for so many seconds, like `asyncio.timeout`; for work that never waits, no timer is set."""

    __slots__ = ("_begun_at", "_limit", "_loop", "_seconds")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._seconds = seconds
        self._loop = loop or asyncio.get_running_loop()  # which asks the system for the process: who knows it, says it
        self._begun_at = 0.0
        self._limit: asyncio.Timeout | None = None

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self._limit is not None and self._limit.expired()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs it up to where it first waits: what it came to, or a `Begun`, which is for `rest`."""
        self._begun_at = self._loop.time()
        return begin(work)

    async def rest(self, begun: Begun) -> Any:
        """Goes on with it. Raises `TimeoutError` when its time, from its beginning, is up; it has been cancelled then."""
        async with asyncio.timeout_at(self._begun_at + self._seconds) as self._limit:
            return await begun

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Both. Raises `TimeoutError`."""
        begun = self.begin(work)
        found: T = await self.rest(begun) if type(begun) is Begun else begun
        return found


def _directly(step: _Step) -> Any:
    return step()


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
