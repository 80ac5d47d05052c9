"""Sends replies, and acknowledges their commands once the broker has them. What is ready together goes together.

A single reply at rest is sent at once; under load one write and one round of confirms carry many.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from watership.bus.protocol import Bus, Delivery, Fate, Message

log = logging.getLogger("watership.worker")

RETRY_S = 1.0


@dataclasses.dataclass(slots=True, eq=False)
class _Reply:
    message: Message
    command: Delivery
    sent: asyncio.Future[None]


class Replier:
    """One for each worker process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ready: list[_Reply] = []
        self._sending: asyncio.Task[None] | None = None

    async def send(self, message: Message, command: Delivery) -> None:
        """Returns when the broker has the reply and the command is acknowledged."""
        reply = _Reply(message, command, asyncio.get_running_loop().create_future())
        self._ready.append(reply)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all(), name="replies")
        await reply.sent

    async def _send_all(self) -> None:
        await asyncio.sleep(0)  # handlers that end in this turn of the loop go along
        while self._ready:
            batch, self._ready = self._ready, []
            fates = await self._bus.publish([reply.message for reply in batch])
            sent = [reply for reply, fate in zip(batch, fates, strict=True) if fate is Fate.CONFIRMED]
            await self._bus.ack([reply.command for reply in sent])
            for reply in sent:
                if not reply.sent.done():
                    reply.sent.set_result(None)
            lost = [reply for reply, fate in zip(batch, fates, strict=True) if fate is not Fate.CONFIRMED]
            if lost:
                log.warning("%d replies are not confirmed by the broker; sending them again", len(lost))
                await asyncio.sleep(RETRY_S)
                self._ready.extend(lost)
