"""One consumer's channel, and the deliveries that it still has to settle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pamqp.frame
from aiormq import Channel, spec
from aiormq.abc import AbstractConnection
from aiormq.exceptions import AMQPChannelError

from watership.bus.protocol import Delivery
from watership.bus.rabbit.contents import acknowledgement
from watership.bus.rabbit.link import CLOSE_TIMEOUT_S, bounded, is_channel_open
from watership.bus.rabbit.tap import Deliveries, Tap
from watership.errors import BrokerUnavailable


class Intake:
    """A channel with one consumer. When either is gone it is done with: another takes its place."""

    def __init__(self, channel: Channel, tap: Tap, queue: str, receive: Callable[[Delivery], None]) -> None:
        self._channel, self._tap, self._queue, self._receive = channel, tap, queue, receive
        self._tag = ""
        self._unacked: dict[int, None] = {}  # in the order of delivery
        self._is_consuming = False
        self._is_settled = asyncio.Event()

    @classmethod
    async def open(
        cls,
        connection: AbstractConnection,
        tap: Tap,
        queue: str,
        *,
        prefetch: int,
        receive: Callable[[Delivery], None],
        on_broken: Callable[[], None],
        timeout_s: float,
    ) -> Intake:
        """Consumes ``queue``. ``on_broken`` tells that the channel, or the consumer alone, has ended."""
        opening = connection.channel(publisher_confirms=False, frame_buffer_size=0)
        channel = await bounded(opening, timeout_s, f"a channel for queue {queue}")
        assert isinstance(channel, Channel)
        intake = cls(channel, tap, queue, receive)
        deliveries = Deliveries(intake._on_message)
        tap.set(channel.number, deliveries)
        channel.closing.add_done_callback(lambda _: tap.unset(channel.number, deliveries))
        try:
            # The prefetch comes first: without one the broker would send all it has.
            await bounded(channel.basic_qos(prefetch_count=prefetch), timeout_s, f"the prefetch of queue {queue}")
            answer = await bounded(channel.basic_consume(queue, _never_asked), timeout_s, f"consuming queue {queue}")
        except BaseException:
            await intake.close()
            raise
        intake._tag, intake._is_consuming = answer.consumer_tag or "", True

        def on_cancelled(_: spec.Basic.Cancel) -> None:  # the queue was deleted, or lost its leader
            intake._is_consuming = False
            on_broken()

        channel.on_consumer_cancel_callbacks.add(on_cancelled)
        channel.closing.add_done_callback(lambda _: on_broken())
        return intake

    @property
    def is_live(self) -> bool:
        """Whether deliveries can arrive."""
        return self._is_consuming and self.is_open

    @property
    def is_open(self) -> bool:
        """Whether deliveries can be settled."""
        return is_channel_open(self._channel)

    async def ack(self, tags: Iterable[int]) -> None:
        """Acknowledges those still open, by one frame as far as all before them are among them."""
        wanted = {tag for tag in tags if tag in self._unacked}
        first = list(itertools.takewhile(wanted.__contains__, self._unacked))
        number, others = self._channel.number, sorted(wanted.difference(first))
        frames = [acknowledgement(number, first[-1], multiple=len(first) > 1)] if first else []
        frames += [acknowledgement(number, tag, multiple=False) for tag in others]
        await self._settle(wanted, b"".join(frames))

    async def reject(self, tag: int, *, requeue: bool) -> None:
        """Gives one back, or dead-letters it."""
        if tag in self._unacked:
            frame = spec.Basic.Reject(delivery_tag=tag, requeue=requeue)
            await self._settle({tag}, pamqp.frame.marshal(frame, self._channel.number))

    async def _settle(self, tags: set[int], frames: bytes) -> None:
        """All in one write, which the library's own calls cannot do."""
        if not tags or not self.is_open:
            return
        for tag in tags:
            del self._unacked[tag]
        await self._tap.send(self._channel, frames)
        if not self._unacked and not self._is_consuming:
            self._is_settled.set()

    async def drain(self, timeout_s: float) -> None:
        """Ends the consumer, not the channel: what it delivered can still be settled."""
        self._is_consuming = False
        with contextlib.suppress(BrokerUnavailable, AMQPChannelError):
            await bounded(self._channel.basic_cancel(self._tag), timeout_s, "ending a consumer")
        if not self._unacked:
            self._is_settled.set()

    async def close_when_settled(self) -> None:
        """For a drained one: closes the channel after its last delivery was settled."""
        await self._is_settled.wait()
        await self.close()

    async def close(self) -> None:
        """Closes the channel; the broker's answer means that it has read the acknowledgements before it."""
        self._is_consuming = False
        self._is_settled.set()
        with contextlib.suppress(BrokerUnavailable, AMQPChannelError):
            await bounded(self._channel.close(), CLOSE_TIMEOUT_S, "closing a channel")

    def _on_message(self, tag: int, redelivered: bool, properties: Mapping[str, Any], body: bytes) -> None:
        """Runs as the bytes are read: so it hands over, and never waits."""
        self._unacked[tag] = None
        self._is_settled.clear()
        self._receive(
            Delivery(
                queue=self._queue,
                body=body,
                type=_storable(properties.get("type")),
                message_id=_storable(properties.get("message_id")),
                correlation_id=_storable(properties.get("correlation_id")),
                reply_to=_storable(properties.get("reply_to")),
                redelivered=redelivered,
                expiration_ms=_milliseconds(properties.get("expiration")),
                headers=properties.get("headers", {}),
                handle=(self, tag),
            )
        )


async def _never_asked(message: object) -> None:
    """What the library would hand deliveries to, if it saw any."""


def _milliseconds(text: str | None) -> int | None:
    """What the broker took for an expiration is a number; who dead-letters may have left anything there."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None


def _storable(text: str | None) -> str | None:
    """AMQP's texts may hold a NUL, which PostgreSQL cannot store."""
    return text.replace("\0", "?") if text else text
