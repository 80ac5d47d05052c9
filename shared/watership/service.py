"""What every long-running process does alike: connect with patience, run supervised tasks, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from watership.chance import SYSTEM_CHANCE
from watership.errors import BrokerUnavailable, StoreUnavailable

log = logging.getLogger("watership.service")

CONNECT_RETRY_MAX_S = 5.0
ResultT = TypeVar("ResultT")


class Service(Protocol):
    """A process's work. `start` raises what a person must mend; `run` ends when asked to stop."""

    name: str

    async def start(self) -> None:
        """Connects and begins to consume."""

    async def run(self) -> None:
        """Works until cancelled. What it raises ends the process."""

    async def drain(self) -> None:
        """Takes nothing new, finishes what is in hand, closes."""


async def patiently(
    what: str, connect: Callable[[], Awaitable[ResultT]], chance: random.Random = SYSTEM_CHANCE
) -> ResultT:
    """Connects, again and again while the other side is not there, and says so. A refusal (a password) is tried, too:
    it may be mended without us. So is all that a service asks for before it is ready: a link may break at any time.
    """
    attempt = 0
    while True:
        try:
            result = await connect()
        except (BrokerUnavailable, StoreUnavailable) as error:
            attempt += 1
            wait_s = min(CONNECT_RETRY_MAX_S, 0.25 * 2**attempt) * chance.uniform(0.5, 1.0)
            log.warning("%s; trying again in %.1f s (attempt %d)", error, wait_s, attempt)
            await asyncio.sleep(wait_s)
        else:
            if attempt:
                log.info("%s: connected", what)
            return result


def look_for_cycles(*, every: int) -> None:
    """Python looks for cycles at every ``every`` new objects from here on (700, unless it is told otherwise).

    What is there already (modules, classes, plans of validation) stays, and is looked through no more.
    """
    gc.freeze()
    gc.set_threshold(every)


async def serve(service: Service, *, drain_s: float) -> None:
    """Runs a service until SIGTERM or SIGINT, then drains it, at most ``drain_s`` seconds."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(service.start(), name=f"{service.name} start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        await starting
        log.info("%s: ready", service.name)
        running = asyncio.create_task(service.run(), name=f"{service.name} run")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
            return
        log.info("%s: stopping", service.name)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        stopping.cancel()
        await _drain(service, drain_s)
    log.info("%s: stopped", service.name)


async def _drain(service: Service, drain_s: float) -> None:
    try:
        async with asyncio.timeout(drain_s):
            await service.drain()
    except TimeoutError:
        log.warning("%s: not everything was finished within %g s; the broker delivers it again", service.name, drain_s)


class Tasks:
    """Tasks that run aside, each on its own. One that fails is logged: nobody else would hear of it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Starts a task."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def wait(self) -> None:
        """Waits for what is under way now."""
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cancel(self) -> None:
        """Ends them all."""
        for task in list(self._tasks):
            task.cancel()
        await self.wait()
