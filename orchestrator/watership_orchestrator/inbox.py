"""What has arrived and waits for a batch. Replies go before starts, so that what is in flight finishes first."""

from __future__ import annotations

import asyncio
from collections import deque

from watership.bus.protocol import Delivery

# Of a full batch, at least this share is left to starts and operators: replies must not starve them either.
STARTS_SHARE = 8


class Inbox:
    """Deliveries by queue; `take` gives the next batch."""

    def __init__(self) -> None:
        self._replies: deque[Delivery] = deque()
        self._others: deque[Delivery] = deque()
        self._some = asyncio.Event()

    def put_reply(self, delivery: Delivery) -> None:
        """A step's reply arrived."""
        self._replies.append(delivery)
        self._some.set()

    def put(self, delivery: Delivery) -> None:
        """Something else arrived: a start, an operator's request."""
        self._others.append(delivery)
        self._some.set()

    def put_back(self, deliveries: list[Delivery], *, replies_queue: str) -> None:
        """Their sagas were locked elsewhere: they go to the front of the next batch, in their order."""
        for delivery in reversed(deliveries):
            (self._replies if delivery.queue == replies_queue else self._others).appendleft(delivery)
        if deliveries:
            self._some.set()

    def __len__(self) -> int:
        return len(self._replies) + len(self._others)

    async def take(self, size_max: int) -> list[Delivery]:
        """Waits for the first delivery, and takes with it whatever else is there: no delay at rest, batches under load."""
        while not self._replies and not self._others:
            self._some.clear()
            await self._some.wait()
        for_others = min(len(self._others), max(size_max // STARTS_SHARE, size_max - len(self._replies)))
        batch = [self._replies.popleft() for _ in range(min(len(self._replies), size_max - for_others))]
        batch.extend(self._others.popleft() for _ in range(min(for_others, size_max - len(batch))))
        return batch
