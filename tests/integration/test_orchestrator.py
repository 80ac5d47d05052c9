"""Orchestrator, reaper and worker on real servers, in one process: what is lost, refused, doubled or late."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from watership import bootstrap
from watership.bus.protocol import Delivery
from watership.client import wire_for
from watership.errors import OperationRefused, SagaConflict, SagaNotFound
from watership.machine.changes import change_from_data
from watership.machine.state import Action
from watership.messages import AdminVerb, ReplyOutcome, StartSaga, StepCommand, StepReply, read
from watership_worker import Worker

from tests.support.order_steps import Charge, Declined, OrderContext, Reserve, sagas
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]


async def make_due(system: Running) -> None:
    """Lets the deadlines pass: moves them to now, in the row and in the state, as time would have."""
    await system.sql(
        "UPDATE watership_saga SET wake_at_ms = 1, state = regexp_replace(state, '[0-9]{13}', '1000000000000', 'g')"
    )


async def test_a_lost_command_is_sent_again_by_the_reaper(system: Running) -> None:
    await system.orchestrator()
    only_reserve = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    lost: asyncio.Queue[Delivery] = asyncio.Queue()
    topology = only_reserve._topology
    await system.bus.declare([], [topology.step_queue("Charge")])
    thief = await system.bus.consume(topology.queue_name("step.Charge"), prefetch=1, on_delivery=lost.put_nowait)
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    stolen = await asyncio.wait_for(lost.get(), 10)
    await system.bus.ack([stolen])
    await thief.cancel()
    await system.worker(Worker(sagas_mapper=sagas, only=[Charge]))
    reaper = await system.reaper()
    assert await reaper.run_once() == 0, "not yet due: it may still run"
    await make_due(system)
    assert await reaper.run_once() == 1
    row = await system.until(saga_id, status="COMPLETED", owed=False)
    assert json.loads(row["context"])["trail"] == ["Reserve", "Charge"]


async def test_a_command_for_a_step_that_nobody_serves_is_owed_with_the_reason(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    saga_id = await system.start("OrderSaga", {"order_id": "1", "fail_at": "Charge"})
    row = await system.until(saga_id, step="Charge", owed=True)
    assert "no worker has ever served its step" in row["owed_reason"]
    await system.worker(Worker(sagas_mapper=sagas, only=[Charge]))
    reaper = await system.reaper()
    await system.sql("UPDATE watership_saga SET wake_at_ms = 1")
    assert await reaper.run_once() == 1
    row = await system.until(saga_id, status="COMPENSATED", owed=False)
    # It was certainly never delivered, so its failure is a failure: only what acted is undone.
    assert json.loads(row["context"])["trail"] == ["Reserve", "undo Reserve"]


async def test_a_retry_waits_in_the_log_and_the_reaper_sends_it(system: Running) -> None:
    Reserve.mended = False
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    reaper = await system.reaper()
    saga_id = await system.start("OrderSaga", {"order_id": "stuck", "fail_at": "Charge"})
    await system.until(saga_id, status="COMPENSATING", step="Reserve")
    for _ in range(100):  # bounded: the second attempt is due after 10 ms, and parks it
        await reaper.run_once()
        row = await system.row(saga_id)
        if row is not None and row["parked_reason"]:
            break
    row = await system.until(saga_id, status="COMPENSATING", wake_at_ms=None)
    assert "the compensation of step Reserve is out of retries after 2 attempts" in row["parked_reason"]
    Reserve.mended = True
    wire = wire_for(system.settings.broker(), system.settings.namespace)
    try:
        with pytest.raises(OperationRefused, match="has moved"):
            await wire.ask(AdminVerb.RETRY, saga_id=saga_id, actor="ada", reason="too early", seq=1)
        await wire.ask(AdminVerb.RETRY, saga_id=saga_id, actor="ada", reason="reopened", seq=row["seq"])
        await system.until(saga_id, status="COMPENSATED", parked_reason=None)
        shown = await wire.ask(AdminVerb.SHOW, saga_id=saga_id)
        marks = [change for entry in shown["log"] for change in entry["changes"] if change["k"] == "operated"]
        assert marks == [{"k": "operated", "actor": "ada", "verb": "retry", "reason": "reopened"}]
        with pytest.raises(SagaNotFound):
            await wire.ask(AdminVerb.SHOW, saga_id=uuid.uuid4())
    finally:
        await wire.close()


async def test_an_operator_turns_a_waiting_saga_around(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(saga_id, step="Charge", owed=True)
    wire = wire_for(system.settings.broker(), system.settings.namespace)
    await wire.ask(AdminVerb.COMPENSATE, saga_id=saga_id, actor="ada", reason="customer called")
    reaper = await system.reaper()
    await make_due(system)
    await reaper.run_once()
    row = await system.until(saga_id, status="COMPENSATED")
    listed = await wire.ask(AdminVerb.LIST, limit=10)
    await wire.close()
    assert json.loads(row["context"])["trail"] == ["Reserve", "undo Reserve"]
    assert [(line["saga_id"], line["status"]) for line in listed] == [(str(saga_id), "COMPENSATED")]
    assert {"name", "step", "parked_reason", "created_at", "updated_at"} <= set(listed[0])


async def rejections(system: Running) -> tuple[str, asyncio.Queue[Any]]:
    """A reply queue, and what arrives there."""
    name = f"{system.settings.namespace}.client.{uuid.uuid4().hex}"
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    await system.bus.declare_reply_queue(name)
    await system.bus.consume(
        name, prefetch=100, on_delivery=lambda delivery: arrived.put_nowait(read(delivery.type, delivery.body))
    )
    return name, arrived


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{not json", "is not JSON"),
        (b'{"v":1,"saga":"OrderSaga","context":{}}', "saga_id"),
        (b'{"v":1,"saga":"OrderSaga","saga_id":"%s","context":{"order_id":7}}', "order_id"),
        (b'{"v":1,"saga":"OrderSaga","saga_id":"%s","context":{"order_id":"a\\u0000b"}}', "NUL"),
        (b'{"v":1,"saga":"OrderSaga","saga_id":"%s","context":{"order_id":"1","n":99999999999999999999}}', "64 bits"),
        (b'{"v":1,"saga":"OrderSaga","saga_id":"%s","context":{"order_id":"1","n":NaN}}', "is not JSON"),
        (
            b'{"v":1,"saga":"OrderSaga","saga_id":"%s","context":{"order_id":"' + b"x" * 300_000 + b'"}}',
            "the limit is 262144",
        ),
    ],
    ids=["malformed", "no-id", "schema", "nul", "integer", "nan", "size"],
)
async def test_a_bad_start_makes_no_saga_and_says_why(system: Running, body: bytes, complaint: str) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    known = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(known, status="COMPLETED")  # the plan is known, so its schema is
    reply_to, arrived = await rejections(system)
    await system.send_raw("start", body.replace(b"%s", str(uuid.uuid4()).encode()), "start-saga", reply_to=reply_to)
    answer = await asyncio.wait_for(arrived.get(), 10)
    assert answer.kind == "saga-rejected"
    assert complaint in answer.reason
    assert (await system.sql("SELECT count(*) FROM watership_saga"))[0][0] == 1
    assert await system.dead_letter("start-saga") == "rejected"


async def test_the_same_id_with_other_input_is_refused(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    mediator = bootstrap(sagas_mapper=sagas, broker_url=system.settings.broker(), namespace=system.settings.namespace)
    async with mediator:
        first = await mediator.run(OrderContext("1"))
        again = await mediator.run(OrderContext("1"), first.saga_id)
        assert (again.status, again.context) == (first.status, first.context)
        with pytest.raises(SagaConflict, match="other input"):
            await mediator.run(OrderContext("2"), first.saga_id)


async def test_stream_raises_the_steps_own_error_and_shows_each_change(system: Running) -> None:
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    mediator = bootstrap(sagas_mapper=sagas, broker_url=system.settings.broker(), namespace=system.settings.namespace)
    async with mediator:
        context, seen = OrderContext("1", fail_at="Charge"), []
        with pytest.raises(Declined, match="declined at Charge"):
            async for result in mediator.stream(context):
                seen += [(result.step_type, list(context.trail))]
        assert seen == [(Reserve, ["Reserve"])]


async def test_a_late_act_is_undone_again_though_the_saga_was_compensated(system: Running) -> None:
    """Law 6: a second run of an act reports after its saga was undone. Nobody awaited it; it must not stand."""
    await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    saga_id = await system.start("OrderSaga", {"order_id": "1", "fail_at": "Charge"})
    await system.until(saga_id, status="COMPENSATED")
    late = StepReply(
        saga_id=saga_id,
        step="Reserve",
        action=Action.ACT,
        attempt=1,
        run="another-run",
        outcome=ReplyOutcome.DONE,
    )
    await system.send("replies", late)
    undone_twice = ["Reserve", "undo Reserve", "undo Reserve"]
    context = json.dumps({"order_id": "1", "fail_at": "Charge", "trail": undone_twice}, separators=(",", ":"))
    await system.until(saga_id, status="COMPENSATED", context=context)
    await system.send("replies", late)  # and a duplicate of the late one changes nothing more
    marker = await system.start("OrderSaga", {"order_id": "2"})
    await system.until(marker, status="COMPLETED")  # its replies went through the same queue, behind the duplicate
    reasons = await system.sql("SELECT reason FROM watership_ledger")
    assert [row[0] for row in reasons] == ["act Reserve attempt 1 was not awaited: merged, and undone"]
    entries = await system.sql("SELECT changes FROM watership_log WHERE saga_id = :id ORDER BY seq", id=saga_id)
    kinds = [change_from_data(data).kind for entry in entries for data in json.loads(entry[0])]
    assert kinds.count("compensation_began") == 2
    assert kinds.count("compensated") == 2


async def test_two_orchestrators_given_the_same_starts_make_each_saga_once(system: Running) -> None:
    for _ in range(2):
        await system.orchestrator()
    await system.worker(Worker(sagas_mapper=sagas))
    ids = [uuid.uuid4() for _ in range(50)]
    start = [StartSaga(saga="OrderSaga", saga_id=saga_id, context={"order_id": "1"}) for saga_id in ids]
    await asyncio.gather(*(system.send("start", message) for message in start * 3))
    for saga_id in ids:
        row = await system.until(saga_id, status="COMPLETED")
        assert json.loads(row["context"])["trail"] == ["Reserve", "Charge"]


async def test_a_command_on_the_wire_has_all_that_a_worker_of_another_language_needs(system: Running) -> None:
    await system.orchestrator()
    worker = await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    await system.bus.declare([], [worker._topology.step_queue("Charge")])
    await system.bus.consume(worker._topology.queue_name("step.Charge"), prefetch=1, on_delivery=arrived.put_nowait)
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    delivery = await asyncio.wait_for(arrived.get(), 10)
    command = read(delivery.type, delivery.body)
    assert isinstance(command, StepCommand)
    assert (command.saga_id, command.step, command.action, command.attempt) == (saga_id, "Charge", Action.ACT, 1)
    assert command.idempotency_key == f"{saga_id}:Charge:act:1"
    assert command.context == {"order_id": "1", "trail": ["Reserve"]}
    assert delivery.correlation_id == str(saga_id)
    # A reply by hand, as any language would make it.
    body = {"v": 1, "saga_id": str(saga_id), "step": "Charge", "action": "act", "attempt": 1, "run": "r1"}
    body |= {"outcome": "done", "patch": {"trail": ["Reserve", "by hand"]}}
    await system.send_raw("replies", json.dumps(body).encode(), "step-reply")
    row = await system.until(saga_id, status="COMPLETED")
    assert json.loads(row["context"])["trail"] == ["Reserve", "by hand"]
