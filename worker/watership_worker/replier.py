"""Sends replies, and acknowledges their commands once the broker has them. What is ready together goes in one message.

A single reply at rest is sent at once; under load one message, one confirm and one acknowledgement carry many.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from watership.bus.gathering import Gatherer, Settling, publish_gathered
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

    def __init__(self, bus: Bus, commands: Settling) -> None:
        self._bus = bus
        self._commands = commands
        self._gatherer = Gatherer[_Reply](self._send)

    async def send(self, message: Message, command: Delivery) -> None:
        """Returns when the broker has the reply and the command is acknowledged."""
        reply = _Reply(message, command, asyncio.get_running_loop().create_future())
        self._gatherer.add(reply)
        await reply.sent

    async def _send(self, replies: list[_Reply]) -> None:
        while replies:
            try:
                fates = await publish_gathered(self._bus, [reply.message for reply in replies])
            except Exception:  # a bug; but a reply that nobody sends would hold its command for ever
                log.exception("%d replies could not be sent", len(replies))
                fates = [Fate.UNCONFIRMED] * len(replies)
            sent = [reply for reply, fate in zip(replies, fates, strict=True) if fate is Fate.CONFIRMED]
            await self._commands.ack([reply.command for reply in sent])
            for reply in sent:
                if not reply.sent.done():
                    reply.sent.set_result(None)
            replies = [reply for reply, fate in zip(replies, fates, strict=True) if fate is not Fate.CONFIRMED]
            if replies:
                log.warning("%d replies are not confirmed by the broker; sending them again", len(replies))
                await asyncio.sleep(RETRY_S)
