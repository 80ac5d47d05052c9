"""Acknowledges what nothing waits for: a moment later, and many at once.

An acknowledgement is an entry in the log of a replicated queue, which goes to disk like a message. What the next message
then waits for is the disk: measured at rest, a tenth of a saga's time. So this is for what may come again without harm,
should its process end before it was acknowledged: what an orchestrator has decided, what a client was told. A worker
acknowledges at once, since a handler that has run should not run again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from watership.bus.gathering import Settling
from watership.bus.protocol import Delivery

log = logging.getLogger(__name__)

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
        if len(self._ready) >= self._together_max:
            self._begin()
        else:
            self._look_again()

    def _look_again(self) -> None:
        if self._ready and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell(), name="acks")

    async def _tell(self) -> None:
        try:
            done = await self._take()
            while done and len(self._ready) >= self._together_max:  # what came meanwhile found this under way
                done = await self._take()
        finally:
            self._telling = None
            self._look_again()

    async def flush(self) -> None:
        """Acknowledges what there is, at once, and waits for what is under way."""
        if self._telling is not None:
            await asyncio.wait({self._telling})
        while self._ready and await self._take():
            pass

    async def _take(self) -> bool:
        """Whether that went through; if not, they are held back again."""
        batch, self._ready = self._ready, []
        try:
            if batch:
                await self._settling.ack(batch)
        except (
            Exception
        ):  # a bug; but what is never acknowledged is held by the broker for as long as the channel lives
            log.exception("%d deliveries could not be acknowledged; trying again", len(batch))
            self._ready[:0] = batch
            return False
        return True
