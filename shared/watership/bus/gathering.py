"""Many messages in one, and one taken apart again: of one kind, to one queue, a line of compact JSON each.

A message through a replicated queue costs the broker the same whatever its size, and every client that it passes as
much again: under load that is most of what a saga costs. So what is ready at the same moment goes as one message, whose
type is its parts' with ``-lines`` behind. At rest nothing waits, and a message goes alone, as it is.

Behind a part's body, after a tab, may stand headers of its own, such as its trace: compact JSON has no bare tab or newline.
A gathered message is settled when all its parts are. One part that must come again brings the others with it, which are
duplicates then, and known as such; one that must be dead-lettered is sent to its queue again as a message of its own,
so that whoever keeps dead letters never has to keep nine good ones with a bad one. It must never know what a saga is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from watership import codec
from watership.bus.protocol import Bus, Delivery, Fate, Message
from watership.errors import InvalidPayload, LimitExceeded

LINES = "-lines"
HOLD_S = 0.002  # under load: for what is ready a moment later; a confirm of the broker takes about as long
PARTS_MAX = 100
PARTS_BYTES_MAX = 65_536
OPENED_PARTS_MAX = 1_000  # of what a stranger sent: with more it is not opened, and refused as it is
OPENED_BYTES_MAX = 1_048_576
ID_BYTES_MAX = 255
ALONE_RETRY_S, ALONE_TRIES_MAX = 1.0, 60

ItemT = TypeVar("ItemT")


class Gatherer(Generic[ItemT]):
    """Hands over what is ready together. While that is under way, what comes next is held for a moment, and goes together."""

    def __init__(
        self, hand_over: Callable[[list[ItemT]], Coroutine[Any, Any, None]], *, hold_s: float = HOLD_S
    ) -> None:
        self._hand_over = hand_over
        self._hold_s = hold_s
        self._ready: list[ItemT] = []
        self._turns: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def add(self, item: ItemT) -> None:
        """It goes with the next turn."""
        self._ready.append(item)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns(), name="gathering")

    async def _take_turns(self) -> None:
        await asyncio.sleep(0)  # what becomes ready in this turn of the loop goes along
        while self._ready:
            items, self._ready = self._ready, []
            task = asyncio.create_task(self._hand_over(items), name="gathered")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.wait({task}, timeout=self._hold_s)


async def publish_gathered(
    bus: Bus,
    messages: Sequence[Message],
    *,
    spread: int = 1,
    parts_max: int = PARTS_MAX,
    alone: Collection[int] = (),
) -> list[Fate]:
    """Publishes them, gathered as `gathered` says; a fate for each, in their order."""
    groups = gathered(messages, spread=spread, parts_max=parts_max, alone=alone)
    fates = await bus.publish([message for message, _ in groups])
    by_index: dict[int, Fate] = {}
    for (_, indexes), fate in zip(groups, fates, strict=True):
        by_index.update(dict.fromkeys(indexes, fate))
    return [by_index[index] for index in range(len(messages))]


def gathered(
    messages: Sequence[Message], *, spread: int = 1, parts_max: int = PARTS_MAX, alone: Collection[int] = ()
) -> list[tuple[Message, list[int]]]:
    """The messages that carry these, each with the numbers of those that it carries.

    ``spread``: what goes to one address is in so many messages at least, since several may wait for it there. ``alone``:
    the numbers of those that go as they are.
    """
    addresses = [_address(message) for message in messages]
    sizes_max = {address: min(parts_max, count // spread) for address, count in Counter(addresses).items()}
    groups: list[list[int]] = []
    filling: dict[object, tuple[list[int], int]] = {}
    for index, message in enumerate(messages):
        address = addresses[index] if index not in alone else index
        group, size_bytes = filling.get(address, ([], 0))
        size_bytes += len(message.body) + 1
        if not group or len(group) >= sizes_max.get(address, 1) or size_bytes > PARTS_BYTES_MAX:
            group, size_bytes = [], len(message.body) + 1
            groups.append(group)
        group.append(index)
        filling[address] = (group, size_bytes)
    return [(_one_of([messages[index] for index in group]), group) for group in groups]


def _address(message: Message) -> object:
    return (
        message.exchange,
        message.routing_key,
        message.type,
        message.reply_to,
        message.expiration_ms,
        message.mandatory,
    )


def _one_of(messages: list[Message]) -> Message:
    first = messages[0]
    if len(messages) == 1:
        return first
    return dataclasses.replace(
        first,
        body=b"\n".join(_line(message) for message in messages),
        type=first.type + LINES,
        message_id=f"{first.message_id[:200]}+{len(messages) - 1}",
        correlation_id=None,
        headers={},
    )


def _line(message: Message) -> bytes:
    return message.body + b"\t" + codec.dumps(message.headers) if message.headers else message.body


def _lines(body: bytes) -> list[bytes]:
    """Many programs end each line with a newline, the last one too."""
    return body.removesuffix(b"\n").split(b"\n")


def _part(line: bytes) -> tuple[bytes, Mapping[str, Any]]:
    """The body in a line, and its headers; what cannot be read as such counts as none."""
    body, _, rest = line.partition(b"\t")
    if not rest:
        return body, {}
    try:
        headers = codec.decode(rest, what="the headers of a part")
    except (InvalidPayload, LimitExceeded):
        return body, {}
    return body, _ours(headers) if isinstance(headers, dict) else {}


def _ours(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a broker notes of a message: of another than this, or not by the broker at all."""
    return {name: value for name, value in headers.items() if not name.startswith("x-")}


