"""The reaper on real servers: many looks side by side, and trouble that stays where it is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from watership.bus.gathering import opened
from watership.bus.protocol import Delivery
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Topology
from watership.messages import HandlerOnWire, RegisterWorker, StartSaga, StepCommand, read
from watership.saga.compile import compile_saga
from watership.saga.storage.protocol import LogEntry
from watership_orchestrator.backing import PostgresBacking
from watership_orchestrator.database import open_database
from watership_orchestrator.outbox import messages_of
from watership_orchestrator.plans import PlanBook
from watership_orchestrator.reaper import Reaper
from watership_orchestrator.records import ChangedRow
from watership_orchestrator.store import Batch

from tests.support.order_steps import OrderSaga
from tests.support.running import WITHIN_S, Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(60)]


@pytest.fixture
async def commands(system: Running) -> asyncio.Queue[Delivery]:
    """What arrives for the first step; nobody replies."""
    topology = Topology(system.settings.namespace)
    await system.bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), topology.step_queue("Reserve")])
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    def take(delivery: Delivery) -> None:
        for part in opened(delivery):
            arrived.put_nowait(part)
        acks.append(asyncio.ensure_future(system.bus.ack([delivery])))

    acks: list[asyncio.Future[None]] = []
    await system.bus.consume(topology.queue_name("step.Reserve"), prefetch=500, on_delivery=take)
    plan = compile_saga(OrderSaga).plan
    await PlanBook(system.database, system.settings.namespace).register(
        RegisterWorker(
            worker="w",
            plans=(plan.to_data(),),
            handlers=(HandlerOnWire(step="Reserve", queue="Reserve", source="test:Reserve"),),
        )
    )
    return arrived


async def small_reaper(system: Running, batch_max: int = 7) -> Reaper:
    settings = system.settings.model_copy(update={"reap_batch_max": batch_max})
    backing = PostgresBacking(open_database(settings.database()), settings.namespace)
    reaper = Reaper(settings, RabbitBus(settings.broker()), backing)
    await reaper.start()
    system.stack.push_async_callback(reaper.drain)
    return reaper


async def started(system: Running, commands: asyncio.Queue[Delivery], count: int) -> list[uuid.UUID]:
    """So many sagas, whose first command was sent, and whose deadline has passed since."""
    orchestrator = await system.orchestrator()
    ids = [uuid.uuid4() for _ in range(count)]
    starts = [StartSaga(saga="OrderSaga", saga_id=saga_id, context={"order_id": "1"}) for saga_id in ids]
    await asyncio.gather(*(system.send("start", start) for start in starts))
    assert set(await taken(commands, count)) == set(ids)
    await orchestrator._bus.ready()
    await system.sql(
        "UPDATE watership_saga SET due_at_ms = 1000, wake_at_ms = 1, "
        "state = regexp_replace(state, '[0-9]{13}', '1000000000000', 'g')"
    )
    return ids


async def taken(commands: asyncio.Queue[Delivery], count: int) -> list[uuid.UUID]:
    found: list[uuid.UUID] = []
    async with asyncio.timeout(WITHIN_S):
        while len(found) < count:
            delivery = await commands.get()
            command = read(delivery.type, delivery.body)
            assert isinstance(command, StepCommand)
            found.append(command.saga_id)
    return found


async def test_looks_side_by_side_send_each_command_once(system: Running, commands: asyncio.Queue[Delivery]) -> None:
    ids = await started(system, commands, 60)
    one, other = await small_reaper(system), await small_reaper(system)
    looked = await asyncio.gather(one.run_once(), other.run_once())
    assert sum(looked) == 60
    assert sorted(await taken(commands, 60)) == sorted(ids)
    assert commands.empty()
    rows = await system.sql("SELECT count(*) FROM watership_saga WHERE owed OR wake_at_ms <> due_at_ms OR seq <> 2")
    assert rows[0][0] == 0


async def test_rows_that_always_fail_starve_no_other(system: Running, commands: asyncio.Queue[Delivery]) -> None:
    """They are the oldest, and more than a look takes at once."""
    ids = await started(system, commands, 40)
    broken, whole = ids[:20], ids[20:]
    await system.sql("UPDATE watership_saga SET state = '{}', wake_at_ms = 0 WHERE saga_id = ANY(:ids)", ids=broken)
    reaper = await small_reaper(system)
    assert await reaper.run_once() == 40
    assert sorted(await taken(commands, 20)) == sorted(whole)
    now_ms = (await system.sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000) AS now"))[0][0]
    wakes = await system.sql("SELECT wake_at_ms FROM watership_saga WHERE saga_id = ANY(:ids)", ids=broken)
    assert all(row[0] > now_ms + 3_000_000 for row in wakes), "due since 1970: so they may wait an hour"
    assert await reaper.run_once() == 0


async def test_what_only_the_database_refuses_fails_alone(
    system: Running, commands: asyncio.Queue[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await started(system, commands, 32)
    poison = ids[13]
    transactions = 0
    write = Batch.write

    async def refuse(
        batch: Batch,
        rows: Sequence[ChangedRow],
        entries: Sequence[tuple[uuid.UUID, LogEntry]],
        made: Collection[uuid.UUID],
    ) -> set[uuid.UUID]:
        nonlocal transactions
        transactions += 1
        if poison in [saga_id for saga_id, _ in entries]:
            raise ValueError("this one cannot be written")
        return await write(batch, rows, entries, made)

    monkeypatch.setattr(Batch, "write", refuse)
    reaper = await small_reaper(system, batch_max=32)
    await reaper.run_once()
    assert sorted(await taken(commands, 31)) == sorted(set(ids) - {poison})
    assert transactions <= 16, "halves, not one transaction for each"
    row = await system.row(poison)
    assert row is not None
    assert (row["seq"], row["wake_at_ms"] > 10**12) == (1, True)


async def test_a_message_that_cannot_be_made_keeps_no_other_back(
    system: Running, commands: asyncio.Queue[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await started(system, commands, 10)

    def refuse(judgement: Any, *more: Any) -> Any:
        if judgement.saga_id == ids[3]:
            raise KeyError("Reserve")
        return messages_of(judgement, *more)

    monkeypatch.setattr("watership_orchestrator.engine.messages_of", refuse)
    await (await small_reaper(system)).run_once()
    assert sorted(await taken(commands, 9)) == sorted(set(ids) - {ids[3]})
    row = await system.until(ids[3], owed=True)
    assert row["owed_reason"].startswith("unmade: KeyError")


async def test_one_kind_of_work_that_fails_does_not_stop_the_others(
    system: Running, commands: asyncio.Queue[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    (saga_id,) = await started(system, commands, 1)
    reaper = await small_reaper(system)

    async def fail(limit: int) -> Collection[Any]:
        raise RuntimeError(f"not even {limit}")

    judged: list[int] = []

    async def judge(limit: int) -> int:
        judged.append(limit)
        return 0

    monkeypatch.setattr(reaper._starts, "take_once", fail)
    monkeypatch.setattr(reaper._dead_letters, "judge_once", judge)
    with pytest.raises(RuntimeError, match="not even 7"):
        await reaper.run_once()
    assert await taken(commands, 1) == [saga_id]
    assert judged == [7]
