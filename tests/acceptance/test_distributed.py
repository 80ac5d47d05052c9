"""The whole system as processes, started by a client that is not ours: all end right, whatever is killed on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pika
import pytest
import sqlalchemy as sa

from tests.support.ledger_steps import CREATE
from tests.support.processes import Process, Processes

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

STEPS = ["Reserve", "Charge", "Ship"]
SAGAS = 1_000
SEED = 20261123
WORKER = "tests.support.ledger_steps:worker"


@dataclasses.dataclass
class System:
    """Two orchestrators, two workers and a reaper, on a database and a namespace of their own."""

    namespace: str
    broker_url: str
    database_url: str
    processes: Processes
    ledger: asyncpg.Connection[Any]

    def begin(self, kind: str, index: int) -> Process:
        """Starts one process of a kind."""
        environment = {
            "WATERSHIP_BROKER_URL": self.broker_url,
            "WATERSHIP_DATABASE_URL": self.database_url,
            "WATERSHIP_NAMESPACE": self.namespace,
            "WATERSHIP_REAP_EVERY_S": "0.3",
            "LEDGER_URL": plain(self.database_url),
        }
        arguments = [kind, WORKER] if kind == "worker" else [kind]
        return self.processes.watership(*arguments, env=environment, name=f"{kind}-{index}")

    async def count(self, where: str) -> int:
        """How many sagas there are like that."""
        return int(await self.ledger.fetchval(f"SELECT count(*) FROM watership_saga WHERE {where}"))

    async def until(self, where: str, count: int, timeout_s: float) -> None:
        """Waits until so many sagas are like that; fails with what the others wait for."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self.count(where) < count:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            rows = await self.ledger.fetch(
                f"SELECT saga_id, status, step, parked_reason, owed_reason, state FROM watership_saga "
                f"WHERE NOT ({where}) LIMIT 5"
            )
            found = await self.count(where)
            pytest.fail(f"{found} of {count} sagas are {where} after {timeout_s} s; others: {rows}")


def plain(database_url: str) -> str:
    """The URL as asyncpg reads it."""
    url = sa.make_url(database_url).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


@pytest.fixture
async def system(
    namespace: str, step_queues: set[str], broker_url: str, database_url: str, processes: Processes
) -> AsyncIterator[System]:
    step_queues.update(STEPS)
    ledger = await asyncpg.connect(plain(database_url))
    await ledger.execute(CREATE)
    yield System(namespace, broker_url, database_url, processes, ledger)
    await ledger.close()