def _kind_of_parts(kind: str | None) -> str | None:
    """What is gathered in a message of this type; None: it is one by itself."""
    return kind.removesuffix(LINES) or None if kind and kind.endswith(LINES) else None


def apart(message: Message) -> list[Message]:
    """The messages that one stands for: itself, if nothing is gathered in it."""
    kind = _kind_of_parts(message.type)
    if kind is None:
        return [message]
    return [
        dataclasses.replace(message, body=body, type=kind, message_id=f"{message.message_id}/{number}", headers=headers)
        for number, (body, headers) in enumerate(map(_part, _lines(message.body)))
    ]


class Settling(Protocol):
    """How what was delivered is settled: as a bus does."""

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledges."""

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Gives back (``requeue``) or dead-letters."""


@dataclasses.dataclass(slots=True, eq=False)
class _Parcel:
    """A gathered message that was delivered, and how many of its parts are open."""

    delivery: Delivery
    open: int
    comes_again: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _Part:
    """A part's handle."""

    parcel: _Parcel
    is_settled: bool = False


def opened(delivery: Delivery) -> list[Delivery]:
    """The deliveries that one stands for, each with a handle of its own: itself, if nothing is gathered in it."""
    kind = _kind_of_parts(delivery.type)
    if kind is None or len(delivery.body) > OPENED_BYTES_MAX:
        return [delivery]
    lines = _lines(delivery.body)
    if len(lines) > OPENED_PARTS_MAX:
        return [delivery]
    parcel = _Parcel(delivery, len(lines))
    return [
        Delivery(
            queue=delivery.queue,
            body=body,
            type=kind,
            message_id=f"{delivery.message_id}/{number}",
            correlation_id=None,
            reply_to=delivery.reply_to,
            redelivered=delivery.redelivered,
            expiration_ms=delivery.expiration_ms,
            headers={**delivery.headers, **headers} if headers else delivery.headers,
            handle=_Part(parcel),
        )
        for number, (body, headers) in enumerate(map(_part, lines))
    ]


def is_part(delivery: Delivery) -> bool:
    """Whether it came in a gathered message."""
    return isinstance(delivery.handle, _Part)


class Parcels:
    """Opens what arrives, and settles it with the broker when all that was in it is settled."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._under_way: set[asyncio.Task[None]] = set()

    @staticmethod
    def opening(on_delivery: Callable[[Delivery], None]) -> Callable[[Delivery], None]:
        """For `Bus.consume`: hands on each part."""

        def arrive(delivery: Delivery) -> None:
            for part in opened(delivery):
                on_delivery(part)

        return arrive

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledges, with those gathered messages of which these were the last open parts."""
        whole = [delivery for delivery in deliveries if not isinstance(delivery.handle, _Part)]
        closed = list(_closed(delivery.handle for delivery in deliveries if isinstance(delivery.handle, _Part)))
        whole += [parcel.delivery for parcel in closed if not parcel.comes_again]
        if whole:
            await self._bus.ack(whole)
        for parcel in closed:
            if parcel.comes_again:
                await self._bus.reject(parcel.delivery, requeue=True)

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Gives back, or dead-letters."""
        part = delivery.handle
        if not isinstance(part, _Part):
            await self._bus.reject(delivery, requeue=requeue)
            return
        if requeue:
            part.parcel.comes_again = True
            await self.ack([delivery])
        elif not await self.hand_back(delivery):
            task = asyncio.create_task(self._until_handed_back(delivery), name="sent alone")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def hand_back(self, part: Delivery) -> bool:
        """Puts a part at the end of its queue, alone, for whoever has time. False: the broker did not say that it has it.

        It must not have been begun: it is not delivered twice.
        """
        if not await self._sent_alone(part):
            return False
        await self.ack([part])
        return True

    async def _until_handed_back(self, part: Delivery) -> None:
        """Its queue is full, say. The others wait with it, and are not run again for its sake."""
        for _ in range(ALONE_TRIES_MAX):
            await asyncio.sleep(ALONE_RETRY_S)
            if await self.hand_back(part):
                return
        await self.reject(part, requeue=True)

    async def _sent_alone(self, delivery: Delivery) -> bool:
        message = Message(
            exchange="",
            routing_key=delivery.queue,
            body=delivery.body,
            type=delivery.type or "",
            message_id=(delivery.message_id or "").encode()[-ID_BYTES_MAX:].decode(errors="ignore"),
            reply_to=delivery.reply_to,
            expiration_ms=delivery.expiration_ms,
            headers=_ours(delivery.headers),
        )
        (fate,) = await self._bus.publish([message])
        return fate is Fate.CONFIRMED


def _closed(parts: Iterable[_Part]) -> Iterable[_Parcel]:
    for part in itertools.filterfalse(lambda part: part.is_settled, parts):
        part.is_settled = True
        part.parcel.open -= 1
        if not part.parcel.open:
            yield part.parcel
