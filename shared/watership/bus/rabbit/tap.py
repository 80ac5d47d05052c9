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

import dataclasses
import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pamqp.commands import Basic

from watership.bus.rabbit import any_bytes

METHOD, HEADER, BODY = 1, 2, 3
FRAME_OVERHEAD_BYTES = 8  # seven before the payload, one behind it
FRAME_END = 0xCE
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
HEARTBEAT_EVERY_S = 0.5

BASIC = 60
RETURN, DELIVER, ACK, NACK = (BASIC, 50), (BASIC, 60), (BASIC, 80), (BASIC, 120)

_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">HH")
_TAG_AND_FLAG = struct.Struct(">QB")
_CONTENT = struct.Struct(">HHQH")
_FIXED_BYTES = {"octet": 1, "timestamp": 8}
_WANTED = {
    "correlation_id": "correlation_id",
    "reply_to": "reply_to",
    "message_id": "message_id",
    "message_type": "type",
}


class Taker(Protocol):
    """A channel's share of what arrives."""

    def take(self, kind: int, frame: memoryview) -> bool:
        """Whether it takes this frame's payload; it must not keep the view."""


class Tap:
    """One connection's. ``feed`` is the library's end of the stream."""

    def __init__(self, feed: Callable[[bytes], None], now_s: Callable[[], float]) -> None:
        self._feed = feed
        self._now_s = now_s
        self._takers: dict[int, Taker] = {}
        self._rest = b""
        self._fed_s = now_s()
        self._is_closed = False  # what arrives makes no frames: it is the library's

    def set(self, channel_number: int, taker: Taker) -> None:
        """From here on it is asked first about the frames of this channel."""
        self._takers[channel_number] = taker

    def unset(self, channel_number: int, taker: Taker) -> None:
        """It is done; unless another channel has taken its number already."""
        if self._takers.get(channel_number) is taker:
            del self._takers[channel_number]

    def data_received(self, data: bytes) -> None:
        """Some bytes came from the broker."""
        if self._is_closed:
            self._feed(data)
            return
        data = self._rest + data
        position = passed = 0
        with memoryview(data) as view:
            while (end := _end_of_frame(data, position)) is not None:
                if end <= 0:
                    self._is_closed = True
                    position = len(data)
                    break
                kind, channel_number, _ = _FRAME.unpack_from(data, position)
                taker = self._takers.get(channel_number)
                if taker is not None and taker.take(kind, view[position + 7 : end - 1]):
                    self._pass_on(data, passed, position)
                    passed = end
                position = end
        self._pass_on(data, passed, position)
        self._rest = data[position:]
        if passed and self._now_s() - self._fed_s >= HEARTBEAT_EVERY_S and not self._is_closed:
            self._pass_on(HEARTBEAT, 0, len(HEARTBEAT))

    def _pass_on(self, data: bytes, start: int, end: int) -> None:
        if start < end:
            self._fed_s = self._now_s()
            self._feed(data[start:end])


def _end_of_frame(data: bytes, position: int) -> int | None:
    """Where the frame that begins here ends; None: it is not all here yet; 0: it is no frame."""
    if len(data) - position < FRAME_OVERHEAD_BYTES:
        return 0 if data.startswith(b"AMQP", position) else None
    end = int.from_bytes(data[position + 3 : position + 7], "big") + position + FRAME_OVERHEAD_BYTES
    if data[position] > 8 or (end <= len(data) and data[end - 1] != FRAME_END):
        return 0
    return end if end <= len(data) else None


@dataclasses.dataclass(slots=True)
class _Content:
    """What a deliver or a return announced, while its header and its body come."""

    tag: int
    redelivered: bool
    properties: Properties | None = None
    chunks: list[bytes] = dataclasses.field(default_factory=list)
    missing_bytes: int = 0


@dataclasses.dataclass(slots=True)
class Properties:
    """Those of a message's properties that are used here."""

    headers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    type: str | None = None