def start_by_pika(system: System, orders: dict[uuid.UUID, str | None]) -> None:
    """Starts sagas with a client that knows nothing of ours: exchange, routing key, type and body, as documented."""
    with pika.BlockingConnection(pika.URLParameters(system.broker_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for saga_id, fail_at in orders.items():
            body = {
                "v": 1,
                "saga": "OrderSaga",
                "saga_id": str(saga_id),
                "context": {"order_id": f"o-{saga_id.hex[:6]}", "fail_at": fail_at},
            }
            properties = pika.BasicProperties(type="start-saga", delivery_mode=2)
            channel.basic_publish(system.namespace, "start", json.dumps(body).encode(), properties, mandatory=True)


def some_orders(seed: int, count: int) -> dict[uuid.UUID, str | None]:
    """Sagas of which a third fail, at different steps."""
    chance = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201 - shown where a test fails
    failing = [chance.choice(STEPS) if index % 3 == 0 else None for index in range(count)]
    return {uuid.UUID(int=chance.getrandbits(128), version=4): fail_at for fail_at in failing}


async def check_ended_right(system: System, orders: dict[uuid.UUID, str | None]) -> None:
    """Every saga is fully applied or fully undone, in reverse order, and its effects say the same as its status."""
    rows = await system.ledger.fetch("SELECT saga_id, status, context FROM watership_saga")
    assert len(rows) == len(orders)
    effects: dict[uuid.UUID, list[tuple[str, str]]] = {saga_id: [] for saga_id in orders}
    for row in await system.ledger.fetch("SELECT saga_id, step, action FROM effect ORDER BY effect_id"):
        effects[row["saga_id"]].append((row["step"], row["action"]))
    for row in rows:
        fail_at = orders[row["saga_id"]]
        had = effects[row["saga_id"]]
        acted = [step for step, action in had if action == "act"]
        undone = [step for step, action in had if action == "compensate"]
        if fail_at is None:
            assert row["status"] == "COMPLETED", row
            assert acted == STEPS, had
            assert undone == [], had
            assert json.loads(row["context"])["trail"] == STEPS
        else:
            before = STEPS[: STEPS.index(fail_at)]
            assert row["status"] == "COMPENSATED", row
            assert acted == before, had
            # A failure of a redelivered command is unknown, so the failed step may be undone as well, even late. And
            # an act whose second run reported after its undoing is undone again: the first undoings are in order.
            first = list(dict.fromkeys(step for step in undone if step != fail_at))
            assert first == [*reversed(before)], had


async def test_a_thousand_sagas_end_right_while_each_kind_of_process_is_killed(system: System) -> None:
    services = {kind: [system.begin(kind, index) for index in range(2)] for kind in ("orchestrator", "worker")}
    services["reaper"] = [system.begin("reaper", 0)]
    for process in [process for kind in services.values() for process in kind]:
        await process.line("ready")
    orders = some_orders(SEED, SAGAS)
    starting = asyncio.to_thread(start_by_pika, system, orders)
    starter = asyncio.ensure_future(starting)
    for number, kind in enumerate(("orchestrator", "worker", "reaper"), start=1):
        await system.until("status IN ('COMPLETED', 'COMPENSATED')", number * SAGAS // 5, timeout_s=60)
        services[kind][0].kill9()
        system.begin(kind, 9)
    await starter
    await system.until("status IN ('COMPLETED', 'COMPENSATED') AND NOT owed", SAGAS, timeout_s=120)
    await check_ended_right(system, orders)


async def test_starting_again_with_the_same_input_changes_nothing(system: System) -> None:
    for kind in ("orchestrator", "worker"):
        await system.begin(kind, 0).line("ready")
    orders = some_orders(SEED + 1, 20)
    for _ in range(3):
        await asyncio.to_thread(start_by_pika, system, orders)
    await system.until("status IN ('COMPLETED', 'COMPENSATED')", len(orders), timeout_s=30)
    await check_ended_right(system, orders)
    assert await system.ledger.fetchval("SELECT max(runs) FROM effect") == 1


async def test_a_worker_that_comes_late_finds_what_waited(system: System) -> None:
    """Nobody knows the saga, then nobody serves its steps: it waits, and says for what."""
    await system.begin("orchestrator", 0).line("ready")
    await system.begin("reaper", 0).line("ready")
    orders = some_orders(SEED + 2, 10)
    await asyncio.to_thread(start_by_pika, system, orders)
    await system.until("status = 'PENDING'", len(orders), timeout_s=20)
    await system.begin("worker", 0).line("ready")
    await system.until("status IN ('COMPLETED', 'COMPENSATED')", len(orders), timeout_s=60)
    await check_ended_right(system, orders)


async def test_sigterm_drains_and_loses_nothing(system: System) -> None:
    services = [system.begin(kind, index) for kind in ("orchestrator", "worker") for index in range(2)]
    for process in services:
        await process.line("ready")
    orders = some_orders(SEED + 3, 200)
    starter = asyncio.ensure_future(asyncio.to_thread(start_by_pika, system, orders))
    await system.until("status IN ('COMPLETED', 'COMPENSATED')", 50, timeout_s=30)
    for process in (services[0], services[2]):
        assert await asyncio.to_thread(process.stop) == 0, process.output
    await starter
    await system.until("status IN ('COMPLETED', 'COMPENSATED')", len(orders), timeout_s=60)
    await check_ended_right(system, orders)
    assert await system.ledger.fetchval("SELECT max(runs) FROM effect") == 1, "a drained worker ran a step twice"


@pytest.mark.parametrize("away", ["WATERSHIP_BROKER_URL", "WATERSHIP_DATABASE_URL"])
async def test_a_service_waits_for_what_is_down_says_so_and_stops_when_told(system: System, away: str) -> None:
    nobody = {
        "WATERSHIP_BROKER_URL": "amqp://guest:secret@127.0.0.1:1/",
        "WATERSHIP_DATABASE_URL": "postgresql+asyncpg://postgres:secret@127.0.0.1:1/orders",
    }
    environment = {"WATERSHIP_BROKER_URL": system.broker_url, "WATERSHIP_DATABASE_URL": system.database_url}
    environment[away] = nobody[away]
    process = system.processes.watership("orchestrator", env=environment, name="waiting")
    await process.line(r"127\.0\.0\.1:1.*trying again in .* \(attempt 2\)")
    assert await asyncio.to_thread(process.stop) == 0, process.output
    assert "secret" not in process.output
    assert "Traceback" not in process.output


async def test_a_worker_that_waits_for_its_broker_stops_when_told(system: System) -> None:
    environment = {"WATERSHIP_BROKER_URL": "amqp://guest:secret@127.0.0.1:1/"}
    process = system.processes.watership("worker", WORKER, env=environment, name="waiting")
    await process.line(r"127\.0\.0\.1:1.*trying again in .* \(attempt 2\)")
    assert await asyncio.to_thread(process.stop) == 0, process.output
    assert "Traceback" not in process.output


async def test_a_database_that_is_not_migrated_is_one_sentence(system: System) -> None:
    await system.ledger.execute("DROP TABLE watership_saga CASCADE")
    environment = {"WATERSHIP_BROKER_URL": system.broker_url, "WATERSHIP_DATABASE_URL": system.database_url}
    process = system.processes.watership("orchestrator", env=environment, name="unready")
    assert await asyncio.to_thread(process.wait) == 1
    assert "watership db upgrade" in process.output
    assert "Traceback" not in process.output
