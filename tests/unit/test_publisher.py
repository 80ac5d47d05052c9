"""What the broker's answers make of the messages that were written: by delivery tag, whatever the order they come in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pamqp.frame
import pytest
from aiormq import spec
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from watership.bus.protocol import Fate, Message
from watership.bus.rabbit import publisher
from watership.bus.rabbit.publisher import Publisher
from watership.bus.rabbit.tap import Tap

NUMBER = 4
CONFIRMED, RETURNED, REFUSED, UNCONFIRMED = Fate.CONFIRMED, Fate.RETURNED, Fate.REFUSED, Fate.UNCONFIRMED


class Scene:
    """A publisher on a channel that nobody reads: the test answers for the broker."""

    def __init__(self, timeout_s: float) -> None:
        self.written: asyncio.Queue[ChannelFrame] = asyncio.Queue()
        self.passed_on: list[bytes] = []
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection: Any = SimpleNamespace(is_opened=True, channels={}, ready=self._ready)
        channel: Any = SimpleNamespace(number=NUMBER, connection=connection, is_closed=False, closing=self.closing)
        channel.max_content_size, channel.write_queue = 100, self.written
        connection.channels[NUMBER] = self.channel = channel
        self.tap = Tap(self.passed_on.append, asyncio.get_running_loop().time)
        self.publisher = Publisher(connection, channel, self.tap, timeout_s)

    async def _ready(self) -> None:
        """No alarm."""

    def publish(self, *ids: str) -> asyncio.Task[list[Fate]]:
        messages = [Message("x", "k", b"{}", "t", message_id) for message_id in ids]
        return asyncio.create_task(self.publisher.publish(messages))

    async def write(self) -> list[str]:
        """Waits for one write; the ids of the messages in it."""
        rest = (await self.written.get()).payload
        ids = []
        while rest:
            consumed, _, frame = pamqp.frame.unmarshal(rest)
            if isinstance(frame, ContentHeader):
                ids.append(str(frame.properties.message_id))
            rest = rest[consumed:]
        return ids

    def answer(self, *frames: Any) -> None:
        self.tap.data_received(b"".join(pamqp.frame.marshal(frame, NUMBER) for frame in frames))


def returned(message_id: str) -> list[Any]:
    properties = spec.Basic.Properties(message_id=message_id)
    return [spec.Basic.Return(312, "NO_ROUTE", "x", "k"), ContentHeader(0, 2, properties), ContentBody(b"{}")]


@pytest.fixture
def scene() -> Callable[..., Awaitable[Scene]]:
    async def made(timeout_s: float = 30) -> Scene:
        return Scene(timeout_s)

    return made


Made = Callable[..., Awaitable[Scene]]


async def test_one_answer_may_stand_for_all_before_it(scene: Made) -> None:
    one = await scene()
    fates = one.publish("a", "b", "c", "d")
    assert await one.write() == ["a", "b", "c", "d"]
    one.answer(spec.Basic.Ack(2))
    one.answer(spec.Basic.Ack(3, multiple=True), spec.Basic.Nack(4))
    assert await fates == [CONFIRMED, CONFIRMED, CONFIRMED, REFUSED]
    assert one.passed_on == []


async def test_a_nack_may_stand_for_all_before_it(scene: Made) -> None:
    one = await scene()
    fates = one.publish("a", "b", "c")
    await one.write()
    one.answer(spec.Basic.Ack(1), spec.Basic.Nack(3, multiple=True))
    assert await fates == [CONFIRMED, REFUSED, REFUSED]


async def test_what_comes_back_is_returned_and_its_ack_behind_it_does_not_hide_it(scene: Made) -> None:
    one = await scene()
    fates = one.publish("a", "b", "c")
    await one.write()
    one.answer(*returned("b"))
    await asyncio.sleep(0)
    assert not fates.done(), "a return alone settles nothing"
    one.answer(*returned("nobody's"), spec.Basic.Ack(3, multiple=True))
    assert await fates == [CONFIRMED, RETURNED, CONFIRMED]


async def test_batches_that_are_under_way_together_are_settled_each_by_its_own_tags(scene: Made) -> None:
    one = await scene()
    first, second = one.publish("a", "b"), one.publish("c", "d")
    assert [await one.write(), await one.write()] == [["a", "b"], ["c", "d"]]
    one.answer(spec.Basic.Ack(4), spec.Basic.Nack(3))
    assert await second == [REFUSED, CONFIRMED]
    assert not first.done()
    one.answer(spec.Basic.Ack(2, multiple=True))
    assert await first == [CONFIRMED, CONFIRMED]


async def test_an_id_that_is_in_flight_waits_for_its_end(scene: Made) -> None:
    """A return is told by the id alone."""
    one = await scene()
    fates = one.publish("a", "a", "b")
    assert await one.write() == ["a"]
    one.answer(*returned("a"), spec.Basic.Ack(1))
    assert await one.write() == ["a", "b"]
    one.answer(spec.Basic.Ack(3, multiple=True))
    assert await fates == [RETURNED, CONFIRMED, CONFIRMED]


async def test_a_closed_channel_leaves_open_what_is_open_and_takes_no_more_frames(scene: Made) -> None:
    one = await scene()
    fates = one.publish("a", "b")
    await one.write()
    one.answer(spec.Basic.Ack(1))
    one.closing.set_result(None)
    assert await fates == [CONFIRMED, UNCONFIRMED]
    one.answer(spec.Basic.Ack(2))
    assert one.passed_on == [pamqp.frame.marshal(spec.Basic.Ack(2), NUMBER)]


async def test_what_never_reached_the_queue_has_no_tag(scene: Made) -> None:
    """The broker counts what it receives, so that a tag that was given in vain would shift all that follow."""
    one = await scene(timeout_s=0.05)
    one.channel.write_queue = asyncio.Queue(maxsize=1)
    one.channel.write_queue.put_nowait(None)  # full: the writer is stuck
    assert await one.publish("a", "b") == [UNCONFIRMED, UNCONFIRMED]
    one.channel.write_queue = one.written
    fates = one.publish("c", "a")
    assert await one.write() == ["c", "a"]
    one.answer(spec.Basic.Nack(1), spec.Basic.Ack(2))
    assert await fates == [REFUSED, CONFIRMED]


async def test_a_confirm_that_comes_after_the_time_out_is_no_other_messages(scene: Made) -> None:
    one = await scene(timeout_s=0.05)
    assert await one.publish("a") == [UNCONFIRMED]
    await one.write()
    fates = one.publish("b")
    await one.write()
    one.answer(spec.Basic.Ack(1))
    await asyncio.sleep(0)
    assert not fates.done()
    one.answer(spec.Basic.Ack(2))
    assert await fates == [CONFIRMED]


async def test_one_that_cannot_be_written_costs_the_others_nothing(scene: Made) -> None:
    one = await scene()
    fates = one.publish("a", "x" * 256, "b")
    assert await one.write() == ["a", "b"]
    one.answer(spec.Basic.Ack(2, multiple=True))
    assert await fates == [CONFIRMED, REFUSED, CONFIRMED]


async def test_a_great_many_go_in_several_writes(scene: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WRITE_BYTES_MAX", 1)
    one = await scene()
    fates = one.publish("a", "b")
    assert [await one.write(), await one.write()] == [["a"], ["b"]]
    one.answer(spec.Basic.Ack(2, multiple=True))
    assert await fates == [CONFIRMED, CONFIRMED]