class _Assembly:
    """Puts a content together of its frames."""

    def __init__(self) -> None:
        self._open: _Content | None = None

    def begin(self, tag: int, *, redelivered: bool) -> None:
        self._open = _Content(tag, redelivered)

    def add(self, kind: int, frame: memoryview) -> tuple[_Content | None, bool]:
        """The content, once it is whole; and whether the frame is a part of one."""
        content = self._open
        if content is None or kind not in (HEADER, BODY):
            return None, False
        if kind == HEADER:
            content.missing_bytes, content.properties = content_header(frame)
        else:
            content.chunks.append(bytes(frame))
            content.missing_bytes -= len(frame)
        if content.missing_bytes > 0:
            return None, True
        self._open = None
        return content, True


class Deliveries:
    """A consumer's channel: it takes deliveries. ``receive(tag, redelivered, properties, body)`` must return at once."""

    def __init__(self, receive: Callable[[int, bool, Properties, bytes], None]) -> None:
        self._receive = receive
        self._assembly = _Assembly()

    def take(self, kind: int, frame: memoryview) -> bool:
        """See `Taker`."""
        if kind == METHOD:
            if _METHOD.unpack_from(frame) != DELIVER:
                return False
            tag, flag = _TAG_AND_FLAG.unpack_from(frame, 5 + frame[4])  # behind the consumer's tag
            self._assembly.begin(tag, redelivered=bool(flag & 1))
            return True
        content, is_taken = self._assembly.add(kind, frame)
        if content is not None and content.properties is not None:
            self._receive(content.tag, content.redelivered, content.properties, b"".join(content.chunks))
        return is_taken


class Confirms:
    """The publishing channel: it takes the broker's answers.

    ``settle(tag, multiple, is_ack)``; ``give_back(message_id)`` comes before the ack of what no queue took.
    """

    def __init__(self, settle: Callable[[int, bool, bool], None], give_back: Callable[[str], None]) -> None:
        self._settle = settle
        self._give_back = give_back
        self._assembly = _Assembly()

    def take(self, kind: int, frame: memoryview) -> bool:
        """See `Taker`."""
        if kind == METHOD:
            method = _METHOD.unpack_from(frame)
            if method in (ACK, NACK):
                tag, flags = _TAG_AND_FLAG.unpack_from(frame, 4)
                self._settle(tag, bool(flags & 1), method == ACK)
            elif method == RETURN:
                self._assembly.begin(0, redelivered=False)
            else:
                return False
            return True
        content, is_taken = self._assembly.add(kind, frame)
        if content is not None and content.properties is not None:
            self._give_back(content.properties.message_id or "")
        return is_taken


def content_header(frame: memoryview) -> tuple[int, Properties]:
    """The size of the body, and the message's properties: none, if their bytes make no sense."""
    _, _, size_bytes, flags = _CONTENT.unpack_from(frame)
    try:
        return size_bytes, _properties(flags, bytes(frame[_CONTENT.size :]))
    except (IndexError, struct.error):
        return size_bytes, Properties()


def _properties(flags: int, raw: bytes) -> Properties:
    found = Properties()
    position = 0
    for name, kind in _present(flags):
        if kind == "shortstr":
            end = position + 1 + raw[position]
            if name in _WANTED:
                setattr(found, _WANTED[name], any_bytes.text(raw[position + 1 : end]))
        elif kind == "table":
            end = position + 4 + int.from_bytes(raw[position : position + 4], "big")
            found.headers = any_bytes.properties_table(raw[position:end])[1]
        else:
            end = position + _FIXED_BYTES[kind]
        position = end
    return found


@functools.lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, str], ...]:
    """The properties that are there, and what they are made of. As AMQP numbers them: the highest bit is the first."""
    names = Basic.Properties.__slots__
    return tuple(
        (name, Basic.Properties.amqp_type(name)) for index, name in enumerate(names) if flags & 1 << (15 - index)
    )
