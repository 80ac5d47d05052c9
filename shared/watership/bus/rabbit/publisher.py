"""The publishing channel: a batch of messages out in one write, and what became of each.

A batch's frames are written in one piece. The library's own `basic_publish` does the same one message at a time, with
a timer, a lock and two bookkeeping futures for each: measured, 105 us of CPU a message against 30. Confirms and
returns still arrive by way of the library: it resolves ``confirmations`` by delivery tag, and finds the tag of a
returned message by its message id in ``message_id_delivery_tag``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Sequence

import pamqp.frame
from aiormq import Channel, spec
from aiormq.abc import AbstractConnection, ChannelFrame
from aiormq.exceptions import AMQPChannelError, DeliveryError, PublishError
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from watership.bus.protocol import Fate, Message
from watership.bus.rabbit.link import CLOSE_TIMEOUT_S, bounded, is_channel_open, words
from watership.errors import BrokerUnavailable

log = logging.getLogger(__name__)

WRITE_BYTES_MAX = 1 << 20  # one write; between two of them heartbeats and acknowledgements get their turn

Confirm = asyncio.Future[object]


class Publisher:
    """One confirmed channel. When it is closed it is done with: another takes its place."""

    def __init__(self, connection: AbstractConnection, channel: Channel, timeout_s: float) -> None:
        self._connection, self._channel, self._timeout_s = connection, channel, timeout_s
        self._in_flight: dict[str, Confirm] = {}
        self._writing = asyncio.Lock()
        channel.closing.add_done_callback(self._on_closed)

    @property
    def is_open(self) -> bool:
        """False once the channel or its connection is going down."""
        return is_channel_open(self._channel)

    async def publish(self, messages: Sequence[Message]) -> list[Fate]:
        """Writes all, waits for their confirms; what is left open after the time-out is UNCONFIRMED."""
        fates = [Fate.UNCONFIRMED] * len(messages)
        confirms: dict[int, Confirm] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._connection.ready()  # under an alarm the broker does not read: keep it off the wire
                await self._send(messages, fates, confirms)
                if confirms:
                    await asyncio.wait(confirms.values())
        except TimeoutError:
            log.warning("RabbitMQ did not confirm within %g s", self._timeout_s)
        finally:
            for index, confirm in confirms.items():
                self._let_go(messages[index].message_id, confirm)
        for index, confirm in confirms.items():
            fates[index] = _fate(confirm)
        return fates

    async def retire(self) -> None:
        """Closes the channel when what is in flight on it is confirmed, or has had its time."""
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=self._timeout_s)
        with contextlib.suppress(BrokerUnavailable, AMQPChannelError):
            await bounded(self._channel.close(), CLOSE_TIMEOUT_S, "closing a channel")

    async def _send(self, messages: Sequence[Message], fates: list[Fate], confirms: dict[int, Confirm]) -> None:
        """Writes them in order. A message whose id is in flight waits: a return is told by the id alone."""
        position = 0
        while position < len(messages):
            async with self._writing:
                if not self.is_open:
                    return
                position = await self._write(messages, position, fates, confirms)
            if position < len(messages):
                earlier = self._in_flight.get(messages[position].message_id)
                if earlier is not None and not earlier.done():
                    await asyncio.wait([earlier])

    async def _write(
        self, messages: Sequence[Message], position: int, fates: list[Fate], confirms: dict[int, Confirm]
    ) -> int:
        """One write, from ``position`` on. Returns the position after it."""
        payload = bytearray()
        written: list[int] = []
        while position < len(messages) and len(payload) < WRITE_BYTES_MAX:
            message = messages[position]
            earlier = self._in_flight.get(message.message_id)
            if earlier is not None and not earlier.done():
                break
            try:
                payload += _encode(message, self._channel.number, self._channel.max_content_size)
            except Exception:  # one that cannot be put on the wire must not cost the others
                log.exception("message %s cannot be published", message.message_id)
                fates[position] = Fate.REFUSED
            else:
                confirms[position] = self._expect_confirm(message.message_id)
                written.append(position)
            position += 1
        if written:
            try:
                await self._channel.write_queue.put(ChannelFrame(payload=bytes(payload), should_close=False))
            except BaseException:
                self._take_back([(messages[index].message_id, confirms.pop(index)) for index in reversed(written)])
                raise
        return position

    def _expect_confirm(self, message_id: str) -> Confirm:
        channel = self._channel
        channel.delivery_tag += 1
        confirm: Confirm = channel.loop.create_future()
        channel.confirmations[channel.delivery_tag] = confirm
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag
        self._in_flight[message_id] = confirm
        return confirm

    def _take_back(self, unwritten: list[tuple[str, Confirm]]) -> None:
        """The broker counts what it receives: the tags of what it never saw are used again."""
        channel = self._channel
        for message_id, confirm in unwritten:
            confirm.cancel()
            channel.confirmations.pop(channel.delivery_tag, None)
            channel.delivery_tag -= 1
            self._let_go(message_id, confirm)

    def _let_go(self, message_id: str, confirm: Confirm) -> None:
        """Forgets a settled message. One that timed out stays in flight until its confirm, or the channel's end."""
        if not confirm.done():
            confirm.add_done_callback(functools.partial(self._let_go, message_id))
        elif self._in_flight.get(message_id) is confirm:
            del self._in_flight[message_id]
            self._channel.message_id_delivery_tag.pop(message_id, None)
            _fate(confirm)  # asyncio complains of an exception that nobody looked at

    def _on_closed(self, closing: asyncio.Future[object]) -> None:
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, AMQPChannelError):
            log.warning("RabbitMQ closed the publishing channel: %s", words(error))
        for confirm in self._channel.confirmations.values():
            confirm.cancel()


def _fate(confirm: Confirm) -> Fate:
    if not confirm.done() or confirm.cancelled():
        return Fate.UNCONFIRMED
    error = confirm.exception()
    if error is None:
        return Fate.CONFIRMED
    if isinstance(error, PublishError):
        return Fate.RETURNED
    return Fate.REFUSED if isinstance(error, DeliveryError) else Fate.UNCONFIRMED


def _encode(message: Message, channel_number: int, frame_bytes_max: int) -> bytes:
    if not message.message_id:
        raise ValueError("a message needs an id")
    properties = spec.Basic.Properties(
        content_type="application/json",
        headers=dict(message.headers) or None,
        delivery_mode=2,  # persistent
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration_ms is None else str(message.expiration_ms),
        message_id=message.message_id,
        message_type=message.type,
        app_id="watership",
    )
    body = message.body
    frames = [
        _publish_frame(channel_number, message.exchange, message.routing_key, message.mandatory),
        pamqp.frame.marshal(ContentHeader(properties=properties, body_size=len(body)), channel_number),
    ]
    chunks = (body[start : start + frame_bytes_max] for start in range(0, len(body), frame_bytes_max))
    frames += [pamqp.frame.marshal(ContentBody(chunk), channel_number) for chunk in chunks]
    return b"".join(frames)


@functools.lru_cache(maxsize=4096)
def _publish_frame(channel_number: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The same few routes are used over and over, and their frames cost a third of a message's encoding."""
    frame = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    return pamqp.frame.marshal(frame, channel_number)
