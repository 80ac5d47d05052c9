"""What is taken out of the stream before the library reads it: whole, in order, however the bytes were split."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pamqp.frame
import pytest
from aiormq import Channel, spec
from aiormq.abc import ChannelFrame
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from watership.bus.rabbit.tap import HEARTBEAT, HEARTBEAT_EVERY_S, Confirms, Deliveries, Tap

FRAME_BYTES_MAX = 40
CONSUMERS, PUBLISHER, OTHER = (3, 7), 4, 1
NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
HEADERS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xyz", max_size=5), max_size=2)


def content(channel: int, method: object, body: bytes, properties: spec.Basic.Properties) -> bytes:
    """A method and its content, as a broker frames it."""
    chunks = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)]
    frames = [method, ContentHeader(properties=properties, body_size=len(body)), *map(ContentBody, chunks)]
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)  # type: ignore[arg-type]


@dataclasses.dataclass
class Sent:
    """A piece of the stream, and who is to see it: what a taker is told, or the library (None)."""

    raw: bytes
    told: object = None


@st.composite
def deliveries(draw: st.DrawFn) -> Sent:
    channel, tag, again = draw(st.sampled_from(CONSUMERS)), draw(st.integers(1, 2**63 - 1)), draw(st.booleans())
    body = draw(st.binary(max_size=3 * FRAME_BYTES_MAX))
    texts = {name: draw(NAMES) for name in ("correlation_id", "reply_to", "expiration", "message_id", "type")}
    read = {name: text for name, text in texts.items() if text}  # an empty one is none, for pamqp
    headers = draw(HEADERS) or None
    properties = spec.Basic.Properties(
        content_type=draw(st.none() | NAMES),
        headers=dict(headers) if headers else None,
        delivery_mode=draw(st.none() | st.sampled_from((1, 2))),
        expiration=texts["expiration"],
        app_id=draw(st.none() | NAMES),
        correlation_id=texts["correlation_id"],
        reply_to=texts["reply_to"],
        message_id=texts["message_id"],
        message_type=texts["type"],
    )
    method = spec.Basic.Deliver(
        consumer_tag=draw(NAMES), delivery_tag=tag, redelivered=again, exchange="x", routing_key=draw(NAMES)
    )
    wanted = (channel, tag, again, {**read, "headers": headers} if headers else read, body)
    return Sent(content(channel, method, body, properties), wanted)


@st.composite
def answers(draw: st.DrawFn) -> Sent:
    tag, multiple = draw(st.integers(1, 2**63 - 1)), draw(st.booleans())
    kind = draw(st.sampled_from(("ack", "nack", "return")))
    if kind == "return":
        name = draw(st.text("abc", min_size=1, max_size=9))
        method = spec.Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="x", routing_key="k")
        properties = spec.Basic.Properties(message_id=name)
        return Sent(content(PUBLISHER, method, draw(st.binary(max_size=90)), properties), name)
    frame = spec.Basic.Ack(tag, multiple) if kind == "ack" else spec.Basic.Nack(tag, multiple)
    return Sent(pamqp.frame.marshal(frame, PUBLISHER), (tag, multiple, kind == "ack"))


@st.composite
def others(draw: st.DrawFn) -> Sent:
    """What is the library's, on any channel."""
    frames = [spec.Queue.DeclareOk("q", 1, 1), spec.Basic.CancelOk("t"), spec.Channel.CloseOk(), spec.Basic.Cancel("t")]
    channel = draw(st.sampled_from((*CONSUMERS, PUBLISHER, OTHER)))
    strange = content(OTHER, spec.Basic.Deliver("t", 1, False, "x", "k"), b"abc", spec.Basic.Properties())
    heartbeat = pamqp.frame.marshal(Heartbeat(), 0)
    return Sent(draw(st.sampled_from([heartbeat, strange, *(pamqp.frame.marshal(one, channel) for one in frames)])))


