"""The publishing channel: a batch of messages out in one write, and what became of each.

A batch's frames are written in one piece. The library's own `basic_publish` does the same one message at a time, with
a timer, a lock and two bookkeeping futures for each: measured, 105 us of CPU a message against 30. The broker's answers
are taken by the `Tap`, and counted here by delivery tag: the library knows of no message on this channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Sequence

from aiormq import Channel
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPChannelError

from watership.bus.protocol import Fate, Message
from watership.bus.rabbit.contents import publishing
from watership.bus.rabbit.link import CLOSE_TIMEOUT_S, bounded, is_channel_open, words
from watership.bus.rabbit.tap import Confirms, Tap
from watership.errors import BrokerUnavailable

log = logging.getLogger(__name__)

WRITE_BYTES_MAX = 1 << 20  # one write; between two of them heartbeats and acknowledgements get their turn


class _Batch:
    """Messages that are published by one call: what became of each. ``settled``: none of those written is open."""

    def __init__(self, size: int) -> None:
        self.fates = [Fate.UNCONFIRMED] * size
        self.open = 0
        self.settled = asyncio.Event()

    def add_one(self) -> None:
        self.open += 1
        self.settled.clear()

    def close_one(self) -> None:
        self.open -= 1
        if not self.open:
            self.settled.set()


@dataclasses.dataclass(slots=True, eq=False)
class _Open:
    """A message that was written, and that the broker has not confirmed."""

    batch: _Batch
    index: int
    message_id: str


class Publisher:
    """One confirmed channel. When it is closed it is done with: another takes its place."""

    def __init__(self, connection: AbstractConnection, channel: Channel, tap: Tap, timeout_s: float) -> None:
        self._connection, self._channel, self._timeout_s = connection, channel, timeout_s
        self._open: dict[int, _Open] = {}  # by delivery tag, which the broker counts as we do: by what it receives
        self._tag = 0
        self._in_flight: dict[str, _Open] = {}
        self._writing = asyncio.Lock()
        self._tap, self._confirms = tap, Confirms(self._on_settled, self._on_returned)
        tap.set(channel.number, self._confirms)
        channel.closing.add_done_callback(self._on_closed)

    @property
    def is_open(self) -> bool:
        """False once the channel or its connection is going down."""
        return is_channel_open(self._channel)

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        """Writes all, waits for their confirms; what is left open after the time-out is UNCONFIRMED."""
        batch = _Batch(len(messages))
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connection.ready()  # under an alarm the broker does not read: keep it off the wire
                await self._send(messages, batch)
                if batch.open:
                    await batch.settled.wait()
        except TimeoutError:
            log.warning("RabbitMQ did not confirm within %g s", self._timeout_s)
        return list(batch.fates)

    async def retire(self) -> None:
        """Closes the channel when what is in flight on it is confirmed, or has had its time."""
        if self._open:
            batches = {one.batch for one in self._open.values()}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await asyncio.gather(*(batch.settled.wait() for batch in batches))
        with contextlib.suppress(BrokerUnavailable, AMQPChannelError):
            await bounded(self._channel.close(), CLOSE_TIMEOUT_S, "closing a channel")

    async def _send(self, messages: Sequence[Message], batch: _Batch) -> None:
        """Writes them in order. A message whose id is in flight waits: a return is told by the id alone."""
        position = 0
        while position < len(messages):
            async with self._writing:
                if not self.is_open:
                    return
                position = await self._write(messages, position, batch)
            if position < len(messages):
                earlier = self._in_flight.get(messages[position].message_id)
                if earlier is not None:
                    await earlier.batch.settled.wait()

    async def _write(self, messages: Sequence[Message], position: int, batch: _Batch) -> int:
        """One write, from ``position`` on. Returns the position after it."""
        payload = bytearray()
        first_tag = self._tag + 1
        while position < len(messages) and len(payload) < WRITE_BYTES_MAX:
            message = messages[position]
            if message.message_id in self._in_flight:
                break
            try:
                payload += publishing(message, self._channel.number, self._channel.max_content_size)
            except Exception:  # one that cannot be put on the wire must not cost the others
                log.exception("message %s cannot be published", message.message_id)
                batch.fates[position] = Fate.REFUSED
            else:
                self._tag += 1
                one = self._open[self._tag] = _Open(batch, position, message.message_id)
                self._in_flight[message.message_id] = one
                batch.add_one()
            position += 1
        if payload:
            try:
                await self._tap.send(self._channel, bytes(payload))
            except BaseException:  # the broker counts what it receives: the tags of what it never saw are used again
                self._let_go(range(first_tag, self._tag + 1))
                self._tag = first_tag - 1
                raise
        return position

    # --- what the broker answers

    def _on_settled(self, tag: int, multiple: bool, is_ack: bool) -> None:
        tags = list(itertools.takewhile(lambda one: one <= tag, self._open)) if multiple else [tag]
        self._let_go(tags, Fate.CONFIRMED if is_ack else Fate.REFUSED)

    def _on_returned(self, message_id: str) -> None:
        one = self._in_flight.get(message_id)
        if one is not None:
            one.batch.fates[one.index] = Fate.RETURNED  # its ack follows

    def _let_go(self, tags: Sequence[int], fate: Fate = Fate.UNCONFIRMED) -> None:
        for tag in tags:
            one = self._open.pop(tag, None)
            if one is None:
                continue
            self._in_flight.pop(one.message_id, None)
            if one.batch.fates[one.index] is Fate.UNCONFIRMED:
                one.batch.fates[one.index] = fate
            one.batch.close_one()

    def _on_closed(self, closing: asyncio.Future[object]) -> None:
        self._tap.unset(self._channel.number, self._confirms)
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, AMQPChannelError):
            log.warning("RabbitMQ closed the publishing channel: %s", words(error))
        self._let_go(list(self._open))
