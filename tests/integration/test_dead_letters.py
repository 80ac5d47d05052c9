"""What the broker gave up on, and what was refused: kept, judged where that says something, and in an operator's hand."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest

from watership.bus.protocol import Delivery, Message
from watership.bus.topology import Topology
from watership.client import wire_for
from watership.errors import OperationRefused, WatershipError
from watership.machine.changes import change_from_data
from watership.messages import AdminVerb, StartSaga
from watership.wire import Wire
from watership_worker import Worker

from tests.support.order_steps import Reserve, sagas
from tests.support.running import WITHIN_S, Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(90)]


@pytest.fixture
async def operator(system: Running) -> AsyncIterator[Wire]:
    wire = wire_for(system.settings.broker(), system.settings.namespace)
    yield wire
    await wire.close()


async def letters(system: Running, count: int = 1, *, but: str = "expired") -> list[dict[str, Any]]:
    """The rows, once there are so many. Commands to a step that nobody serves expire in these tests: left out."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            rows = await system.sql("SELECT * FROM watership_dead_letter WHERE reason <> :but ORDER BY id", but=but)
            if len(rows) >= count:
                return [dict(row._mapping) for row in rows]
            await asyncio.sleep(0.02)


async def depth_of_dead(system: Running) -> int:
    connection = await aiormq.connect(system.settings.broker())
    try:
        channel = await connection.channel()
        declared = await channel.queue_declare(f"{system.settings.namespace}.dead", passive=True)
        return int(declared.message_count or 0)
    finally:
        await connection.close()


async def die_of_too_many_deliveries(system: Running, message: Message) -> None:
    """Lets a real broker give a message up: a queue with a limit, and a consumer that never acknowledges."""
    limited = f"{system.settings.namespace}.step.small"
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1,
        "x-dead-letter-exchange": f"{system.settings.namespace}.dead",
    }
    connection = await aiormq.connect(system.settings.broker())
    try:
        channel = await connection.channel()
        await channel.queue_declare(limited, durable=True, arguments=arguments)
        properties = aiormq.spec.Basic.Properties(
            message_type=message.type,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            delivery_mode=2,
            headers={"traceparent": "00-abc", "odd": bytearray(b"\xff\x00")},
        )
        await channel.basic_publish(message.body, routing_key=limited, properties=properties)
        refused = asyncio.Semaphore(0)

        async def refuse(delivered: aiormq.abc.DeliveredMessage) -> None:
            assert delivered.delivery_tag is not None
            await channel.basic_reject(delivered.delivery_tag, requeue=True)
            refused.release()

        await channel.basic_consume(limited, refuse)
        async with asyncio.timeout(WITHIN_S):
            for _ in range(2):
                await refused.acquire()
    finally:
        await connection.close()


async def stolen_command(system: Running, step: str) -> Delivery:
    """Takes a step's command out of its queue, as a worker that dies over it does."""
    topology = Topology(system.settings.namespace)
    await system.bus.declare([], [topology.step_queue(step)])
    stolen: asyncio.Queue[Delivery] = asyncio.Queue()
    thief = await system.bus.consume(topology.queue_name(f"step.{step}"), prefetch=1, on_delivery=stolen.put_nowait)
    delivery = await asyncio.wait_for(stolen.get(), WITHIN_S)
    await thief.cancel()
    await system.bus.ack([delivery])
    return delivery


def as_message(delivery: Delivery) -> Message:
    assert delivery.type is not None
    assert delivery.message_id is not None
    return Message("", "", delivery.body, delivery.type, delivery.message_id, delivery.correlation_id)


async def entries(system: Running, saga_id: uuid.UUID) -> list[tuple[str, Any]]:
    rows = await system.sql("SELECT cause, changes FROM watership_log WHERE saga_id = :id ORDER BY seq", id=saga_id)
    return [(row[0], change_from_data(data)) for row in rows for data in json.loads(row[1])]


@pytest.fixture(autouse=True)
def limited_queue(step_queues: set[str]) -> None:
    step_queues.add("small")


