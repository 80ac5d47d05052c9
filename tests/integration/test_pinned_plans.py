"""Law 7 on real servers: a new version of a saga is deployed while hundreds of the old one are in flight."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from watership.bus.rabbit import RabbitBus
from watership.messages import AdminRequest, AdminVerb, Signal
from watership.saga.compile import compile_saga
from watership_orchestrator import plans, unserved
from watership_worker import Worker
from watership_worker.consumer import Consumer

from tests.support.command import Command, Ran, installed
from tests.support.order_steps import Charge, Reserve, sagas
from tests.support.parcels import FirstSaga, SecondSaga, first_worker, hasty_worker, second_worker
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

FIRST, SECOND = compile_saga(FirstSaga).plan.hash, compile_saga(SecondSaga).plan.hash
IN_FLIGHT = 300
ON_FIRST = ["Reserve", "Weigh", "Pack", "Ship"]
UNDONE_ON_FIRST = ["Reserve", "Weigh", "Pack", "undo Pack", "undo Weigh", "undo Reserve"]
ON_SECOND = ["Pack", "Reserve", "Send"]


@pytest.fixture(autouse=True)
def parcel_queues(step_queues: set[str]) -> None:
    step_queues.update({*ON_FIRST, *ON_SECOND})


@pytest.fixture(autouse=True)
def fresh_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What orchestrators remember of plans and handlers for a second, they ask for each time."""
    monkeypatch.setattr(plans, "NEWEST_FRESH_S", 0.0)
    monkeypatch.setattr(plans, "SERVED_FRESH_S", 0.0)


async def begin(system: Running, worker: Worker) -> Consumer:
    """A worker process that the test stops itself."""
    consumer = Consumer(system.settings, RabbitBus(system.settings.broker()), worker)
    await consumer.start()
    return consumer


async def standing(system: Running, where: str) -> int:
    (row,) = await system.sql(f"SELECT count(*) FROM watership_saga WHERE {where}")
    return int(row[0])


async def until(system: Running, where: str, count: int) -> None:
    async with asyncio.timeout(90):
        while await standing(system, where) < count:
            await asyncio.sleep(0.1)


async def trails(system: Running, plan_hash: str) -> Counter[tuple[str, tuple[str, ...]]]:
    """How many sagas of a plan ended how, having done what in which order."""
    rows = await system.sql("SELECT status, context FROM watership_saga WHERE plan_hash = :hash", hash=plan_hash)
    return Counter((row.status, tuple(json.loads(row.context)["trail"])) for row in rows)


def command(system: Running, directory: Path) -> Command:
    """The command line, as another process, by the broker alone."""
    env = {"WATERSHIP_BROKER_URL": system.settings.broker(), "WATERSHIP_NAMESPACE": system.settings.namespace}
    return Command(directory, env, installed())


async def test_each_saga_ends_on_the_plan_that_it_began_with(system: Running, tmp_path: Path) -> None:
    await system.orchestrator()
    old = await begin(system, first_worker)
    ids = []
    for number in range(IN_FLIGHT):
        fails = "Ship" if number % 10 == 0 else None
        ids.append(await system.start("ParcelSaga", {"order": f"A-{number}", "fail_at": fails}))
    await until(system, "state LIKE '%\"waiting\"%'", IN_FLIGHT)

    new = await begin(system, second_worker)  # beside the old one, as a rolling deployment has it
    await old.drain()
    for number in range(20):
        await system.start("ParcelSaga", {"order": f"B-{number}"})
    for saga_id in ids:
        await system.send("control", Signal(saga_id=saga_id, name="go", signal_id="1", data=True))
    await until(system, "status IN ('COMPLETED', 'COMPENSATED')", IN_FLIGHT + 20)
    assert await trails(system, FIRST) == {
        ("COMPLETED", tuple(ON_FIRST)): IN_FLIGHT - IN_FLIGHT // 10,
        ("COMPENSATED", tuple(UNDONE_ON_FIRST)): IN_FLIGHT // 10,
    }
    assert await trails(system, SECOND) == {("COMPLETED", tuple(ON_SECOND)): 20}

    again = await begin(system, first_worker)
    assert await plan_of_a_start(system) == SECOND, "an old worker that restarts does not take over"
    await used(system, tmp_path, FIRST)
    assert await plan_of_a_start(system) == FIRST
    await used(system, tmp_path, "--newest")
    assert await plan_of_a_start(system) == SECOND
    await again.drain()
    await new.drain()


async def plan_of_a_start(system: Running) -> str:
    saga_id = await system.start("ParcelSaga", {"order": "C"})
    async with asyncio.timeout(20):
        while (row := await system.row(saga_id)) is None:
            await asyncio.sleep(0.02)
    return str(row["plan_hash"])


