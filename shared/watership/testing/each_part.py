"""A witness of a bus that is told of each part of a gathered message, as if it had come alone, under its own id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from watership.bus.gathering import apart, opened
from watership.bus.protocol import Delivery, Fate, Message
from watership.messages import StartSaga, StepCommand, StepReply, read

if TYPE_CHECKING:
    from watership.testing.faulty_bus import BusWitness
    from watership.testing.world import Process

OneT = TypeVar("OneT", Message, Delivery)


class EachPart:
    """See `BusWitness`."""

    def __init__(self, inner: BusWitness) -> None:
        self._inner = inner
        self._sent_alone: set[tuple[str, bytes]] = set()  # by queue and body: what was taken out of a gathered message

    def publishing(self, process: Process, messages: Sequence[Message]) -> None:
        """See `BusWitness.publishing`."""
        self._inner.publishing(process, [part for message in messages for part in parts_of(message)])

    def routed(self, process: Process, message: Message, fate: Fate) -> None:
        """See `BusWitness.routed`."""
        for part in parts_of(message):
            self._inner.routed(process, part, fate)
        if not message.exchange and fate is Fate.CONFIRMED:
            self._sent_alone.add((message.routing_key, message.body))

    def published(self, process: Process, messages: Sequence[Message], fates: Sequence[Fate]) -> None:
        """See `BusWitness.published`."""
        told = [(part, fate) for message, fate in zip(messages, fates, strict=True) for part in parts_of(message)]
        self._inner.published(process, [part for part, _ in told], [fate for _, fate in told])

    def handed_over(self, process: Process, delivery: Delivery) -> None:
        """See `BusWitness.handed_over`."""
        for part in _named(delivery, opened(delivery)):
            self._inner.handed_over(process, part)

    def acked(self, process: Process, delivery: Delivery) -> None:
        """See `BusWitness.acked`."""
        for part in _named(delivery, opened(delivery)):
            if part is delivery or (part.queue, part.body) not in self._sent_alone:
                self._inner.acked(process, part)  # else it was sent again as a message of its own, which is still open

    def rejected(self, process: Process, delivery: Delivery, *, requeue: bool) -> None:
        """See `BusWitness.rejected`."""
        for part in _named(delivery, opened(delivery)):
            self._inner.rejected(process, part, requeue=requeue)


def parts_of(message: Message) -> Iterable[Message]:
    """What a message carries, each under its own id."""
    return _named(message, apart(message))


def _named(whole: OneT, parts: Sequence[OneT]) -> Iterable[OneT]:
    for part in parts:
        if part is whole:
            yield part
            continue
        read_part = read(part.type, part.body)
        assert isinstance(read_part, StartSaga | StepCommand | StepReply), "nothing else is gathered"
        correlation_id = str(read_part.saga_id)
        yield dataclasses.replace(part, message_id=read_part.message_id, correlation_id=correlation_id)
