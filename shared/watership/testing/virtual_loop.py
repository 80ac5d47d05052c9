"""An event loop in virtual time: when nothing is ready, its clock jumps to the next timer.

It is deterministic: which of several processes goes on next is drawn from the `random.Random` that it is given, and within
one process callbacks run in the order in which they were scheduled, as asyncio promises. Processes are told apart by
their context (`Lane`): one lane can be stopped, let go on, or ended as a whole, at any point, and nothing of it notices.
There are no sockets, threads, signals or subprocesses here: asking for one raises NotImplementedError.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURNS_MAX = 5_000_000


class Stuck(RuntimeError):
    """Everything waits, and nothing will ever come; or something turns for ever while time stands still."""


class Lane:
    """The callbacks of one process. While it is stopped they gather; once it is dead they are dropped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[asyncio.Handle] = deque()
        self.lost: deque[asyncio.Handle] = deque()  # what was ready when it died
        self.stopped = False
        self.dead = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_LANE.set, self)


_LANE: contextvars.ContextVar[Lane] = contextvars.ContextVar("watership_lane")


def current_lane() -> Lane | None:
    """The lane of the running callback; None outside a virtual loop."""
    return _LANE.get(None)


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. ``chance`` None: lanes take turns in the order in which they became ready."""

    def __init__(self, chance: random.Random | None = None, *, now_s: float = 1_000.0) -> None:
        self.world = Lane("world")
        self.errors: list[dict[str, Any]] = []
        self._chance = chance
        self._now_s = now_s
        self._active: list[Lane] = []
        self._timers: list[tuple[float, int, Lane, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self.turns, self.turns_max = 0, TURNS_MAX
        self._closed = False
        self._running = False

    # --- lanes

    def halt(self, lane: Lane) -> None:
        """Stops a lane: what becomes due for it waits until `resume`."""
        if not lane.stopped:
            lane.stopped = True
            if lane in self._active:
                self._active.remove(lane)

    def resume(self, lane: Lane) -> None:
        """Lets a lane go on: all that became due in the meantime is late at once."""
        if lane.stopped and not lane.dead:
            lane.stopped = False
            if lane.ready:
                self._active.append(lane)

    def kill(self, lane: Lane) -> None:
        """Ends a lane where it stands: no callback of it ever runs again, no `finally`, no cancellation."""
        self.halt(lane)
        lane.dead = True
        lane.lost, lane.ready = lane.ready, deque()

    def exhume(self, lane: Lane) -> None:
        """Lets a dead lane go on after all, for others to clean up what it left half done. Its timers are gone."""
        lane.dead = False
        lane.ready = lane.lost
        self.resume(lane)

    def _push(self, lane: Lane, handle: asyncio.Handle) -> None:
        if lane.dead:
            return
        if not lane.ready and not lane.stopped:
            self._active.append(lane)
        lane.ready.append(handle)

    def _lane(self, context: contextvars.Context | None) -> Lane:
        return _LANE.get(self.world) if context is None else context.get(_LANE, self.world)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._now_s

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = asyncio.Handle(callback, args, self, context)
        self._push(self._lane(context), handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), self._lane(context), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """See asyncio. A lane keeps its tasks: one that is dead must not run a `finally` because memory is freed."""
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context, **options)
        self._lane(context).tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """False."""
        return False

    def is_running(self) -> bool:
        """Whether it runs now."""
        return self._running

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keeps what nobody caught in `errors`."""
        self.errors.append(context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when its moment comes."""

    # --- running

    def run_until_complete(self, future: Any) -> Any:
        """Runs until ``future`` is done. Raises `Stuck` if that cannot be."""
        running = asyncio._get_running_loop()  # noqa: SLF001 - the way that asyncio has for those who write a loop
        asyncio._set_running_loop(self)  # noqa: SLF001 - as above
        self._running = True
        try:
            task = asyncio.ensure_future(future, loop=self)
            while not task.done():
                self._turn()
            return task.result()
        finally:
            self._running = False
            asyncio._set_running_loop(running)  # noqa: SLF001 - as above

    def _turn(self) -> None:
        if not self._active:
            self._jump()
        self.turns += 1
        if self.turns > self.turns_max:
            raise Stuck(f"{self.turns_max} turns of the loop, and no end: something turns without waiting")
        active = self._active
        index = int(self._chance.random() * len(active)) if len(active) > 1 and self._chance else 0
        lane = active[index]
        handle = lane.ready.popleft()
        if not lane.ready:
            active[index] = active[-1]
            active.pop()
        if not handle.cancelled():
            handle._run()  # noqa: SLF001 - what a loop does with a handle

    def _jump(self) -> None:
        timers = self._timers
        while timers and not self._active:
            self._now_s = max(self._now_s, timers[0][0])
            while timers and timers[0][0] <= self._now_s:
                _, _, lane, handle = heapq.heappop(timers)
                if not handle.cancelled():
                    self._push(lane, handle)
        if not self._active:
            raise Stuck("everything waits, and nothing will ever come")

    def dispose(self, lanes: list[Lane]) -> None:
        """Frees what is still under way on ``lanes``; their `finally` blocks run now, where they can do no harm."""
        self._closed = True
        for lane in (*lanes, self.world):
            lane.dead = True
            for task in lane.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 - it is no mistake
                    _close(task)
            lane.tasks.clear()
            lane.ready.clear()
            lane.lost.clear()
        self._timers.clear()
        self._active.clear()

    def close(self) -> None:
        """See `dispose`."""
        self.dispose([])


def new_loop(chance: random.Random | None = None) -> VirtualLoop:
    """A loop. What of asyncio's loops it does not have (sockets, threads, signals) is abstract on purpose."""
    return VirtualLoop(chance)  # type: ignore[abstract]


def _close(task: asyncio.Task[Any]) -> None:
    """Ends a task's coroutine. One that will not have it (an `await` in its `finally`) is left as it is."""
    coroutine = task.get_coro()
    try:
        if coroutine is not None:
            coroutine.close()
    except (Exception, asyncio.CancelledError):  # noqa: BLE001 - whatever it was, nobody is there to hear it
        return
