"""Messages that no honest client sends: published frame by frame, with properties of any bytes."""

from __future__ import annotations

import struct

import aiormq
from aiormq import Channel
from aiormq.abc import ChannelFrame

# The order and the flags of AMQP's basic properties, those that these tests set.
FLAGS = {
    "headers": 1 << 13,
    "delivery_mode": 1 << 12,
    "correlation_id": 1 << 10,
    "reply_to": 1 << 9,
    "message_id": 1 << 7,
    "timestamp": 1 << 6,
    "type": 1 << 5,
}


def short(text: bytes) -> bytes:
    """A short string: a byte of length, then whatever bytes."""
    return bytes([len(text)]) + text


def table(*fields: tuple[bytes, bytes]) -> bytes:
    """A field table: of each field the name, and the value with its letter before it."""
    content = b"".join(short(name) + value for name, value in fields)
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    """A table in a table in a table."""
    inner = table()
    for _ in range(depth):
        inner = table((b"t", b"F" + inner))
    return inner


def stamp(seconds: int) -> bytes:
    """A timestamp: 64 bits, which may stand for years that no calendar has."""
    return struct.pack(">Q", seconds)


async def publish_raw(url: str, exchange: str, routing_key: bytes, body: bytes = b"{}", **properties: bytes) -> None:
    """Publishes one message, and returns when the broker has confirmed it. A property is given as its bytes."""
    properties.setdefault("delivery_mode", b"\x02")
    flags = sum(FLAGS[name] for name in properties)
    content = b"".join(properties[name] for name in FLAGS if name in properties)
    publish = struct.pack(">HHH", 60, 40, 0) + short(exchange.encode()) + short(routing_key) + b"\x00"
    header = struct.pack(">HHQH", 60, 0, len(body), flags) + content
    async with aiormq.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        assert isinstance(channel, Channel)
        payload = b"".join(_frame(kind, channel.number, part) for kind, part in ((1, publish), (2, header), (3, body)))
        channel.delivery_tag += 1
        confirm = channel.confirmations[channel.delivery_tag] = channel.loop.create_future()
        await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False))
        await confirm


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