async def test_a_command_that_killed_its_workers_is_unknown_and_undone(system: Running) -> None:
    await system.orchestrator()
    first = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [first._topology.step_queue("Charge")])
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await die_of_too_many_deliveries(system, as_message(await stolen_command(system, "Charge")))
    (letter,) = await letters(system)
    assert (letter["reason"], letter["kind"], letter["saga_id"]) == ("delivery_limit", "step-command", saga_id)
    assert letter["queue"].endswith(".step.small")
    headers = json.loads(letter["headers"])
    assert headers["x-death"][0]["reason"] == "delivery_limit"
    assert headers["traceparent"] == "00-abc"
    await system.worker(Worker(sagas_mapper=sagas))
    reaper = await system.reaper()
    await reaper.run_once()
    row = await system.until(saga_id, status="COMPENSATED")
    assert json.loads(row["context"])["trail"] == ["Reserve", "undo Charge", "undo Reserve"], "in doubt means undone"
    replied = [change for _, change in await entries(system, saga_id) if change.kind == "replied"]
    assert [(change.step, change.outcome, change.failure.code) for change in replied if change.failure] == [
        ("Charge", "unknown", "worker_killed")
    ]
    (letter,) = await letters(system)
    assert letter["judged"].startswith("applied: entry ")
    assert letter["judge_at_ms"] is None
    before = (await system.row(saga_id) or {})["seq"]
    await system.sql(
        "UPDATE watership_dead_letter SET judge_at_ms = 1"
    )  # a crash after the judgement, or a second copy
    await reaper.run_once()
    (letter,) = await letters(system)
    assert letter["judged"] == "it changes nothing: the saga has it already"
    assert (await system.row(saga_id) or {})["seq"] == before


async def test_a_start_and_a_reply_that_the_broker_gave_up_on_are_not_lost(system: Running) -> None:
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    saga_id = uuid.uuid4()
    start = StartSaga(saga="OrderSaga", saga_id=saga_id, context={"order_id": "1"})
    await die_of_too_many_deliveries(system, Message("", "", start.to_body(), start.kind, "a start"))
    await letters(system)
    reaper = await system.reaper()
    await reaper.run_once()
    await system.until(saga_id, status="RUNNING", step="Charge", owed=False)
    body = {
        "v": 1,
        "saga_id": str(saga_id),
        "step": "Charge",
        "action": "act",
        "attempt": 1,
        "run": "r",
        "outcome": "done",
    }
    await die_of_too_many_deliveries(system, Message("", "", json.dumps(body).encode(), "step-reply", "a reply"))
    await letters(system, 2)
    await reaper.run_once()
    await system.until(saga_id, status="COMPLETED", owed=False)
    assert [letter["judged"].split(":")[0] for letter in await letters(system, 2)] == ["applied", "applied"]
    causes = [cause for cause, _ in await entries(system, saga_id)]
    assert (causes[0], causes[-1]) == ("start", "reply:Charge:act:1:r")


async def test_a_reply_that_is_too_large_ends_its_attempt_and_is_not_waited_for_again(system: Running) -> None:
    """The worker of another language, say, that knows no limit: each further attempt would end the same."""
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await stolen_command(system, "Charge")
    body = {"v": 1, "saga_id": str(saga_id), "step": "Charge", "action": "act", "attempt": 1, "run": "r1"}
    reply = json.dumps({**body, "outcome": "done", "response": "x" * 1_100_000})
    await system.send_raw("replies", reply.encode(), "step-reply")
    (letter,) = await letters(system)
    assert (letter["reason"], len(letter["body"])) == ("rejected", 1_048_576)
    await system.worker(Worker(sagas_mapper=sagas))
    await (await system.reaper()).run_once()
    row = await system.until(saga_id, status="COMPENSATED")
    assert json.loads(row["context"])["trail"] == ["Reserve", "undo Charge", "undo Reserve"], "in doubt means undone"
    replied = [change for _, change in await entries(system, saga_id) if change.kind == "replied" and change.failure]
    (charged,) = replied
    assert (charged.step, charged.attempt, charged.run, charged.outcome) == ("Charge", 1, "r1", "unknown")
    assert "its size in bytes is 1100" in charged.failure.message
    (letter,) = await letters(system)
    assert letter["judged"].startswith("applied: entry ")


