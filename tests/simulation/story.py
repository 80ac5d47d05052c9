"""One seed, from its first process to its last look: a workload under a weather, then calm, then the end of every saga."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from watership.bus.topology import Queue, Topology
from watership.machine.changes import Compensated, Completed
from watership.machine.state import Action, Status
from watership.messages import AdminVerb
from watership.settings import Settings
from watership.testing.memory_plans import MemoryBacking
from watership.testing.mischief import NoMischief
from watership.testing.virtual_loop import Stuck
from watership.testing.world import Process, World
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.reaper import Reaper
from watership_worker import Worker
from watership_worker.consumer import Consumer

from tests.simulation import books, flow, workload
from tests.simulation.evidence import LawBroken
from tests.simulation.laws import Laws
from tests.simulation.people import People
from tests.simulation.town import STEPS, Town, TownContainer, handler_of
from tests.simulation.weather import PAUSES_S, Faults, Weather
from tests.simulation.workload import Workload

NAMESPACE = "sim"
CALM_MAX_S = 900.0  # from the last fault to the end of every saga
LOOK_EVERY_S = 0.5
HELP_EVERY_S = 7.0
LISTENER = f"{NAMESPACE}.listener"
# What the product logs as an error while it does the right thing.
EXPECTED_ERRORS = ("an announcement could not be kept",)

_DEFAULTS = Settings(_env_file=None)


@dataclasses.dataclass
class Told:
    """What came of a seed."""

    seed: int
    broken: LawBroken | None
    ends: dict[str, int]
    weather: Weather
    turns: int


class _Errors(logging.Handler):
    """Keeps what the product logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if not words.startswith(EXPECTED_ERRORS):
            why = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            self.seen.append(f"{words}\n{why}")


