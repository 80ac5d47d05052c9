"""The broker and the database alone: messages through a queue of its own, commits of a row of its own."""

from __future__ import annotations

import asyncio
import time
import uuid

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from watership.benching.findings import BrokerFindings, DatabaseFindings, percentile
from watership.bus.acks import Acks
from watership.bus.protocol import Bus, Delivery, Fate, Message
from watership.bus.topology import Topology
from watership.chance import new_saga_id
from watership.errors import BrokerUnavailable
from watership.saga.storage.schema import Base, log_table, saga_table, tombstone_table

QUEUE = "bench"
AT_ONCE = 200
ARRIVES_WITHIN_S = 30.0
BODY = b"x" * 500
ALONE = 50


async def measure_broker(bus: Bus, topology: Topology, seconds: float) -> BrokerFindings:
    """One message after the other at first, then many at once, through a quorum queue."""
    queue = topology.step_queue(QUEUE)
    await bus.declare(topology.exchanges(), [queue])
    acks = Acks(bus)
    arrived = 0
    some = asyncio.Event()

    def on_delivery(delivery: Delivery) -> None:
        nonlocal arrived
        arrived += 1
        acks.add((delivery,))
        some.set()

    async def send(count: int) -> None:
        fates = await bus.publish([_message(topology) for _ in range(count)])
        if any(fate is not Fate.CONFIRMED for fate in fates):
            raise BrokerUnavailable(f"the broker did not confirm a message to the queue {queue.name}")

    async def wait_until(count: int) -> None:
        async with asyncio.timeout(ARRIVES_WITHIN_S):
            while arrived < count:
                some.clear()
                await some.wait()

    subscription = await bus.consume(queue.name, prefetch=2 * AT_ONCE, on_delivery=on_delivery)
    alone_s = []
    for sent in range(1, ALONE + 1):
        began_s = time.perf_counter()
        await send(1)
        await wait_until(sent)
        alone_s.append(time.perf_counter() - began_s)
    began_s, before = time.perf_counter(), arrived
    while (passed_s := time.perf_counter() - began_s) < seconds:
        await asyncio.gather(send(AT_ONCE // 2), send(AT_ONCE // 2))
    rate = (arrived - before) / passed_s
    await subscription.cancel()
    return BrokerFindings(rate, percentile(alone_s, 0.5) * 1000, percentile(alone_s, 0.99) * 1000)


def _message(topology: Topology) -> Message:
    return Message(topology.exchange, topology.step_key(QUEUE), BODY, "bench", str(uuid.uuid4()))


async def measure_database(engine: AsyncEngine, namespace: str, seconds: float) -> DatabaseFindings:
    """Inserts a row and commits, one after the other. The rows are those that a pruned saga leaves: nobody acts on them."""
    found_s = []
    ends_s = time.perf_counter() + seconds
    async with engine.connect() as connection:
        while time.perf_counter() < ends_s:
            await connection.execute(tombstone_table.insert(), _tombstone(namespace))
            began_s = time.perf_counter()
            await connection.commit()
            found_s.append(time.perf_counter() - began_s)
    return DatabaseFindings(percentile(found_s, 0.5) * 1000, percentile(found_s, 0.99) * 1000)


def _tombstone(namespace: str) -> dict[str, object]:
    return {
        "saga_id": new_saga_id(),
        "namespace": namespace,
        "driver": "embedded",
        "name": "BenchSaga",
        "input_hash": "",
        "status": "COMPLETED",
        "ended_at_ms": 0,
    }


async def remove_rows(engine: AsyncEngine, namespace: str) -> None:
    """Deletes every row of the namespace, in every table that has one."""
    async with engine.begin() as connection:
        ours = sa.select(saga_table.c.saga_id).where(saga_table.c.namespace == namespace)
        await connection.execute(log_table.delete().where(log_table.c.saga_id.in_(ours)))
        for table in Base.metadata.sorted_tables:
            if "namespace" in table.c:
                await connection.execute(table.delete().where(table.c.namespace == namespace))
