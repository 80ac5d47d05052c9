"""A saga's messages and nothing else, by aio-pika: a start, three commands and three replies, an end; no state, no database.

``--role relay`` sends the next command for each start or reply; ``worker`` replies to commands; ``client`` starts and
counts ends. Quorum queues, persistent messages, confirms; what arrived is acknowledged when what it caused is confirmed.
"""

from __future__ import annotations

import asyncio

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.benchmarks.closed_loop import Ends, arguments, ready

BODY = b'{"order_id":"o-1","padding":"' + b"x" * 220 + b'","reservation_id":null,"payment_id":null}'
PREFETCH = 500


async def publish(channel: AbstractChannel, queue: str, body: bytes, step: int) -> None:
    """Sends, and waits for the confirm."""
    message = aio_pika.Message(
        body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, headers={"step": step}, content_type="application/json"
    )
    await channel.default_exchange.publish(message, routing_key=queue)


def step_of(message: AbstractIncomingMessage) -> int:
    """Which step it is about."""
    step = message.headers["step"]
    assert isinstance(step, int)
    return step


async def serve(channel: AbstractChannel, role: str, prefix: str) -> None:
    """The relay, or the worker."""

    async def on_command(message: AbstractIncomingMessage) -> None:
        await publish(channel, f"{prefix}.replies", message.body, step_of(message))
        await message.ack()

    async def on_start_or_reply(message: AbstractIncomingMessage) -> None:
        step = step_of(message) + 1
        await publish(channel, f"{prefix}.commands" if step <= 3 else f"{prefix}.ends", message.body, step)
        await message.ack()

    handlers = {"worker": [("commands", on_command)]}
    handlers["relay"] = [("replies", on_start_or_reply), ("start", on_start_or_reply)]
    for name, handler in handlers[role]:
        await (await declare(channel, prefix, name)).consume(handler)
    await asyncio.Event().wait()


async def declare(channel: AbstractChannel, prefix: str, name: str) -> aio_pika.abc.AbstractQueue:
    """A quorum queue."""
    return await channel.declare_queue(f"{prefix}.{name}", durable=True, arguments={"x-queue-type": "quorum"})


async def drive(channel: AbstractChannel, prefix: str, at_once: int, seconds: float) -> None:
    """The client: so many on their way, and another start for each end."""
    ends = Ends(seconds)
    room = asyncio.Semaphore(at_once)

    async def on_end(_message: AbstractIncomingMessage) -> None:
        ends.add()
        room.release()

    for name in ("start", "replies", "commands", "ends"):
        queue = await declare(channel, prefix, name)
    await queue.consume(on_end, no_ack=True)
    sending: set[asyncio.Task[None]] = set()

    async def send_one() -> None:
        await room.acquire()
        task = asyncio.create_task(publish(channel, f"{prefix}.start", BODY, 0))
        sending.add(task)
        task.add_done_callback(sending.discard)

    await send_one()
    while room._value < at_once:  # the first has come back: all are up
        await asyncio.sleep(0.01)
    ready()
    ends.begin()
    while not ends.is_over:
        await send_one()
    ends.report()


async def main() -> None:
    """Plays its role."""
    given = arguments("broker-url", "role", "prefix")
    connection = await aio_pika.connect(given.broker_url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        if given.role == "client":
            await drive(channel, given.prefix, given.at_once, given.seconds)
        else:
            await serve(channel, given.role, given.prefix)


asyncio.run(main())
