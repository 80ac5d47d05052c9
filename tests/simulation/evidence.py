"""What the laws keep of what they saw, and what they look up at the broker."""

from __future__ import annotations

import dataclasses

from watership.bus.memory import MemoryBroker
from watership.bus.protocol import Delivery
from watership.machine import changes as c
from watership.testing.each_part import parts_of


class LawBroken(AssertionError):
    """``law`` names the check."""

    def __init__(self, law: str, words: str) -> None:
        self.law = law
        super().__init__(f"{law}: {words}")


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """When something was committed, by whom, and over which link of that process what follows may be sent."""

    at_s: float
    process: object
    link: int


@dataclasses.dataclass(slots=True)
class Entry:
    """A log entry as it was committed."""

    seq: int
    at_ms: int
    cause: str
    changes: tuple[c.Change, ...]


def copies_of(broker: MemoryBroker, delivery: Delivery) -> int:
    """How many messages of this id the broker holds in this queue, delivered or not."""
    queue = broker._queues[delivery.queue]
    entries = [*queue.ready, *(entry for consumer in queue.consumers for entry in consumer.unacked.values())]
    return sum(part.message_id == delivery.message_id for entry in entries for part in parts_of(entry.message))
