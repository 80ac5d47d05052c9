"""Many starts and many replies in one message, on real servers: each part is judged as if it had come alone."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from watership.bus.gathering import opened
from watership.bus.protocol import Delivery
from watership.bus.topology import Queue
from watership.messages import SagaRejected, read
from watership_worker import Worker

from tests.support.order_steps import sagas
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def copies_queue(step_queues: set[str]) -> None:
    step_queues.add("copies")


def start(saga_id: uuid.UUID, context: object) -> bytes:
    return json.dumps({"v": 1, "saga": "OrderSaga", "saga_id": str(saga_id), "context": context}).encode()


async def test_a_bad_start_among_good_ones_dies_alone_with_the_reason_to_its_sender(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    answers: asyncio.Queue[Delivery] = asyncio.Queue()
    answers_queue = f"{system.settings.namespace}.answers"
    await system.bus.declare_reply_queue(answers_queue)
    await system.bus.consume(answers_queue, prefetch=0, on_delivery=answers.put_nowait)
    good = [uuid.uuid4() for _ in range(20)]
    misfit = uuid.uuid4()
    lines = [*(start(saga_id, {"order_id": "1"}) for saga_id in good), start(misfit, {"order_id": 7}), b"{", b""]
    await system.send_raw("start", b"\n".join(lines), "start-saga-lines", reply_to=answers_queue)
    for saga_id in good:
        await system.until(saga_id, status="COMPLETED")
    async with asyncio.timeout(10):
        while len(await system.sql("SELECT 1 FROM watership_dead_letter")) < 3:
            await asyncio.sleep(0.02)
    rows = await system.sql("SELECT kind, reason, saga_id FROM watership_dead_letter ORDER BY saga_id NULLS LAST")
    assert [(row.kind, row.reason) for row in rows] == [("start-saga", "rejected")] * 3
    assert str(rows[0].saga_id) == str(misfit)
    async with asyncio.timeout(10):
        while True:
            delivery = await answers.get()
            told = read(delivery.type, delivery.body)
            if isinstance(told, SagaRejected) and told.saga_id == misfit:
                break
    assert "does not fit its schema" in told.reason
    assert await system.row(misfit) is None


async def test_under_load_replies_come_together(system: Running) -> None:
    """Guards what a saga costs the broker: not a message for each reply."""
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    replies: list[Delivery] = []
    copies = Queue(f"{system.settings.namespace}.step.copies", system.settings.namespace, "replies", None)
    await system.bus.declare([], [copies])
    await system.bus.consume(copies.name, prefetch=0, on_delivery=replies.append)
    ids = [uuid.uuid4() for _ in range(100)]
    lines = b"\n".join(start(saga_id, {"order_id": "1"}) for saga_id in ids)
    await system.send_raw("start", lines, "start-saga-lines")
    for saga_id in ids:
        row = await system.until(saga_id, status="COMPLETED")
        assert json.loads(row["context"])["trail"] == ["Reserve", "Charge"]
    async with asyncio.timeout(10):
        while len(parts := [part for reply in replies for part in opened(reply)]) < 200:  # two steps each
            await asyncio.sleep(0.02)
    assert len(replies) <= 100, f"{len(parts)} replies in {len(replies)} messages"
