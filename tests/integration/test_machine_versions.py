"""Law 8: orchestrators of two machine versions side by side, on real servers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections import Counter

import pytest

from watership import Response, Saga, SagaContext, SagaMap, SagaStepHandler
from watership.machine.apply import fold
from watership.machine.state import MACHINE_VERSION
from watership.saga.storage.rows import changes_from_json, state_from_row
from watership_orchestrator import newer
from watership_orchestrator.orchestrator import Orchestrator
from watership_worker import Worker

from tests.support.order_steps import sagas
from tests.support.running import Running

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

OLDER, NEWER = MACHINE_VERSION, MACHINE_VERSION + 1
SAGAS = 60

# Any saga that an older machine takes back is one too many.
GUARD = """
CREATE FUNCTION never_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.machine_version < OLD.machine_version THEN
        RAISE EXCEPTION 'an older machine wrote a newer one''s saga';
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = "CREATE TRIGGER never_back BEFORE UPDATE ON watership_saga FOR EACH ROW EXECUTE FUNCTION never_back()"


@dataclasses.dataclass
class Other(SagaContext):
    order_id: str


class Own(SagaStepHandler[Other, Response]):
    async def act(self, context: Other) -> None: ...


class OwnSaga(Saga[Other]):
    steps = [Own]


def also_own(mapper: SagaMap) -> None:
    sagas(mapper)
    mapper.bind(Other, OwnSaga)


def count_deliveries(orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From here on, how often each message is judged by it."""
    seen: Counter[str] = Counter()
    whole = orchestrator._arrival

    async def counted(delivery: object) -> object:
        seen[getattr(delivery, "message_id", None) or ""] += 1
        return await whole(delivery)  # type: ignore[arg-type]

    monkeypatch.setattr(orchestrator, "_arrival", counted)
    return seen


async def all_completed(system: Running) -> int:
    (row,) = await system.sql("SELECT count(*) FROM watership_saga WHERE status = 'COMPLETED'")
    return int(row[0])


@pytest.fixture(autouse=True)
def own_queues(step_queues: set[str]) -> None:
    step_queues.add("Own")


async def test_an_older_and_a_newer_one_side_by_side(system: Running) -> None:
    await system.sql(GUARD)
    await system.sql(TRIGGER)
    await system.orchestrator(OLDER)
    await system.orchestrator(NEWER)
    older_reaper, newer_reaper = await system.reaper(OLDER), await system.reaper(NEWER)
    await system.worker(Worker(sagas_mapper=sagas))
    ids = [await system.start("OrderSaga", {"order_id": str(number)}) for number in range(SAGAS)]
    async with asyncio.timeout(60):
        while await all_completed(system) < SAGAS:
            await older_reaper.run_once()
            await newer_reaper.run_once()
            await asyncio.sleep(0.1)
    for saga_id in ids:
        row = await system.until(saga_id, status="COMPLETED")
        # A deadline of a tenth of a second may pass meanwhile, and then a step is sent, and may run, again.
        assert list(dict.fromkeys(json.loads(row["context"])["trail"])) == ["Reserve", "Charge"]
        entries = await system.sql("SELECT changes FROM watership_log WHERE saga_id = :id ORDER BY seq", id=saga_id)
        assert fold(str(saga_id), [changes_from_json(entry[0]) for entry in entries]) == state_from_row(row)
    versions = await system.sql("SELECT DISTINCT machine_version FROM watership_saga")
    assert {row[0] for row in versions} <= {OLDER, NEWER}
    assert (NEWER,) in [tuple(row) for row in versions], "the newer one had its share"


async def test_an_older_one_alone_leaves_them_and_nothing_turns_in_circles(
    system: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer ones are gone, as in a rollback. Their sagas' rows are of a form that the older one has never seen."""
    monkeypatch.setattr(newer, "HOLD_MIN_S", 0.02)
    older = await system.orchestrator(OLDER)
    worker = await system.worker(Worker(sagas_mapper=also_own, only=[Own]))
    await system.bus.declare([], [worker._topology.step_queue("Reserve")])  # nobody acts: replies are ours
    ids = [await system.start("OrderSaga", {"order_id": str(number)}) for number in range(SAGAS)]
    for saga_id in ids:
        await system.until(saga_id, step="Reserve", status="RUNNING")
    await system.sql("CREATE TABLE aside AS SELECT saga_id, state FROM watership_saga")
    await system.sql("UPDATE watership_saga SET machine_version = :version, state = 'of a new form'", version=NEWER)
    seen = count_deliveries(older, monkeypatch)
    replies = [await reply(system, saga_id) for saga_id in ids]
    own = await system.start("OwnSaga", {"order_id": "own"})
    await system.until(own, status="COMPLETED")  # the older one's own sagas go on meanwhile
    async with asyncio.timeout(30):
        while await kept(system) < SAGAS:
            await asyncio.sleep(0.05)
    assert {seen[reply] for reply in replies} == {newer.RETURNS_MAX + 1}, "each came back so often, and then no more"
    older_reaper = await system.reaper(OLDER)
    await system.sql("UPDATE watership_saga SET wake_at_ms = 1 WHERE machine_version = :version", version=NEWER)
    await older_reaper.run_once()  # it passes them over, on both shelves
    rows = await system.sql("SELECT DISTINCT state, seq FROM watership_saga WHERE machine_version = :v", v=NEWER)
    assert [tuple(row) for row in rows] == [("of a new form", 1)]
    assert await kept(system) == SAGAS

    await system.sql("UPDATE watership_saga s SET state = a.state FROM aside a WHERE a.saga_id = s.saga_id")
    await system.orchestrator(NEWER)
    await system.worker(Worker(sagas_mapper=sagas))
    newer_reaper = await system.reaper(NEWER)
    async with asyncio.timeout(60):
        while await all_completed(system) < SAGAS + 1 or await kept(system):
            await system.sql(
                "UPDATE watership_dead_letter SET judge_at_ms = 1 WHERE judged IS NULL"
            )  # backed off enough
            await newer_reaper.run_once()
            await asyncio.sleep(0.05)
    told = await system.sql("SELECT DISTINCT judged FROM watership_dead_letter WHERE reason = 'newer_machine'")
    assert all(row[0].startswith(("applied", "it changes nothing", "in the ledger")) for row in told), told


async def reply(system: Running, saga_id: uuid.UUID) -> str:
    """By hand: Reserve is done. The message's id."""
    body = {"v": 1, "saga_id": str(saga_id), "step": "Reserve", "action": "act", "attempt": 1, "run": "by-hand"}
    body |= {"outcome": "done", "patch": {"trail": ["Reserve"]}}
    return await system.send_raw("replies", json.dumps(body).encode(), "step-reply")


async def kept(system: Running) -> int:
    """How many messages wait for a newer orchestrator."""
    query = "SELECT count(*) FROM watership_dead_letter WHERE reason = 'newer_machine' AND judged IS NULL"
    (row,) = await system.sql(query)
    return int(row[0])
