"""AMQP's own fields are whatever bytes a sender wrote: none of them costs a link, and a message that has them is judged."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from watership.bus.protocol import Message
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Topology
from watership.machine.state import Action
from watership.messages import AdminRequest, AdminVerb, StartSaga, StepCommand
from watership_worker import Worker

from tests.support.buses import Inbox
from tests.support.order_steps import sagas
from tests.support.raw_messages import nested, publish_raw, short, stamp, table
from tests.support.running import WITHIN_S, Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]

BAD = b"\xff\xfeid"
WEIRD: dict[str, dict[str, bytes]] = {
    "type": {"type": short(BAD)},
    "message_id": {"message_id": short(BAD)},
    "correlation_id": {"correlation_id": short(BAD)},
    "reply_to": {"reply_to": short(BAD)},
    "header name": {"headers": table((BAD, b"t\x01"))},
    "name in a header's table": {"headers": table((b"h", b"F" + table((BAD, b"t\x01"))))},
    "tables without end": {"headers": nested(3_000)},
    "year 50 000 000": {"timestamp": stamp(1_700_000_000_000_000)},
    "no year at all": {"timestamp": stamp(2**63 - 1)},
    "over 63 bits": {"timestamp": stamp(2**64 - 1)},
    "time in a header": {"headers": table((b"at", b"T" + stamp(2**63 - 1)))},
}


@pytest.fixture
async def bus(broker_url: str, namespace: str, step_queues: set[str]) -> AsyncIterator[RabbitBus]:
    step_queues.add("pay")
    topology = Topology(namespace)
    made = RabbitBus(broker_url)
    await made.open()
    await made.declare(topology.exchanges(), [*topology.orchestrator_queues(), topology.step_queue("pay")])
    yield made
    await made.close()


@pytest.mark.parametrize("weird", WEIRD.values(), ids=WEIRD)
async def test_a_field_of_any_bytes_costs_no_link(
    bus: RabbitBus, broker_url: str, namespace: str, weird: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    await bus.consume(f"{namespace}.step.pay", prefetch=10, on_delivery=inbox)
    await publish_raw(broker_url, namespace, b"step.pay", **weird)
    await bus.publish([Message(namespace, "step.pay", b"{}", "test", "after")])
    found, after = await inbox.take(2)
    assert (found.body, found.redelivered, after.message_id) == (b"{}", False, "after")
    for text in (found.type, found.message_id, found.correlation_id, found.reply_to):
        assert text in (None, "??id"), "as long in bytes as it came: it can be sent back"
    assert "link to RabbitMQ" not in caplog.text


async def test_a_routing_key_of_any_bytes_costs_no_link(
    bus: RabbitBus, broker_url: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes in another frame than the properties do; a fanout exchange takes any."""
    inbox = Inbox()
    await bus.consume(f"{namespace}.dead", prefetch=10, on_delivery=inbox)
    await publish_raw(broker_url, f"{namespace}.dead", BAD, message_id=short(b"bad"))
    await bus.publish([Message(f"{namespace}.dead", "", b"{}", "test", "after")])
    assert [found.message_id for found in await inbox.take(2)] == ["bad", "after"]
    assert "link to RabbitMQ" not in caplog.text


@pytest.mark.parametrize("text", [BAD, b"\x00id"], ids=["no UTF-8", "NUL"])
async def test_sagas_go_on_whatever_bytes_are_sent_to_every_queue(
    system: Running, broker_url: str, namespace: str, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    weird = {"message_id": short(text), "correlation_id": short(text), "timestamp": stamp(2**63 - 1)}
    weird["headers"] = table((text, b"t\x01"), (b"traceparent", b"S" + struct.pack(">I", len(text)) + text))
    weird["reply_to"] = short(text)
    for key in ("start", "control", "replies", "admin", "step.Reserve", "step.Charge"):
        await publish_raw(broker_url, namespace, key.encode(), type=short(text), **weird)
    await publish_raw(broker_url, f"{namespace}.dead", text, type=short(text), **weird)
    odd = uuid.uuid4()
    start = StartSaga(saga="OrderSaga", saga_id=odd, context={"order_id": "1"})
    await publish_raw(broker_url, namespace, b"start", start.to_body(), type=short(b"start-saga"), **weird)
    show = AdminRequest(verb=AdminVerb.RETRY, saga_id=odd, actor="ada", reason="x", seq=1)
    await publish_raw(broker_url, namespace, b"admin", show.to_body(), type=short(b"admin-request"), **weird)
    await system.until(odd, status="COMPLETED", owed=False)
    even = await system.start("OrderSaga", {"order_id": "2"})
    await system.until(even, status="COMPLETED", owed=False)
    rows: list[Any] = []
    async with asyncio.timeout(WITHIN_S):
        while len(rows) < 6:  # an operator's request that cannot be read is answered, and not kept
            rows = await system.sql("SELECT kind, message_id, headers FROM watership_dead_letter")
            await asyncio.sleep(0.02)
    printable = text.decode(errors="replace").replace("\ufffd", "?").replace("\0", "?")
    assert {(row.kind, row.message_id) for row in rows} == {(printable, printable)}
    assert all(any(name.endswith("id") for name in json.loads(row.headers)) for row in rows)
    assert "link to RabbitMQ" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_command_whose_reply_would_have_too_long_an_id_is_answered(system: Running) -> None:
    """Anybody may send one: as long as its reply cannot be sent, it holds a place in the worker's queue."""
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    command = StepCommand(
        saga="OrderSaga",
        saga_id=uuid.uuid4(),
        step="Ш" * 200,
        action=Action.ACT,
        attempt=1,
        generation=1,
        idempotency_key="k",
        timeout_ms=1,
        context={},
    )
    await system.send("step.Reserve", command)
    told: list[Any] = []
    async with asyncio.timeout(WITHIN_S):
        while not told:
            told = await system.sql("SELECT reason, message FROM watership_ledger")
            await asyncio.sleep(0.02)
    assert told[0].reason == "there is no such saga"
    assert json.loads(told[0].message)["outcome"] == "not_served"
