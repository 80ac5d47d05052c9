"""Acknowledges what needs no answer, many at once: an acknowledgement of its own for each costs twice as much."""

from __future__ import annotations

import asyncio

from watership.bus.protocol import Bus, Delivery


class Acks:
    """Gathers the deliveries of one turn of the event loop."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ready: list[Delivery] = []
        self._flushing: asyncio.Task[None] | None = None

    def add(self, delivery: Delivery) -> None:
        """Acknowledges soon; nothing waits for it."""
        self._ready.append(delivery)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush(), name="acks")

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        while self._ready:
            batch, self._ready = self._ready, []
            await self._bus.ack(batch)
