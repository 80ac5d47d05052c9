"""Between the socket and the library: takes deliveries and confirms out of the stream, and passes on all else.

The library reads a frame by three awaits, gives each to its channel through a queue, unmarshals every field, and makes
a task for each delivery: measured, a third of what a worker or an orchestrator spends. Those frames are nearly all
that arrives. So the bytes are cut into frames here, as they come, and a channel's own *taker* (`Deliveries` for a
consumer, `Confirms` for the publisher) is handed the few kinds that it knows, at once. The library sees every other
frame, byte for byte and in their order, and goes on doing what it does well: the handshake, declares, closing.

What must hold: a frame goes to one of the two, never to both; a frame is taken whole or not at all, however the bytes
were split on the way; what is not understood is the library's. RabbitMQ sends no heartbeat while it sends anything else,
and the library calls a link stuck that is silent: so where frames are taken, it is handed one in their place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiormq import Channel
from aiormq.abc import ChannelFrame

from watership.bus.rabbit.contents import BODY, FRAME_END, FRAME_START, HEADER, METHOD, Assembly

HEARTBEAT_KIND = 8  # the highest
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
HEARTBEAT_EVERY_S = 0.5

RETURN, DELIVER, ACK, NACK = (b"\x00\x3c\x00" + bytes([number]) for number in (50, 60, 80, 120))  # of class 60, basic

OVERHEAD_BYTES = FRAME_START.size + 1
_TAG_AND_FLAGS = struct.Struct(">QB")


class Taker(Protocol):
    """A channel's share of what arrives."""

    def take(self, kind: int, payload: bytes) -> bool:
        """Whether it takes this frame."""


class Tap:
    """One connection's. ``feed`` is the library's end of the stream; ``write`` the socket, if frames may go there directly."""

    def __init__(
        self, feed: Callable[[bytes], None], now_s: Callable[[], float], write: Callable[[bytes], None] | None = None
    ) -> None:
        self._feed = feed
        self._write = write
        self._now_s = now_s
        self._takers: dict[int, Taker] = {}
        self._rest = b""
        self._fed_s = now_s()
        self._is_lost = False  # what arrives makes no frames: all of it is the library's

    def set(self, channel_number: int, taker: Taker) -> None:
        """From here on it is asked first about the frames of this channel."""
        self._takers[channel_number] = taker

    def unset(self, channel_number: int, taker: Taker) -> None:
        """It is done; unless another channel has taken its number already."""
        if self._takers.get(channel_number) is taker:
            del self._takers[channel_number]

    async def send(self, channel: Channel, frames: bytes) -> None:
        """Puts frames on the wire: behind what the library has to write, if there is any, and else at once.

        The library writes from a task, which takes a frame and writes it in one go: so where its queue is empty, all that
        came before is written. To wait for that task's turn, eight times a saga, was time in which nothing happened.
        """
        if self._write is not None and channel.write_queue.empty():
            self._write(frames)
        else:
            await channel.write_queue.put(ChannelFrame(payload=frames, should_close=False))

    def data_received(self, data: bytes) -> None:
        """Some bytes came from the broker."""
        if self._is_lost:
            self._feed(data)
            return
        data = self._rest + data
        size_bytes = len(data)
        position = kept = 0  # what is behind `kept` and before `position` is the library's
        has_taken = False
        while position + OVERHEAD_BYTES <= size_bytes:
            kind, channel_number, payload_bytes = FRAME_START.unpack_from(data, position)
            start = position + FRAME_START.size
            end = start + payload_bytes
            if kind > HEARTBEAT_KIND or (end < size_bytes and data[end] != FRAME_END):
                self._is_lost, position = True, size_bytes
                break
            if end >= size_bytes:
                break
            taker = self._takers.get(channel_number)
            if taker is not None and taker.take(kind, data[start:end]):
                if kept < position:
                    self._pass_on(data[kept:position])
                kept, has_taken = end + 1, True
            position = end + 1
        if kept < position:
            self._pass_on(data[kept:position])
        self._rest = data[position:]
        if has_taken and self._now_s() - self._fed_s >= HEARTBEAT_EVERY_S:
            self._pass_on(HEARTBEAT)

    def _pass_on(self, data: bytes) -> None:
        self._fed_s = self._now_s()
        self._feed(data)


class Deliveries:
    """A consumer's channel: it takes deliveries. ``receive(tag, redelivered, properties, body)`` must return at once."""

    def __init__(self, receive: Callable[[int, bool, Mapping[str, Any], bytes], None]) -> None:
        self._receive = receive
        self._content = Assembly()
        self._tag, self._redelivered = 0, False

    def take(self, kind: int, payload: bytes) -> bool:
        """See `Taker`."""
        content = self._content
        if kind == METHOD:
            if not payload.startswith(DELIVER):
                return False
            tag, flags = _TAG_AND_FLAGS.unpack_from(payload, 5 + payload[4])  # behind the consumer's tag
            self._tag, self._redelivered = tag, bool(flags & 1)
            content.begin()
        elif not content.is_open or kind not in (HEADER, BODY):
            return False
        elif content.add(kind, payload):
            self._receive(self._tag, self._redelivered, content.properties, content.body)
        return True


class Confirms:
    """The publishing channel: it takes the broker's answers.

    ``settle(tag, multiple, is_ack)``; ``give_back(message_id)`` comes before the ack of what no queue took.
    """

    def __init__(self, settle: Callable[[int, bool, bool], None], give_back: Callable[[str], None]) -> None:
        self._settle = settle
        self._give_back = give_back
        self._content = Assembly()

    def take(self, kind: int, payload: bytes) -> bool:
        """See `Taker`."""
        content = self._content
        if kind == METHOD:
            if payload.startswith((ACK, NACK)):
                tag, flags = _TAG_AND_FLAGS.unpack_from(payload, 4)
                self._settle(tag, bool(flags & 1), payload.startswith(ACK))
            elif payload.startswith(RETURN):
                content.begin()
            else:
                return False
        elif not content.is_open or kind not in (HEADER, BODY):
            return False
        elif content.add(kind, payload):
            self._give_back(content.properties.get("message_id", ""))
        return True