async def test_an_expired_command_is_kept_and_its_saga_goes_on(system: Running) -> None:
    """`queue_within_s` of the step is 0.1 s, and nobody serves it."""
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    (letter,) = await letters(system, but="rejected")
    assert (letter["reason"], letter["kind"]) == ("expired", "step-command")
    reaper = await system.reaper()
    await reaper.run_once()
    (letter, *_) = await letters(system, but="rejected")
    assert "it changes nothing" in letter["judged"], "waiting in a queue is no outcome"
    await system.worker(Worker(sagas_mapper=sagas))
    await system.sql(
        "UPDATE watership_saga SET wake_at_ms = 1, state = regexp_replace(state, '[0-9]{13}', '1000000000000', 'g')"
    )
    await reaper.run_once()
    await system.until(saga_id, status="COMPLETED")


async def test_what_we_refused_waits_for_a_person_and_goes_round_in_no_circle(system: Running, operator: Wire) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    known = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(known, status="COMPLETED")
    bad = uuid.uuid4()
    await system.send("start", StartSaga(saga="OrderSaga", saga_id=bad, context={"order_id": 7}))
    await letters(system)
    await (await system.reaper()).run_once()
    (letter,) = await operator.ask(AdminVerb.DEAD_LIST)
    assert (letter["reason"], letter["saga_id"], letter["waits_for"]) == ("rejected", str(bad), "person")
    shown = await operator.ask(AdminVerb.DEAD_REQUEUE, letter_id=letter["id"], actor="ada", reason="is it better now?")
    assert shown["judged"].startswith("refused: the context of saga OrderSaga")
    assert (shown["actor"], shown["actor_reason"]) == ("ada", "is it better now?")
    assert json.loads(shown["body"])["context"] == {"order_id": 7}
    assert len(await letters(system)) == 1
    assert await depth_of_dead(system) == 0
    await operator.ask(AdminVerb.DEAD_DISCARD, letter_id=letter["id"], actor="bob", reason="a test of theirs")
    assert await operator.ask(AdminVerb.DEAD_LIST) == []
    (told,) = await operator.ask(AdminVerb.DEAD_LIST, everything=True)
    assert (told["judged"], told["actor"]) == ("discarded", "bob")
    assert await system.row(bad) is None
    with pytest.raises(OperationRefused, match="no dead letter 4711"):
        await operator.ask(AdminVerb.DEAD_REQUEUE, letter_id=4711, actor="ada", reason="x")
    with pytest.raises(WatershipError, match="needs a letter_id"):
        await operator.ask(AdminVerb.DEAD_SHOW)


async def test_a_requeue_is_an_event_for_the_machine_with_the_operators_mark(system: Running, operator: Wire) -> None:
    """A saga's row was broken when its reply came. The row is mended, and the reply judged again: not sent again."""
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    row = await system.until(saga_id, step="Charge")
    await system.sql("UPDATE watership_saga SET state = '{}' WHERE saga_id = :id", id=saga_id)
    body = {"v": 1, "saga_id": str(saga_id), "step": "Charge", "action": "act", "attempt": 1, "run": "r1"}
    await system.send_raw("replies", json.dumps({**body, "outcome": "done"}).encode(), "step-reply")
    (letter,) = await letters(system)
    waiting = await operator.ask(AdminVerb.DEAD_REQUEUE, letter_id=letter["id"], actor="ada", reason="too early")
    assert waiting["waits_for"] == "machine"  # it is still broken: backed off, and not lost
    with pytest.raises(OperationRefused):
        await operator.ask(AdminVerb.DEAD_DISCARD, letter_id=letter["id"], actor="ada", reason="no")
    await system.sql("UPDATE watership_saga SET state = :state WHERE saga_id = :id", state=row["state"], id=saga_id)
    await system.sql("UPDATE watership_dead_letter SET judge_at_ms = 1 WHERE id = :id", id=letter["id"])
    await (await system.reaper()).run_once()
    await system.until(saga_id, status="COMPLETED")
    told = await entries(system, saga_id)
    cause = f"dead:{letter['id']}"
    kinds = [change.kind for found, change in told if found == cause]
    assert kinds[0] == "replied"
    assert [(change.actor, change.verb, change.reason) for found, change in told if change.kind == "operated"] == [
        ("ada", "requeue", "too early")
    ]
    shown = await operator.ask(AdminVerb.DEAD_SHOW, letter_id=letter["id"])
    assert shown["judged"].startswith("applied: entry ")
