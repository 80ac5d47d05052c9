"""Acknowledges what nothing waits for: a moment later, and many at once.

An acknowledgement is an entry in the log of a replicated queue, which goes to disk like a message. What the next message
then waits for is the disk: measured at rest, a tenth of a saga's time. So this is for what may come again without harm,
should its process end before it was acknowledged: what an orchestrator has decided, what a client was told. A worker
acknowledges at once, since a handler that has run should not run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from watership.bus.gathering import Settling
from watership.bus.protocol import Delivery

WITHIN_S = 0.1
TOGETHER_MAX = 100


class Acks:
    """Holds back deliveries that are done with: for ``WITHIN_S``, or until there are ``together_max``.

    That should be far below what the broker sends without being answered (its prefetch).
    """

    def __init__(self, settling: Settling, *, together_max: int = TOGETHER_MAX) -> None:
        self._settling = settling
        self._together_max = together_max
        self._ready: list[Delivery] = []
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledges them soon."""
        self._ready.extend(deliveries)
        self._look()

    def _look(self) -> None:
        if len(self._ready) >= self._together_max:
            self._begin()
        elif self._ready and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(), name="acks")

    async def _tell(self) -> None:
        await self._take()
        while len(self._ready) >= self._together_max:  # what came meanwhile found this under way
            await self._take()
        self._look()

    async def flush(self) -> None:
        """Acknowledges what there is, at once."""
        while self._ready:
            await self._take()

    async def _take(self) -> None:
        batch, self._ready = self._ready, []
        if batch:
            await self._settling.ack(batch)
