"""How fast one reaper re-drives what is due at once: a real process, RabbitMQ and Postgres.

``python -m tests.benchmarks.recovery [--sagas 100000] [--broken 1000]``. So many sagas await a reply whose deadline has
passed, and so many among them cannot be judged at all (their rows are broken). Every command is really published, to a
queue that nobody reads. Prints the rate, the reaper's CPU for each saga, and its resident memory from begin to end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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

from tests.support.servers import Session, open_session

CONTEXT = {"order_id": "o-1", "padding": "x" * 220}
STEPS = tuple(StepPlan(name, "bench") for name in ("Reserve", "Charge", "Ship"))
PLAN = Plan("BenchSaga", STEPS)
LONG_AGO_MS = 1_700_000_000_000
GIVE_UP_S = 540
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
            print(f"given up after {GIVE_UP_S} s with {left} sagas left")
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


def report(samples: list[Sample], driven: int, published: int) -> None:
    """From the first sample that shows work to the one that shows its end."""
    first = next((one for one, after in itertools.pairwise(samples) if after.left < one.left), samples[0])
    last = samples[-1]
    seconds, moved = last.at_s - first.at_s, first.left - last.left
    print(f"{moved} sagas in {seconds:.1f} s: {moved / seconds:.0f} sagas/s")
    print(f"  driven and settled: {driven}; commands in the queue: {published}")
    print(f"  the reaper's CPU: {(last.cpu_s - first.cpu_s) * 1000 / moved:.3f} ms per saga")
    tenth = [samples[round(share * (len(samples) - 1) / 10)].resident / 2**20 for share in range(11)]
    print(f"  its resident memory at each tenth of the run, MiB: {', '.join(f'{size:.0f}' for size in tenth)}")


async def run(session: Session, namespace: str, database_url: str, arguments: argparse.Namespace) -> None:
    """Seeds, starts the reaper, watches."""
    broker_url, topology = session.servers.broker_url, Topology(namespace)
    bus = RabbitBus(broker_url, name="bench")
    await bus.open()
    await bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), topology.step_queue("bench")])
    await bus.close()
    database = create_async_engine(database_url)
    await seed(database, namespace, arguments.sagas, arguments.broken)
    seeded_ms = int(time.time() * 1000)
    environment = {
        **os.environ,
        "WATERSHIP_BROKER_URL": broker_url,
        "WATERSHIP_DATABASE_URL": database_url,
        "WATERSHIP_NAMESPACE": namespace,
    }
    with (Path(tempfile.gettempdir()) / f"{namespace}-reaper.log").open("wb") as log:
        command = [sys.executable, "-m", "watership.cli", "reaper"]
        # Blocking for an instant; nothing else runs here yet.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220 - as above
        try:
            samples = await watch(database, psutil.Process(process.pid), seeded_ms)
            async with database.connect() as connection:
                driven = (await connection.execute(sa.text(_DRIVEN))).scalar_one()
            published = await depth(broker_url, topology.queue_name("step.bench"))
            report(samples, driven, published)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
            await database.dispose()


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", type=int, default=100_000)
    parser.add_argument("--broken", type=int, default=1_000, help="how many of them cannot be judged")
    arguments = parser.parse_args()
    session = open_session(print)
    namespace, database_url = session.new_namespace(), session.create_database()
    try:
        print(session.servers.description)
        asyncio.run(run(session, namespace, database_url, arguments))
    finally:
        session.delete_namespace(namespace, {"bench"})
        session.drop_database(database_url)
        session.close()


if __name__ == "__main__":
    main()