async def used(system: Running, directory: Path, what: str) -> None:
    """An operator's hand, by the admin queue; it leaves its mark."""
    on_line = command(system, directory)
    ran: Ran = await asyncio.to_thread(on_line.good, "plans", "use", "ParcelSaga", what, "--reason", "we are testing")
    assert "foreign starts of ParcelSaga get plan" in ran.out
    (row,) = await system.sql("SELECT * FROM watership_plan_choice ORDER BY choice_id DESC LIMIT 1")
    assert row.plan_hash == (None if what == "--newest" else what)
    assert row.reason == "we are testing"
    assert "@" in row.actor
    listed: Any = (await asyncio.to_thread(on_line.good, "plans", "list", "--json")).json
    (view,) = [view for view in listed if view["saga"] == "ParcelSaga"]
    assert view["foreign_starts"]["why"] == ("newest" if what == "--newest" else "chosen")
    shown: Any = (await asyncio.to_thread(on_line.good, "plans", "show", FIRST[:8], "--json")).json
    assert shown["saga"] == "ParcelSaga"
    refused = await asyncio.to_thread(on_line.bad, "plans", "use", "NoSaga", FIRST, "--reason", "x")
    assert "is one of saga ParcelSaga" in refused


async def test_a_step_that_nobody_serves_any_more_is_parked_and_goes_on_when_somebody_does(
    system: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_MAX", 3)
    await system.orchestrator()
    reaper = await system.reaper()
    former = await begin(system, Worker(sagas_mapper=sagas))  # its queues stay behind when it goes
    await former.drain()
    await system.worker(Worker(sagas_mapper=sagas, only=[Reserve]))
    saga_id = await system.start("OrderSaga", {"order_id": "1"})
    await system.until(saga_id, step="Charge")
    for look in range(3):
        row = await system.row(saga_id)
        assert row is not None
        assert row["parked_reason"] is None, f"after {look} looks"
        await system.sql(
            "UPDATE watership_saga SET wake_at_ms = 1, state = regexp_replace(state, '[0-9]{13}', '1000000000000', 'g')"
        )
        await reaper.run_once()
    row = await system.until(saga_id, status="RUNNING")
    assert "no worker serves step Charge any more" in row["parked_reason"]
    # First the operator, then the worker: its queue still has the commands from before, and a run of one of those that the
    # saga hears of before it goes on is merged, and followed by another.
    await system.send("admin", AdminRequest(verb=AdminVerb.RETRY, saga_id=saga_id, actor="ann", reason="it is back"))
    await system.until(saga_id, status="RUNNING", parked_reason=None)
    await system.worker(Worker(sagas_mapper=sagas, only=[Charge]))
    row = await system.until(saga_id, status="COMPLETED", parked_reason=None)
    assert json.loads(row["context"])["trail"] == ["Reserve", "Charge"]


async def test_a_version_that_forgot_its_past_is_found_out_and_mended(system: Running, tmp_path: Path) -> None:
    """`compat` on the services' database: before the deployment, while it goes wrong, and once it is mended."""
    await system.orchestrator()
    old = await begin(system, first_worker)
    ids = [await system.start("ParcelSaga", {"order": f"A-{number}"}) for number in range(5)]
    await until(system, "state LIKE '%\"waiting\"%'", len(ids))
    on_database = Command(
        tmp_path,
        {"WATERSHIP_DATABASE_URL": system.settings.database(), "WATERSHIP_NAMESPACE": system.settings.namespace},
        installed(),
    )

    async def compat(worker: str) -> Any:
        ran = await asyncio.to_thread(on_database.run, "plans", "compat", f"tests.support.parcels:{worker}", "--json")
        assert ran.code == (0 if ran.json["compatible"] else 1), ran
        return ran.json

    assert (await compat("first_worker"))["compatible"]
    assert (await compat("second_worker"))["compatible"]
    assert any("is new; foreign starts get it once" in note for note in (await compat("second_worker"))["notes"])
    forgot = await compat("hasty_worker")
    assert [(one["step"], one["sagas"], one["new_starts"]) for one in forgot["findings"]] == [
        ("Weigh", 5, False),
        ("Ship", 5, False),
    ]
    await old.drain()
    hasty = await begin(system, hasty_worker)
    assert (await compat("hasty_worker"))["findings"] == forgot["findings"]
    await used(system, tmp_path, FIRST)
    assert {one["new_starts"] for one in (await compat("hasty_worker"))["findings"]} == {True}
    await hasty.drain()
