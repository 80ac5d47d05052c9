"""How fast one reaper re-drives what is due at once: a real process, RabbitMQ and Postgres.

So many sagas await a reply whose deadline has passed, and some among them cannot be judged at all (their rows are broken).
Every command is really published, to a queue that nobody reads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from typing import Any

import aiormq
import psutil
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Topology
from watership.machine import events as e
from watership.machine.nodes import StepPlan
from watership.machine.plan import Plan
from watership.machine.react import react
from watership.machine.state import MACHINE_VERSION, SagaState
from watership.messages import HandlerOnWire, RegisterWorker
from watership.saga.storage.rows import changes_to_json, context_to_json, state_to_json
from watership_orchestrator.plans import PlanBook

from tests.benchmarks.bench import Bench, Data
from tests.benchmarks.contenders import Ground, services
from tests.benchmarks.running import stage

TITLE = "What one reaper re-drives"
IS_LONG = False
QUEUE = "Reserve"
BROKEN_EVERY = 100
CONTEXT = {"order_id": "o-1", "padding": "x" * 220}
STEPS = tuple(StepPlan(name, QUEUE) for name in ("Reserve", "Charge", "Ship"))
PLAN = Plan("BenchSaga", STEPS)
LONG_AGO_MS = 1_700_000_000_000
GIVE_UP_S = 240
SAMPLE_EVERY_S = 0.5

_SEED = """
INSERT INTO watership_saga (saga_id, namespace, driver, name, plan_hash, status, seq, context, state, step, input_hash,
    machine_version, due_at_ms, wake_at_ms, created_at_ms, updated_at_ms)
SELECT gen_random_uuid(), :namespace, 'orchestrator', 'BenchSaga', :plan_hash, 'RUNNING', 1, :context,
    CASE WHEN n % :broken_every = 0 THEN '{}' ELSE :state END, 'Reserve', 'x', :version, CAST(:at_ms AS bigint) + n,
    CAST(:at_ms AS bigint) + n, :at_ms, :at_ms
FROM generate_series(1, :count) AS n
"""
_SEED_LOG = """
INSERT INTO watership_log (saga_id, seq, at_ms, cause, changes)
SELECT saga_id, 1, :at_ms, 'start', :changes FROM watership_saga
"""
_LEFT = "SELECT count(*) FROM watership_saga WHERE wake_at_ms < :seeded_ms"
_DRIVEN = "SELECT count(*) FROM watership_saga WHERE NOT owed AND seq = 2 AND wake_at_ms = due_at_ms"


@dataclasses.dataclass
class Sample:
    """The reaper at one moment: sagas that are left, CPU seconds so far, resident bytes."""

    at_s: float
    left: int
    cpu_s: float
    resident: int


async def seed(database: AsyncEngine, namespace: str, count: int, broken: int) -> None:
    """All of them long due. The broken ones are spread evenly."""
    reaction = react(PLAN, SagaState("bench"), e.SagaStarted("BenchSaga", CONTEXT, PLAN.hash), LONG_AGO_MS)
    # A worker that serves the steps, as far as the reaper knows: it only does not answer.
    handlers = tuple(HandlerOnWire(step=node.name, queue=node.queue, source="bench") for node in STEPS)
    announced = RegisterWorker(worker="bench", plans=(PLAN.to_data(),), handlers=handlers)
    assert await PlanBook(database, namespace).register(announced) == []
    values: dict[str, Any] = {
        "namespace": namespace,
        "plan_hash": PLAN.hash,
        "context": context_to_json(reaction.state),
        "state": state_to_json(reaction.state),
        "version": MACHINE_VERSION,
        "at_ms": LONG_AGO_MS,
        "count": count,
        "broken_every": count // broken if broken else count + 1,
    }
    async with database.begin() as connection:
        await connection.execute(sa.text(_SEED), values)
        changes = changes_to_json(reaction.changes)
        await connection.execute(sa.text(_SEED_LOG), {"at_ms": LONG_AGO_MS, "changes": changes})
    async with database.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).exec_driver_sql("VACUUM ANALYZE")


async def watch(database: AsyncEngine, reaper: psutil.Process, seeded_ms: int) -> list[Sample]:
    """Samples until nothing is left."""
    samples: list[Sample] = []
    began_s = time.perf_counter()
    while not samples or samples[-1].left:
        async with database.connect() as connection:
            left = (await connection.execute(sa.text(_LEFT), {"seeded_ms": seeded_ms})).scalar_one()
        times = reaper.cpu_times()
        at_s = time.perf_counter() - began_s
        samples.append(Sample(at_s, left, times.user + times.system, reaper.memory_info().rss))
        if at_s > GIVE_UP_S:
            break
        await asyncio.sleep(SAMPLE_EVERY_S)
    return samples


async def depth(broker_url: str, queue: str) -> int:
    """Messages that wait in the queue."""
    connection = await aiormq.connect(broker_url)
    try:
        declared = await (await connection.channel()).queue_declare(queue, passive=True)
        return int(declared.message_count or 0)
    finally:
        await connection.close()


def report(samples: list[Sample], driven: int, published: int) -> Data:
    """From the first sample that shows work to the one that shows its end."""
    first = next((one for one, after in itertools.pairwise(samples) if after.left < one.left), samples[0])
    last = samples[-1]
    seconds, moved = last.at_s - first.at_s, first.left - last.left
    return {
        "moved": moved,
        "rate": moved / seconds,
        "driven": driven,
        "published": published,
        "left": last.left,
        "cpu_ms": (last.cpu_s - first.cpu_s) * 1000 / moved,
        "resident_bytes": [samples[round(share * (len(samples) - 1) / 10)].resident for share in range(11)],
    }


async def run(ground: Ground, count: int, broken: int) -> Data:
    """Seeds, starts the reaper, watches."""
    topology = Topology(ground.namespace)
    bus = RabbitBus(ground.broker_url, name="bench")
    await bus.open()
    await bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), topology.step_queue(QUEUE)])
    await bus.close()
    database = create_async_engine(ground.database_url)
    await seed(database, ground.namespace, count, broken)
    seeded_ms = int(time.time() * 1000)
    (program,) = (one for one in services(ground) if one.group == "reaper")
    with stage() as on_stage:
        reaper = on_stage.begin(program)
        samples = await watch(database, psutil.Process(reaper.popen.pid), seeded_ms)
        async with database.connect() as connection:
            driven = (await connection.execute(sa.text(_DRIVEN))).scalar_one()
        published = await depth(ground.broker_url, topology.queue_name(f"step.{QUEUE}"))
    await database.dispose()
    return report(samples, driven, published)


def measure(bench: Bench) -> Data:
    """One reaper, one heap of overdue sagas."""
    count = 10_000 if bench.is_quick else 100_000
    with bench.ground() as ground:
        found = asyncio.run(run(ground, count, count // BROKEN_EVERY))
        bench.session.delete_namespace(ground.namespace, {QUEUE})
    return {"count": count, "broken": count // BROKEN_EVERY, **found}
