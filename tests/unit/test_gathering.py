"""Many messages in one: what goes together, what comes out again, and when the whole is settled."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watership import codec
from watership.bus import gathering
from watership.bus.gathering import (
    LINES,
    OPENED_BYTES_MAX,
    OPENED_PARTS_MAX,
    PARTS_BYTES_MAX,
    PARTS_MAX,
    Gatherer,
    Parcels,
    apart,
    gathered,
    opened,
    publish_gathered,
)
from watership.bus.memory import MemoryBroker, MemoryBus
from watership.bus.protocol import Delivery, Fate, Message
from watership.bus.topology import Exchange, ExchangeKind, Queue

QUEUE, DEAD = Queue("q", "x", "key", "dead"), Queue("q.dead", "dead", "#", None)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
FIELDS = st.dictionaries(TEXT, TEXT | st.integers(-9, 9), max_size=3)


def message(number: int = 0, *, size_bytes: int = 0, **fields: object) -> Message:
    body = codec.dumps({"number": number, "padding": "x" * size_bytes})
    made = Message("x", "key", body, "kind", f"id-{number}", correlation_id=f"c-{number}")
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


def numbers(messages: list[tuple[Message, list[int]]]) -> list[list[int]]:
    return [indexes for _, indexes in messages]


# --- what goes together


def test_one_message_goes_as_it_is() -> None:
    alone = message()
    assert gathered([alone]) == [(alone, [0])]


def test_what_has_the_same_address_goes_together_in_its_order() -> None:
    others = [message(1, reply_to="b"), message(4, type="other"), message(5, routing_key="elsewhere")]
    made = gathered([message(0), others[0], message(2), message(3), *others[1:]])
    assert numbers(made) == [[0, 2, 3], [1], [4], [5]]
    assert [one for one, _ in made[1:]] == others
    assert (made[0][0].type, made[0][0].message_id, made[0][0].correlation_id) == ("kind" + LINES, "id-0+2", None)


def test_what_expires_goes_with_what_expires_at_the_same_time() -> None:
    made = gathered([message(0, expiration_ms=5), message(1, expiration_ms=6), message(2, expiration_ms=5)])
    assert numbers(made) == [[0, 2], [1]]


def test_some_go_alone_and_some_are_spread() -> None:
    five = [message(number) for number in range(5)]
    assert numbers(gathered(five, alone={1, 3})) == [[0, 2, 4], [1], [3]]
    assert numbers(gathered(five, spread=2)) == [[0, 1], [2, 3], [4]]
    assert numbers(gathered(five, spread=8)) == [[0], [1], [2], [3], [4]]


async def test_what_is_handed_back_goes_to_the_end_of_its_queue_and_is_not_delivered_twice() -> None:
    desk = Desk()
    await desk.open(message(0, expiration_ms=60_000), message(1, expiration_ms=60_000), message(2))
    await desk.parcels.hand_back(desk.parts[0])
    await desk.parcels.hand_back(desk.parts[2])
    await desk.parcels.ack([desk.parts[1]])
    await desk.until(5)
    assert desk.bodies() == [0, 1, 2, 0, 2]
    assert [(part.redelivered, part.expiration_ms) for part in desk.parts[3:]] == [(False, 60_000), (False, None)]
    assert desk.left == (2, 0)


def test_a_gathered_message_has_limits() -> None:
    assert [len(group) for group in numbers(gathered([message(one) for one in range(PARTS_MAX + 1)]))] == [PARTS_MAX, 1]
    half = PARTS_BYTES_MAX // 2
    assert numbers(gathered([message(0, size_bytes=half), message(1, size_bytes=half), message(2)])) == [[0], [1, 2]]
    assert numbers(gathered([message(0, size_bytes=2 * PARTS_BYTES_MAX), message(1)])) == [[0], [1]]


@given(st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=8))
def test_what_comes_out_is_what_went_in(parts: list[tuple[dict[str, object], dict[str, object]]]) -> None:
    messages = [message(0, body=codec.dumps(body), headers=headers) for body, headers in parts]
    ((whole, _),) = gathered(messages)
    assert [(part.body, part.headers, part.type) for part in apart(whole)] == [
        (one.body, one.headers, one.type) for one in messages
    ]
    out = opened(delivery(whole))
    assert [(part.body, part.headers, part.type) for part in out] == [
        (one.body, one.headers, one.type) for one in messages
    ]
    assert len({part.message_id for part in out}) == len(parts)


def delivery(one: Message) -> Delivery:
    return Delivery("q", one.body, one.type, one.message_id, None, one.reply_to, False, one.headers, handle=None)


def test_headers_that_cannot_be_read_are_none() -> None:
    whole = message(0, type="kind" + LINES, body=b'{}\t{"a":\n{"b":1}\t[1]\n\n')
    assert [(part.body, dict(part.headers)) for part in opened(delivery(whole))] == [
        (b"{}", {}),
        (b'{"b":1}', {}),
        (b"", {}),
    ]


def test_what_holds_too_many_is_not_opened() -> None:
    for body in (b"\n" * (OPENED_PARTS_MAX + 1), b"x" * OPENED_BYTES_MAX + b"\n"):
        whole = delivery(message(0, type="kind" + LINES, body=body))
        assert opened(whole) == [whole]


# --- when it goes


async def test_at_rest_nothing_waits_and_under_load_a_moment_at_most() -> None:
    handed: list[list[int]] = []
    go_on = asyncio.Event()

    async def hand_over(items: list[int]) -> None:
        handed.append(items)
        await go_on.wait()

    gatherer = Gatherer[int](hand_over, hold_s=0.05)
    gatherer.add(1)
    gatherer.add(2)
    for _ in range(4):  # turns of the loop, and no time
        await asyncio.sleep(0)
    assert handed == [[1, 2]]  # at once
    gatherer.add(3)
    await asyncio.sleep(0)
    gatherer.add(4)
    await asyncio.sleep(0)
    assert handed == [[1, 2]]  # held: the first ones are under way
    async with asyncio.timeout(5):
        while len(handed) < 2:
            await asyncio.sleep(0.001)
    assert handed == [[1, 2], [3, 4]]  # and no longer than that, whatever becomes of the first ones
    gatherer.add(5)
    go_on.set()
    async with asyncio.timeout(5):
        while len(handed) < 3:
            await asyncio.sleep(0)


# --- settling


class Desk:
    """A queue on a memory broker, its dead letters, and what was handed over of it."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.parcels = Parcels(self.bus)
        self.parts: list[Delivery] = []

    async def open(self, *messages: Message) -> None:
        await self.bus.open()
        exchanges = [Exchange("x", ExchangeKind.DIRECT), Exchange("dead", ExchangeKind.TOPIC)]
        await self.bus.declare(exchanges, [QUEUE, DEAD])
        assert set(await publish_gathered(self.bus, messages)) == {Fate.CONFIRMED}
        await self.bus.consume("q", prefetch=0, on_delivery=self.parcels.opening(self.parts.append))
        while len(self.parts) < len(messages):
            await asyncio.sleep(0)

    @property
    def left(self) -> tuple[int, int]:
        """How many messages the broker has, delivered or not, and how many dead ones."""
        depth, dead = self.broker.depth("q"), self.broker.depth("q.dead")
        return depth.ready + depth.unacked, dead.ready

    def bodies(self) -> list[int]:
        """What was handed over, by its numbers."""
        return [codec.loads(part.body)["number"] for part in self.parts]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.parts) < count:
                await asyncio.sleep(0)


