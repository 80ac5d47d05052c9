"""Orchestrators that are stopped in the middle of a batch, for longer than every deadline, and then woken."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from watership import SagaMediator, bootstrap
from watership.machine.directions import GRACE_MS
from watership_orchestrator.database import SERVER_SETTINGS

from tests.chaos.books import plain
from tests.chaos.evidence import gather
from tests.chaos.ground import GivenGround
from tests.chaos.halting import POINTS
from tests.chaos.laws import breaches
from tests.chaos.orders import CarefulOrder, Kind
from tests.chaos.participants import QUEUE_WITHIN_S, TIMEOUT_S
from tests.chaos.steps import sagas
from tests.chaos.system import WORKER
from tests.support.processes import Process, Processes
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.servers, pytest.mark.timeout(180)]

HEARTBEAT_S = 2  # of the orchestrators that are stopped: the broker gives them up after a few of these
LOCK_TIMEOUT_S = float(SERVER_SETTINGS["lock_timeout"].removesuffix("s"))
# The step's own deadline is the longest of all.
STOPPED_FOR_S = QUEUE_WITHIN_S + TIMEOUT_S + GRACE_MS / 1000 + 1
# A command from its beginning: the answer to a client that asks for a saga tells its acts too, and is no act.
ACT = re.compile(rb'\{"v":1,"saga":"[^"]+","saga_id":"([0-9a-f-]{36})","step":"[^"]+","action":"act"')


class Scene:
    """The processes, and what passes on the links of those that are stopped."""

    def __init__(self, ground: GivenGround, processes: Processes, mediator: SagaMediator) -> None:
        self.ground, self.processes, self.mediator = ground, processes, mediator
        self.sent: dict[str, bytearray] = {}
        self.started: dict[uuid.UUID, CarefulOrder] = {}

    def begin(self, *arguments: str, broker_url: str | None = None) -> Process:
        """A process of ours; a module of the tests if it says so."""
        environment = {
            "WATERSHIP_BROKER_URL": broker_url or self.ground.broker_url,
            "WATERSHIP_DATABASE_URL": self.ground.database_url,
            "WATERSHIP_NAMESPACE": self.ground.namespace,
            "WATERSHIP_REAP_EVERY_S": "0.5",
            "BOOKS_URL": plain(self.ground.books_url),
        }
        start = self.processes.python if arguments[0] == "-m" else self.processes.watership
        return start(*arguments, env=environment, name=" ".join(arguments))

    async def place(self, count: int) -> set[uuid.UUID]:
        """Starts some orders without trouble; their ids."""
        orders = {uuid.uuid4(): CarefulOrder(Kind.CAREFUL, random.randrange(5), 1, 100) for _ in range(count)}
        self.started |= orders
        await self.place_again(set(orders))
        return set(orders)

    async def place_again(self, ids: set[uuid.UUID]) -> None:
        """What a client does that is not sure."""
        await asyncio.gather(*(self.mediator.start(self.started[saga_id], saga_id=saga_id) for saga_id in ids))

    async def until_completed(self, ids: set[uuid.UUID]) -> None:
        """Waits for their ends; the client itself asks again for what it was not told."""
        for result in await asyncio.gather(*(self.mediator.result(saga_id, timeout_s=60) for saga_id in ids)):
            assert result.completed, result

    async def until_nothing_is_owed(self) -> None:
        """Waits for the reaper: what a woken orchestrator could not send is owed, and told by the next look."""
        connection: Any = await asyncpg.connect(plain(self.ground.database_url))
        try:
            async with asyncio.timeout(60):
                while await connection.fetchval("SELECT count(*) FROM watership_saga WHERE owed"):
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def stories(self, ids: set[uuid.UUID]) -> list[str]:
        """What the logs of some sagas say, for a message."""
        connection: Any = await asyncpg.connect(plain(self.ground.database_url))
        try:
            query = "SELECT saga_id, seq, at_ms, cause FROM watership_log WHERE saga_id = ANY($1) ORDER BY saga_id, seq"
            return [
                f"{row['saga_id']} #{row['seq']} {row['at_ms']} {row['cause']}"
                for row in await connection.fetch(query, list(ids)[:3])
            ]
        finally:
            await connection.close()

    def acts_sent(self, point: str) -> set[uuid.UUID]:
        """The sagas whose acts an orchestrator sent since it was woken."""
        return {uuid.UUID(found.decode()) for found in ACT.findall(bytes(self.sent[point]))}


@pytest.fixture
async def scene(given: GivenGround, processes: Processes) -> AsyncIterator[Scene]:
    front = bootstrap(sagas_mapper=sagas, broker_url=given.broker_url, namespace=given.namespace)
    async with front as mediator:
        yield Scene(given, processes, mediator)


@contextlib.asynccontextmanager
async def lock_waits(database_url: str) -> AsyncIterator[list[float]]:
    """For how long, in all, some transaction waited for a lock while the block ran: one number, at its end."""
    connection: Any = await asyncpg.connect(plain(database_url))
    waited: list[float] = []
    waiting_s = 0.0
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def watch() -> None:
        nonlocal waiting_s
        before_s, was_waiting = time.monotonic(), False
        while True:
            is_waiting = bool(await connection.fetchval(query))
            now_s = time.monotonic()
            waiting_s += now_s - before_s if is_waiting and was_waiting else 0.0
            before_s, was_waiting = now_s, is_waiting
            await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    try:
        yield waited
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waited.append(waiting_s)
        await connection.close()


async def test_a_stopped_orchestrator_holds_up_nobody_and_publishes_nothing_old(scene: Scene) -> None:
    async with contextlib.AsyncExitStack() as links:
        stopped: dict[str, Process] = {}
        for point in POINTS:
            proxy = await links.enter_async_context(Proxy.for_url(scene.ground.broker_url))
            scene.sent[point] = bytearray()
            proxy.on_sent = scene.sent[point].extend
            url = f"{proxy.url_for(scene.ground.broker_url)}?heartbeat={HEARTBEAT_S}"
            stopped[point] = scene.begin("-m", "tests.chaos.halting", point, broker_url=url)
        for process in (*stopped.values(), scene.begin("worker", WORKER), scene.begin("reaper")):
            await process.line("ready")
        first = await scene.place(60)
        for point, process in stopped.items():
            await process.line(f"halting {point}")
        stopped_s = time.monotonic()
        await scene.begin("orchestrator").line("ready")
        async with lock_waits(scene.ground.database_url) as waited:
            await scene.place_again(first)
            while_stopped = await scene.place(100)
            await scene.until_completed(first | while_stopped)
            await asyncio.sleep(stopped_s + STOPPED_FOR_S - time.monotonic())
        print(f"other orchestrators waited for locks for {waited[0]:.2f} s")  # noqa: T201 - shown where it fails
        assert waited[0] < LOCK_TIMEOUT_S
        for point, process in stopped.items():
            scene.sent[point].clear()
            process.send_signal(signal.SIGCONT)
            await process.line("woken")
        woken = set[uuid.UUID]()
        while not all(scene.acts_sent(point) & woken for point in POINTS):  # they are at work again
            some = await scene.place(20)
            woken |= some
            await scene.until_completed(some)
        for point in POINTS:
            old = scene.acts_sent(point) - woken
            assert not old, f"{point}: old acts were sent: {await scene.stories(old)}"
    await scene.until_nothing_is_owed()
    found = await gather(scene.ground.database_url, scene.ground.books_url, scene.ground.namespace, [])
    found.intents = {saga_id: vars(order) for saga_id, order in scene.started.items()}
    assert breaches(found) == []
