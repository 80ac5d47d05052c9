"""How many sagas a second: three steps with empty handlers, through real processes, RabbitMQ and Postgres.

``python -m tests.benchmarks.throughput [--sagas 5000] [--orchestrators 1] [--workers 1]``. Starts are published first
come, first served by a client of its own; a saga counts as ended when its event arrives. Prints a rate, the CPU that each
process spent per saga, and each process's resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from watership import Response, Saga, SagaContext, SagaMap, SagaStepHandler
from watership.bus.acks import Acks
from watership.bus.protocol import Delivery, Message
from watership.bus.rabbit import RabbitBus
from watership.bus.topology import Queue, Topology
from watership.messages import StartSaga
from watership_worker import Worker

from tests.support.servers import open_session

PUBLISH_AT_ONCE = 200
IN_FLIGHT_MAX = 2_000


@dataclasses.dataclass
class BenchContext(SagaContext):
    """A context of about 300 bytes."""

    order_id: str
    padding: str = "x" * 220
    reservation_id: str | None = None
    payment_id: str | None = None


class Reserve(SagaStepHandler[BenchContext, Response]):
    """Does nothing."""

    async def act(self, context: BenchContext) -> None:
        """Nothing."""

    async def compensate(self, context: BenchContext) -> None:
        """Nothing."""


class Charge(Reserve):
    """Does nothing."""


class Ship(Reserve):
    """Does nothing."""


class BenchSaga(Saga[BenchContext]):
    """Three steps with empty handlers."""

    steps = [Reserve, Charge, Ship]


def sagas(mapper: SagaMap) -> None:
    """Binds the one saga."""
    mapper.bind(BenchContext, BenchSaga)


worker = Worker(sagas_mapper=sagas)


@dataclasses.dataclass
class Bench:
    """One run: its own database and namespace, and processes of its own."""

    namespace: str
    broker_url: str
    database_url: str
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)

    def begin(self, name: str, *arguments: str) -> None:
        """Starts a service; its output goes to a file in the system's temporary directory."""
        environment = {
            **os.environ,
            "WATERSHIP_BROKER_URL": self.broker_url,
            "WATERSHIP_DATABASE_URL": self.database_url,
            "WATERSHIP_NAMESPACE": self.namespace,
        }
        command = [sys.executable, "-m", "watership.cli", *arguments]
        with (Path(tempfile.gettempdir()) / f"{self.namespace}-{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def usage(self) -> dict[str, tuple[float, int]]:
        """CPU seconds and resident bytes of each process so far."""
        found = {}
        for name, process in self.processes.items():
            one = psutil.Process(process.pid)
            times = one.cpu_times()
            found[name] = (times.user + times.system, one.memory_info().rss)
        return found

    def end(self) -> None:
        """Stops what was started."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Meter:
    """Counts the sagas that ended, by their events."""

    def __init__(self, bus: RabbitBus) -> None:
        self._acks = Acks(bus)
        self._some = asyncio.Event()
        self.ended = 0

    def on_delivery(self, delivery: Delivery) -> None:
        """An event arrived."""
        self.ended += 1
        self._acks.add(delivery)
        self._some.set()

    async def wait_until(self, count: int) -> None:
        """Until so many have ended."""
        while self.ended < count:
            await self._some.wait()
            self._some.clear()


async def measure(bench: Bench, bus: RabbitBus, meter: Meter, sagas_count: int) -> float:
    """Runs so many sagas; sagas per second from the first start to the last end."""
    first = meter.ended
    started_s = time.perf_counter()
    published = 0
    while published < sagas_count:
        size = min(PUBLISH_AT_ONCE, sagas_count - published)
        await bus.publish([_start(bench.namespace) for _ in range(size)])
        published += size
        await meter.wait_until(max(0, first + published - IN_FLIGHT_MAX))
    await meter.wait_until(first + sagas_count)
    return sagas_count / (time.perf_counter() - started_s)


def _start(namespace: str) -> Message:
    saga_id = uuid.uuid4()
    body = StartSaga(saga="BenchSaga", saga_id=saga_id, context={"order_id": "o-1", "padding": "x" * 220})
    return Message(namespace, "start", body.to_body(), "start-saga", f"{saga_id}:start")


async def run(bench: Bench, arguments: argparse.Namespace) -> None:
    """Brings the services up, and measures each size in turn."""
    bus = RabbitBus(bench.broker_url, name="bench")
    meter = Meter(bus)
    try:
        await _prepare(bench, bus, meter, arguments)
        for sagas_count in [int(size) for size in arguments.sagas.split(",")]:
            before = bench.usage()
            rate = await measure(bench, bus, meter, sagas_count)
            _print(bench, sagas_count, rate, before)
    finally:
        bench.end()
        await bus.close()


async def _prepare(bench: Bench, bus: RabbitBus, meter: Meter, arguments: argparse.Namespace) -> None:
    await bus.open()
    topology = Topology(bench.namespace)
    events = Queue(topology.queue_name("step.ended"), topology.events_exchange, "saga.#", None)
    await bus.declare(topology.exchanges(), [*topology.orchestrator_queues(), events])
    await bus.consume(events.name, prefetch=2_000, on_delivery=meter.on_delivery)
    for index in range(arguments.orchestrators):
        bench.begin(f"orchestrator-{index}", "orchestrator")
    for index in range(arguments.workers):
        bench.begin(f"worker-{index}", "worker", "tests.benchmarks.throughput:worker")
    bench.begin("reaper", "reaper")
    await measure(bench, bus, meter, 200)  # everything is up, and warm


def _print(bench: Bench, sagas_count: int, rate: float, before: dict[str, tuple[float, int]]) -> None:
    print(f"{sagas_count} sagas: {rate:.0f} sagas/s")
    for name, (cpu_s, resident) in bench.usage().items():
        spent_ms = (cpu_s - before[name][0]) * 1000 / sagas_count
        print(f"  {name}: {spent_ms:.2f} ms CPU per saga, {resident / 2**20:.1f} MiB resident")


def main() -> None:
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", default="5000", help="how many; several sizes by commas, one after the other")
    parser.add_argument("--orchestrators", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    session = open_session(print)
    namespace, database_url = session.new_namespace(), session.create_database()
    try:
        print(session.servers.description)
        asyncio.run(run(Bench(namespace, session.servers.broker_url, database_url), arguments))
    finally:
        session.delete_namespace(namespace, {"Reserve", "Charge", "Ship", "ended"})
        session.drop_database(database_url)
        session.close()


if __name__ == "__main__":
    main()
