"""What a message is on the wire: the same bytes as pamqp's, and read back as it was written."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pamqp.frame
import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from watership.bus.protocol import Message
from watership.bus.rabbit.contents import BODY, HEADER, Assembly, acknowledgement, header, publishing

CHANNEL, BODY_BYTES_MAX = 5, 50
SHORT = st.text(st.characters(codec="utf-8"), max_size=60)
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | SHORT | st.lists(SHORT, max_size=2)
MESSAGES = st.builds(
    Message,
    exchange=st.sampled_from(["", "watership"]),
    routing_key=SHORT,
    body=st.binary(max_size=3 * BODY_BYTES_MAX),
    type=SHORT,
    message_id=SHORT.filter(bool),
    correlation_id=st.none() | SHORT,
    reply_to=st.none() | SHORT,
    expiration_ms=st.none() | st.integers(0, 2**32 - 1),
    headers=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=20), VALUES, max_size=3
    ),  # pamqp cuts longer names
    mandatory=st.booleans(),
)


def as_pamqp_writes(message: Message) -> bytes:
    properties = spec.Basic.Properties(
        content_type="application/json",
        headers=dict(message.headers) or None,
        delivery_mode=2,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration=None if message.expiration_ms is None else str(message.expiration_ms),
        message_id=message.message_id,
        message_type=message.type,
        app_id="watership",
    )
    body = message.body
    chunks = [body[start : start + BODY_BYTES_MAX] for start in range(0, len(body), BODY_BYTES_MAX)]
    frames: list[Any] = [
        spec.Basic.Publish(exchange=message.exchange, routing_key=message.routing_key, mandatory=message.mandatory),
        ContentHeader(properties=properties, body_size=len(body)),
        *map(ContentBody, chunks),
    ]
    return b"".join(pamqp.frame.marshal(frame, CHANNEL) for frame in frames)


@given(MESSAGES)
def test_a_message_is_written_as_pamqp_writes_it(message: Message) -> None:
    assert publishing(message, CHANNEL, BODY_BYTES_MAX) == as_pamqp_writes(message)


@given(MESSAGES)
def test_what_was_written_is_read_back(message: Message) -> None:
    content = Assembly()
    content.begin()
    wholes = []
    rest = publishing(message, CHANNEL, BODY_BYTES_MAX)
    while rest:
        kind, end = rest[0], int.from_bytes(rest[3:7], "big") + 8
        if kind in (HEADER, BODY):
            wholes.append(content.add(kind, rest[7 : end - 1]))
        rest = rest[end:]
    assert wholes == [False] * (len(wholes) - 1) + [True]
    assert content.body == message.body
    assert content.properties.get("headers", {}) == message.headers
    for name in ("type", "message_id", "correlation_id", "reply_to"):
        assert content.properties.get(name) == (getattr(message, name) or None), "an empty one is none"


@pytest.mark.parametrize("name", ["type", "message_id", "correlation_id", "reply_to", "routing_key"])
def test_a_text_of_more_than_255_bytes_is_not_written(name: str) -> None:
    def message(size: int) -> Message:
        fields: dict[str, Any] = {"routing_key": "k", "type": "t", "message_id": "m", name: "n" * size}
        return Message("x", body=b"", **fields)

    assert publishing(message(255), CHANNEL, BODY_BYTES_MAX)
    with pytest.raises((OverflowError, TypeError)):
        publishing(message(256), CHANNEL, BODY_BYTES_MAX)


def test_a_message_without_an_id_is_not_written() -> None:
    with pytest.raises(ValueError, match="needs an id"):
        publishing(Message("x", "k", b"", "t", ""), CHANNEL, BODY_BYTES_MAX)


@given(st.integers(1, 2**63 - 1), st.booleans())
def test_an_acknowledgement_is_written_as_pamqp_writes_it(tag: int, multiple: bool) -> None:
    wanted = pamqp.frame.marshal(spec.Basic.Ack(tag, multiple), CHANNEL)
    assert acknowledgement(CHANNEL, tag, multiple=multiple) == wanted


@given(st.binary(max_size=60), st.integers(0, 2**16 - 1))
def test_a_header_of_any_bytes_raises_nothing(raw: bytes, flags: int) -> None:
    size_bytes, properties = header(b"\x00\x3c\x00\x00" + (5).to_bytes(8, "big") + flags.to_bytes(2, "big") + raw)
    assert size_bytes == 5
    assert properties.keys() <= {"headers", "correlation_id", "reply_to", "expiration", "message_id", "type"}


def test_every_property_of_pamqp_is_read_or_stepped_over() -> None:
    properties = spec.Basic.Properties(
        content_type="c",
        content_encoding="e",
        headers={"h": 1},
        delivery_mode=1,
        priority=9,
        correlation_id="correlation",
        reply_to="reply",
        expiration="1",
        message_id="id",
        timestamp=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        message_type="type",
        user_id="u",
        app_id="a",
    )
    assert header(ContentHeader(properties=properties, body_size=7).marshal()) == (
        7,
        {
            "headers": {"h": 1},
            "correlation_id": "correlation",
            "reply_to": "reply",
            "expiration": "1",
            "message_id": "id",
            "type": "type",
        },
    )
