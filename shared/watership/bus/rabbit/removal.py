"""Deletes the queues and exchanges of a namespace that was made for a moment. No service ever does."""

from __future__ import annotations

from collections.abc import Iterable

import aio_pika

from watership.bus.rabbit.link import Address, bounded
from watership.bus.topology import Topology

TIMEOUT_S = 10.0


async def remove(url: str, topology: Topology, step_queues: Iterable[str]) -> None:
    """Those of the orchestrator, these of steps, and the exchanges. What is not there is passed over."""
    connection = await aio_pika.connect(Address(url, heartbeat_s=10).url)
    async with connection:
        channel = await connection.channel()
        queues = [*topology.orchestrator_queues(), *map(topology.step_queue, step_queues)]
        for name in [queue.name for queue in queues]:
            await bounded(channel.queue_delete(name), TIMEOUT_S, f"deleting queue {name}")
        for exchange in topology.exchanges():
            await bounded(channel.exchange_delete(exchange.name), TIMEOUT_S, f"deleting exchange {exchange.name}")