async def test_the_whole_is_acknowledged_with_its_last_part() -> None:
    desk = Desk()
    await desk.open(*(message(number) for number in range(3)))
    assert desk.bodies() == [0, 1, 2]
    await desk.parcels.ack([desk.parts[2], desk.parts[0]])
    await desk.parcels.ack([desk.parts[2]])  # again: it is passed over
    assert desk.left == (1, 0)
    await desk.parcels.ack([desk.parts[1]])
    assert desk.left == (0, 0)


async def test_a_part_that_comes_again_brings_the_others_with_it() -> None:
    desk = Desk()
    await desk.open(message(0), message(1))
    await desk.parcels.reject(desk.parts[0], requeue=True)
    assert (desk.left, len(desk.parts)) == ((1, 0), 2)
    await desk.parcels.ack([desk.parts[1]])
    await desk.until(4)
    assert desk.bodies() == [0, 1, 0, 1]
    assert [part.redelivered for part in desk.parts] == [False, False, True, True]


async def test_a_part_that_is_refused_is_dead_lettered_alone() -> None:
    desk = Desk()
    await desk.open(message(0, headers={"trace": "t"}), message(1))
    await desk.parcels.reject(desk.parts[0], requeue=False)
    await desk.parcels.ack([desk.parts[1]])
    await desk.until(3)
    assert (desk.bodies(), desk.left) == ([0, 1, 0], (1, 0))
    assert (desk.parts[2].type, dict(desk.parts[2].headers)) == ("kind", {"trace": "t"})
    await desk.parcels.reject(desk.parts[2], requeue=False)
    assert desk.left == (0, 1)


async def test_a_part_that_cannot_be_sent_alone_is_sent_when_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "ALONE_RETRY_S", 0.01)
    desk = Desk()
    await desk.open(message(0), message(1))
    desk.broker.limit("q", 0)
    await desk.parcels.reject(desk.parts[0], requeue=False)
    await desk.parcels.ack([desk.parts[1]])
    assert (desk.bodies(), desk.left) == ([0, 1], (1, 0)), "the others are not run again for its sake"
    desk.broker.limit("q", None)
    await desk.until(3)
    assert (desk.bodies(), desk.parts[2].type) == ([0, 1, 0], "kind")


async def test_one_that_never_can_brings_the_whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "ALONE_RETRY_S", 0.001)
    monkeypatch.setattr(gathering, "ALONE_TRIES_MAX", 2)
    desk = Desk()
    await desk.open(message(0), message(1))
    desk.broker.limit("q", 0)
    await desk.parcels.reject(desk.parts[0], requeue=False)
    await desk.parcels.ack([desk.parts[1]])
    await desk.until(4)
    assert desk.bodies() == [0, 1, 0, 1]


async def test_what_a_stranger_sends_costs_nobody_anything() -> None:
    """A type that is no kind, an id that is too long, a newline at the end, and what only the broker may say."""
    assert opened(delivery(message(0, type=LINES)))[0].type == LINES
    lines = opened(delivery(message(0, type="kind" + LINES, body=b'{}\t{"x-death":[1],"t":"1"}\n{}\n')))
    assert [(part.body, dict(part.headers)) for part in lines] == [(b"{}", {"t": "1"}), (b"{}", {})]
    desk = Desk()
    await desk.open(message(0, message_id="é" * 127), message(1))
    await desk.parcels.reject(desk.parts[0], requeue=False)
    await desk.until(3)
    assert len((desk.parts[2].message_id or "").encode()) <= 255