class Seen:
    """A tap with takers on three channels, and what each end of it saw."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self.told: list[object] = []
        self.fed: list[bytes] = []
        self.tap = Tap(self.fed.append, lambda: self.now_s)
        for channel in CONSUMERS:
            self.tap.set(channel, Deliveries(lambda *told, channel=channel: self.told.append((channel, *told))))
        self.tap.set(PUBLISHER, Confirms(lambda *told: self.told.append(told), self.told.append))


@given(st.lists(deliveries() | answers() | others(), max_size=8), st.data())
def test_each_frame_goes_to_one_of_the_two_however_the_bytes_were_split(sent: list[Sent], data: st.DataObject) -> None:
    stream = b"".join(one.raw for one in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    seen = Seen()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen.tap.data_received(stream[start:end])
    assert seen.told == [one.told for one in sent if one.told is not None]
    assert b"".join(seen.fed) == b"".join(one.raw for one in sent if one.told is None)


def delivery(channel: int = 3, tag: int = 1, body: bytes = b"abc") -> bytes:
    method = spec.Basic.Deliver("t", tag, False, "x", "k")
    return content(channel, method, body, spec.Basic.Properties(message_id="m"))


def told(channel: int = 3, tag: int = 1, body: bytes = b"abc") -> tuple[object, ...]:
    return channel, tag, False, {"message_id": "m"}, body


def frames(raw: bytes) -> Iterator[bytes]:
    while raw:
        size = int.from_bytes(raw[3:7], "big") + 8
        yield raw[:size]
        raw = raw[size:]


def test_contents_on_two_channels_may_be_interleaved() -> None:
    seen = Seen()
    for pair in zip(frames(delivery()), frames(delivery(7, 2, b"defg")), strict=True):
        seen.tap.data_received(b"".join(pair))
    assert seen.told == [told(), told(7, 2, b"defg")]
    assert seen.fed == []


def test_where_frames_are_taken_the_library_gets_heartbeats_in_their_place() -> None:
    seen = Seen()
    for _ in range(100):
        seen.now_s += HEARTBEAT_EVERY_S / 10
        seen.tap.data_received(delivery())
    assert set(seen.fed) == {HEARTBEAT}
    assert 9 <= len(seen.fed) <= 10
    assert pamqp.frame.unmarshal(HEARTBEAT)[1:2] == (0,)
    seen.now_s += HEARTBEAT_EVERY_S
    seen.tap.data_received(pamqp.frame.marshal(spec.Channel.CloseOk(), 1))
    assert seen.fed[-1] != HEARTBEAT, "it has just seen a frame"


def test_a_channel_that_is_done_takes_nothing_and_its_successor_keeps_its_number() -> None:
    seen = Seen()
    first, second = Deliveries(lambda *_: seen.told.append("first")), Deliveries(lambda *_: seen.told.append("second"))
    seen.tap.set(9, first)
    seen.tap.set(9, second)
    seen.tap.unset(9, first)
    seen.tap.data_received(delivery(9))
    seen.tap.unset(9, second)
    seen.tap.data_received(delivery(9))
    assert seen.told == ["second"]
    assert b"".join(seen.fed) == delivery(9)


@pytest.mark.parametrize(
    "strange", [b"AMQP\x00\x00\x09\x01", b"\x09" + delivery()[1:], next(frames(delivery()))[:-1] + b"\x00"]
)
def test_what_is_no_frame_is_the_librarys_and_so_is_all_that_follows(strange: bytes) -> None:
    seen = Seen()
    for raw in (delivery(), strange + delivery(), delivery()):
        seen.tap.data_received(raw)
    assert seen.told == [told()]
    assert b"".join(seen.fed) == strange + delivery() + delivery()


def test_a_delivery_that_a_close_cut_short_is_dropped_and_the_next_on_its_number_is_whole() -> None:
    seen = Seen()
    method, head, _ = frames(delivery(9, body=b"never"))
    close = pamqp.frame.marshal(spec.Channel.Close(406, "PRECONDITION_FAILED", 0, 0), 9)
    seen.tap.set(9, Deliveries(lambda *_: seen.told.append("cut short")))
    seen.tap.data_received(method + head + close)
    seen.tap.set(9, Deliveries(lambda *told: seen.told.append(told[-1])))
    seen.tap.data_received(delivery(9, body=b"whole"))
    assert (seen.told, seen.fed) == ([b"whole"], [close])


def test_a_body_in_many_frames_that_come_byte_by_byte() -> None:
    seen = Seen()
    body = bytes(range(256)) * 4
    for byte in delivery(body=body):
        seen.tap.data_received(bytes([byte]))
    assert (seen.told, seen.fed) == ([told(body=body)], [])


@pytest.mark.parametrize("waits", [False, True])
async def test_what_is_sent_goes_behind_what_the_library_has_to_write(waits: bool) -> None:
    written: list[bytes] = []
    channel = SimpleNamespace(write_queue=asyncio.Queue())
    tap = Tap(lambda _: None, lambda: 0.0, written.append)
    if waits:
        channel.write_queue.put_nowait(ChannelFrame(payload=b"first", should_close=False))
    await tap.send(cast("Channel", channel), b"second")
    queued = [channel.write_queue.get_nowait().payload for _ in range(channel.write_queue.qsize())]
    assert (written, queued) == (([], [b"first", b"second"]) if waits else ([b"second"], []))