class Story:
    """See the module."""

    def __init__(
        self,
        seed: int,
        *,
        trace: Callable[[str], None] | None = None,
        weather: Weather | None = None,
        work: Workload | None = None,
    ) -> None:
        chance = random.Random(f"{seed}:story")
        self.seed = seed
        self.work = work or flow.widened(
            workload.drawn(random.Random(f"{seed}:workload")), random.Random(f"{seed}:flow")
        )
        self.weather = weather or Weather.drawn(random.Random(f"{seed}:weather"))
        self.settings = _DEFAULTS.model_copy(
            update={
                "namespace": NAMESPACE,
                "batch_size_max": chance.choice((1, 2, 5, 200)),
                "reap_batch_max": chance.choice((1, 2, 200)),
                "reap_every_s": chance.choice((1.0, 2.0, 4.0)),
                "prefetch": chance.choice((1, 3, 500)),
                "concurrency": chance.choice((1, 2, 50)),
            }
        )
        self.laws = Laws((self.settings.batch_size_max, self.settings.reap_batch_max))
        self.faults = Faults(self.weather, random.Random(f"{seed}:faults"))
        self.world = World(seed, mischief=self.faults, witness=self.laws, trace=trace)
        self.laws.world = self.world
        self.laws.plans = {plan.hash: plan for plan in self.work.plans}
        self.town = Town(self.world, random.Random(f"{seed}:town"), self.work.manners, self._is_awaited)
        self.laws.effects_so_far = lambda: len(self.town.effects)
        self.topology = Topology(NAMESPACE)
        self.people = People(self.world, self.topology, LISTENER, chance)
        self.laws.signals = self.people.signals
        self.chance = chance
        self._errors = _Errors()

    def run(self) -> Told:
        """Runs the seed to its end, or to the first broken law."""
        logger = logging.getLogger("watership")
        logger.addHandler(self._errors)
        level, propagates = logger.level, logger.propagate
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            self.world.run(self._told())
        except Stuck as error:
            self.laws.breaks("liveness", str(error))
        finally:
            logger.removeHandler(self._errors)
            logger.setLevel(level)
            logger.propagate = propagates
        ends: dict[str, int] = {}
        for state in self.laws.states.values():
            ends[state.status.value] = ends.get(state.status.value, 0) + 1
        return Told(self.seed, self.laws.first, ends, self.weather, self.world.loop.turns)

    async def _told(self) -> None:
        self.laws.broken = asyncio.get_running_loop().create_future()
        story = asyncio.create_task(self._story())
        either: set[asyncio.Future[Any]] = {story, self.laws.broken}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if story.done():
            story.result()

    async def _story(self) -> None:
        self._lay_the_ground()
        self._start_processes()
        orders = list(self.people.orders(self.work))
        strikes = asyncio.create_task(self._strikes())
        await asyncio.sleep(self.work.calm_at_s)
        strikes.cancel()
        await asyncio.gather(strikes, return_exceptions=True)
        await self._calm()
        await asyncio.gather(*orders)
        await self._until_all_ended()
        self._look_at_the_end()

    # --- processes

    def _lay_the_ground(self) -> None:
        for exchange in self.topology.exchanges():
            self.world.broker.declare_exchange(exchange)
        for queue in self.topology.orchestrator_queues():
            self.world.broker.declare_queue(queue)
        self.world.broker.declare_queue(Queue(LISTENER, self.topology.events_exchange, "#", None))

    def _start_processes(self) -> None:
        world, chance = self.world, self.chance
        world.restart_s = lambda: self.faults_chance().choice((0.1, 1.0, 4.0))
        for number in range(chance.choice((1, 1, 2, 3))):
            world.start(f"orchestrator-{number}", self._orchestrator)
        for number in range(chance.choice((1, 1, 2))):
            world.start(f"reaper-{number}", self._reaper)
        for number, steps in enumerate(self.work.workers):
            world.start(f"worker-{number}", self._worker_of(steps))
        for number, steps in enumerate(self.work.idlers):
            world.start(f"idler-{number}", self._idler_of(steps))

    def faults_chance(self) -> random.Random:
        """The dice of what happens from outside."""
        return self.world.chance

    def _backing(self, process: Process) -> MemoryBacking:
        return MemoryBacking(self.world.database, NAMESPACE, process, now_s=process.now_s)

    def _orchestrator(self, process: Process) -> Orchestrator:
        backing = self._backing(process)
        return Orchestrator(self.settings, process.bus, backing, now_s=process.now_s, chance=process.chance)

    def _reaper(self, process: Process) -> Reaper:
        backing = self._backing(process)
        return Reaper(self.settings, process.bus, backing, now_s=process.now_s, chance=process.chance)

    def _worker_of(self, steps: list[str]) -> Callable[[Process], Consumer]:
        def make(process: Process) -> Consumer:
            handlers = [handler_of(name, self.work.manners[name]) for name in steps]
            worker = Worker(TownContainer(self.town, process), handlers=handlers)
            return Consumer(self.settings, process.bus, worker, chance=process.chance)

        return make

    def _idler_of(self, steps: list[str]) -> Callable[[Process], Consumer]:
        """A worker that consumes these steps' queues, and serves another step: an old version, say."""

        def make(process: Process) -> Consumer:
            handler = type("Other", (STEPS[steps[0]],), {"name": "Other", "queue": steps[0]})
            worker = Worker(TownContainer(self.town, process), handlers=[handler])
            return Consumer(self.settings, process.bus, worker, chance=process.chance)

        return make

    # --- strikes from outside

    async def _strikes(self) -> None:
        if self.weather.strikes_s is None:
            return
        chance, drains = self.faults_chance(), list[asyncio.Task[None]]()
        while True:
            await asyncio.sleep(chance.expovariate(1 / self.weather.strikes_s))
            process = chance.choice(list(self.world.processes.values()))
            roll = chance.random()
            if roll < 0.25:
                self.world.crash(process)
            elif roll < 0.35:
                drains.append(asyncio.create_task(self.world.drain(process)))
            elif roll < 0.6:
                self.world.pause(process, chance.choice(PAUSES_S))
            elif roll < 0.8:
                self.world.cut(process, chance.choice((0.0, 0.5, 4.0, 12.0)))
            elif roll < 0.87:
                await self._database_is_away(chance.choice((0.2, 2.0, 8.0)))
            elif roll < 0.92:
                self.laws.steps_clock = True
                self.world.clock_step_ms += chance.choice((-3_000, -200, 200, 3_000, 60_000))
                self.world.tell("database", f"its clock is moved to {self.world.now_ms()}")
            else:
                await self._a_queue_is_full(chance.choice((1.0, 6.0)))

    async def _database_is_away(self, seconds: float) -> None:
        self.world.tell("database", f"is away for {seconds} s")
        self.faults.outage = True
        for process in self.world.processes.values():
            self.world.database.disconnect(process)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.faults.outage = False

    async def _a_queue_is_full(self, seconds: float) -> None:
        queues = [queue.name for queue in self._work_queues()]
        queue = self.faults_chance().choice(queues)
        self.world.tell("broker", f"{queue} is full for {seconds} s")
        self.world.broker.limit(queue, 0)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.world.broker.limit(queue, None)

    def _work_queues(self) -> Iterator[Queue]:
        wanted = [self.topology.queue_name(key) for key in ("start", "replies", "admin", "control")]
        yield from (queue for queue in self.topology.orchestrator_queues() if queue.name in wanted)
        for step in self.work.manners:
            queue = self.topology.step_queue(step)
            if self.world.broker.has(queue):
                yield queue

    # --- the end

    async def _calm(self) -> None:
        """The faults stop; everybody is there, and behaves."""
        self.world.tell("WEATHER", "calm")
        self.world.mischief = NoMischief()
        self.world.revive()
        self.town.heal()
        for role, process in list(self.world.processes.items()):
            if role.startswith("idler"):
                self.world.restart_s = None
                self.world.crash(process)
        self.world.restart_s = lambda: 1.0
        for plan in self.work.plans:
            await self.people.register(plan)

    async def _until_all_ended(self) -> None:
        loop = asyncio.get_running_loop()
        until_s, help_at_s = loop.time() + CALM_MAX_S, loop.time() + HELP_EVERY_S
        while waits_for := self._waits_for():
            if loop.time() > until_s:
                self.laws.breaks("liveness", f"{CALM_MAX_S:g} s after the last fault: {'; '.join(waits_for)}")
                return
            if self._errors.seen or self.world.unexpected:
                break
            if loop.time() >= help_at_s:
                help_at_s = loop.time() + HELP_EVERY_S
                await self._help_the_parked()
            await asyncio.sleep(LOOK_EVERY_S)
        for error in self._errors.seen:
            self.laws.breaks("no_bug", error)
        for unexpected in self.world.unexpected:
            self.laws.breaks("no_bug", f"{unexpected.process} ended by {unexpected.error}")

    async def _help_the_parked(self) -> None:
        for saga_id, row in list(self.world.database.sagas.items()):
            if row["parked_reason"] is not None:
                verb = AdminVerb.COMPENSATE if row["status"] == "PENDING" else AdminVerb.RETRY
                await self.people.help(saga_id, verb)

    def _waits_for(self) -> list[str]:
        """What is not over yet, in words."""
        waits = []
        for queue in self._work_queues():
            depth = self.world.broker.depth(queue.name)
            if depth.ready or depth.unacked:
                waits.append(f"{queue.name} has {depth.ready} messages, and {depth.unacked} unacknowledged")
        for saga_id, row in self.world.database.sagas.items():
            over = Status(row["status"]).terminal and row["wake_at_ms"] is None and not row["owed"]
            if not over or row["parked_reason"] is not None:
                waits.append(f"saga {saga_id.int} is {row['status']} ({row['parked_reason']})")
        return waits

    def _look_at_the_end(self) -> None:
        started = {order.saga_id for order in self.work.starts}
        self.laws.check(
            "promise_nothing_is_lost",
            started == set(self.laws.states),
            f"started were {sorted(one.int for one in started)}, there are {sorted(one.int for one in self.laws.states)}",
        )
        for law, words in books.offences(self.laws, self.town):
            self.laws.breaks(law, words)
        told: dict[uuid.UUID, int] = {}  # the newest end that was told
        for message in self.world.broker.peek(LISTENER):
            if message.message_id.endswith(":saga-ended:event"):
                saga, seq, _ = message.message_id.split(":", 2)
                told[uuid.UUID(saga)] = max(int(seq), told.get(uuid.UUID(saga), 0))
        for saga_id in self.laws.states:
            ended_at = self._ended_at(saga_id)
            self.laws.check(
                "law_01_durable_before_visible",
                told.get(saga_id, -1) >= ended_at,
                f"that saga {saga_id.int} ended (entry {ended_at}) was never told",
            )

    def _ended_at(self, saga_id: uuid.UUID) -> int:
        """The log entry by which the saga ended; it may have moved since."""
        entries = self.laws.entries[saga_id]
        ends = (Completed, Compensated)
        return max((one.seq for one in entries if any(isinstance(c, ends) for c in one.changes)), default=0)

    def _is_awaited(self, saga_id: uuid.UUID, step: str, action: Action, attempt: int) -> bool:
        state = self.laws.states.get(saga_id)
        return state is not None and state.awaits(step, action, attempt)
