"""Time as an argument: what waits asks a `Clock`, so that tests can run hours of retries in no time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that only goes forward. It tells intervals; deadlines are told by the store's clock."""

    def monotonic_ms(self) -> int:
        """Milliseconds since some moment."""

    async def wait(self, event: asyncio.Event, *, timeout_ms: int, working: bool = False) -> bool:
        """Waits for ``event``, at most ``timeout_ms``. Whether it came. ``working``: something runs that will set it."""


class SystemClock:
    """The machine's own clock."""

    def monotonic_ms(self) -> int:
        """Milliseconds of the monotonic clock."""
        return time.monotonic_ns() // 1_000_000

    async def wait(self, event: asyncio.Event, *, timeout_ms: int, working: bool = False) -> bool:
        """Waits for ``event`` in real time."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True


class VirtualClock:
    """A clock that jumps: every wait passes at once, and moves the time on by what it would have taken."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = start_ms

    def monotonic_ms(self) -> int:
        """The virtual time."""
        return self._now_ms

    async def wait(self, event: asyncio.Event, *, timeout_ms: int, working: bool = False) -> bool:
        """Moves the time on, unless ``event`` is set already. While something runs, virtual time stands still."""
        if working:
            return await event.wait()
        await asyncio.sleep(0)
        if event.is_set():
            return True
        self._now_ms += max(timeout_ms, 0)
        return False
