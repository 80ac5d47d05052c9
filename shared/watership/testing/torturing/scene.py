"""One run: an orchestrator, a reaper and a worker in a world of their own, one saga, and what a trial does to them.

It lays the ground, starts the saga as a client does, waits until all is quiet, and asks the user's check. It judges nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from watership import codec
from watership.adapters.containers import as_container
from watership.bus.protocol import Fate
from watership.bus.topology import Topology
from watership.machine.directions import GRACE_MS
from watership.machine.nodes import SleepPlan, WaitPlan
from watership.machine.plan import Plan
from watership.machine.state import SagaState, Status
from watership.messages import Signal, StartSaga, WireMessage
from watership.saga.compile import Definition
from watership.saga.models import shape_of
from watership.saga.storage.protocol import LogEntry
from watership.saga.storage.rows import changes_from_json, history_lines, state_from_row
from watership.settings import Settings
from watership.testing.memory_database import PlanRecord
from watership.testing.memory_plans import MemoryBacking, MemoryPlanBook
from watership.testing.stand_ins import StandIn
from watership.testing.torturing.branches import Branch
from watership.testing.torturing.journal import Journal
from watership.testing.torturing.points import Trial
from watership.testing.torturing.report import TorturedSaga
from watership.testing.torturing.rig import Rig, RiggedWorker
from watership.testing.torturing.watch import Watch
from watership.testing.virtual_loop import Stuck
from watership.testing.world import Process, World
from watership_orchestrator.orchestrator import Orchestrator
from watership_orchestrator.reaper import Reaper
from watership_worker.consumer import Consumer

NAMESPACE = "torture"
SAGA_ID = uuid.UUID("7041042e-0000-4000-8000-000000000001")
READY_EVERY_S = 0.02
LOOK_EVERY_S = 2.0
CLIENT_RETRY_S = 1.0
TURNS_MAX = 500_000  # of the loop, in one run: a hundred times what one needs
# What the product logs as an error while it does the right thing.
EXPECTED_ERRORS = ("an announcement could not be kept",)

Fresh = Callable[[], Any]
Check = Callable[[TorturedSaga[Any]], Any]


@dataclasses.dataclass(frozen=True)
class Times:
    """How long things take, in virtual seconds. See `times_of`."""

    stop_s: float  # a process stands still: longer than every deadline
    reap_every_s: float
    patience_s: float  # then a saga that has not ended is stuck


@dataclasses.dataclass(frozen=True)
class Cast:
    """What every run of one torture shares. ``context`` is JSON data."""

    definition: Definition
    context: dict[str, Any]
    context_type: type[Any]
    worker: RiggedWorker
    stand_ins: Mapping[str, StandIn]
    behind_barrier: bool
    container: object | None
    check: Check | None
    fresh: Fresh | None
    signals: Mapping[str, Any]
    seed: int | str
    times: Times
    settings: Settings

    @property
    def plan(self) -> Plan:
        """The saga's plan."""
        return self.definition.plan


@dataclasses.dataclass
class Ending:
    """What came of a run. ``state`` None: the saga was never created. ``stuck``: what it still waits for."""

    trial: Trial
    watch: Watch
    journal: Journal
    state: SagaState | None = None
    stuck: str | None = None
    unbalanced: str | None = None  # what the user's check said
    has_check: bool = False
    bugs: list[str] = dataclasses.field(default_factory=list)


class Scene:
    """See the module."""

    def __init__(
        self, cast: Cast, branch: Branch, trial: Trial, *, records: bool, trace: Callable[[str], None] | None = None
    ) -> None:
        self.cast = cast
        self.branch = branch
        self.journal = Journal()
        self.watch = Watch(trial.faults, cast.times.stop_s, records=records)
        self.world = World(cast.seed, mischief=self.watch, witness=self.watch, trace=trace)
        self.ending = Ending(trial, self.watch, self.journal)
        self._topology = Topology(NAMESPACE)
        self._check: Check | None = cast.check
        self._is_over = False  # what happens from here is told nobody
        self.world.loop.turns_max = TURNS_MAX

    def play(self) -> Ending:
        """Runs it to its end."""
        with _errors() as errors:
            try:
                self.world.run(self._story(errors))
            except Stuck as error:
                if not self._is_over:
                    self.ending.stuck = self.ending.stuck or str(error)
        self.ending.state = self._state()
        return self.ending

    async def _story(self, errors: Sequence[str]) -> None:
        container = await self._fresh()
        self.ending.has_check = self._check is not None
        rig = Rig(
            container=as_container(container),
            stand_ins=self.cast.stand_ins,
            branch=self.branch,
            journal=self.journal,
            watch=self.watch,
            behind_barrier=self.cast.behind_barrier,
        )
        self._lay_the_ground()
        self._start_processes(rig)
        while not self._is_ready():  # noqa: ASYNC110 - nobody tells, and in virtual time looking costs nothing
            await asyncio.sleep(READY_EVERY_S)
        self.watch.arm(self.world)
        clients = [asyncio.create_task(self._start()), asyncio.create_task(self._signal())]
        try:
            await self._until_quiet()
        finally:
            self.watch.disarm()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            # Now, and not later: what is still under way is torn down when the world ends, and complains of it.
            self.ending.bugs.extend(f"the {one.process} ended: {one.error}" for one in self.world.unexpected)
            self.ending.bugs.extend(errors)
        await self._ask()
        self._is_over = True
        await rig.bury(self.world.loop)

    async def _fresh(self) -> object:
        if self.cast.fresh is None:
            return self.cast.container
        given = await _maybe(self.cast.fresh())
        if isinstance(given, tuple) and len(given) == 2:
            container, self._check = given
            return container
        return given if given is not None else self.cast.container

    # --- services

    def _lay_the_ground(self) -> None:
        broker, plan = self.world.broker, self.cast.plan
        for exchange in self._topology.exchanges():
            broker.declare_exchange(exchange)
        for queue in self._topology.orchestrator_queues():
            broker.declare_queue(queue)
        record = PlanRecord(plan.saga, _plan_json(plan), self.world.now_ms())
        self.world.database.plans[NAMESPACE, plan.hash] = record

    def _start_processes(self, rig: Rig) -> None:
        world, settings = self.world, self.cast.settings
        world.restart_s = lambda: 1.0

        def backing(process: Process) -> MemoryBacking:
            services = MemoryBacking(world.database, NAMESPACE, process, now_s=process.now_s)
            services.plans = _KnownPlans(world.database, NAMESPACE, process, now_s=process.now_s)
            return services

        def orchestrator(process: Process) -> Orchestrator:
            return Orchestrator(settings, process.bus, backing(process), now_s=process.now_s, chance=process.chance)

        def reaper(process: Process) -> Reaper:
            return Reaper(settings, process.bus, backing(process), now_s=process.now_s, chance=process.chance)

        def worker(process: Process) -> Consumer:
            return Consumer(settings, process.bus, self.cast.worker.for_process(process, rig), chance=process.chance)

        world.start("orchestrator", orchestrator)
        world.start("reaper", reaper)
        world.start("worker", worker)

    def _is_ready(self) -> bool:
        queues = [self._topology.step_queue(queue).name for queue in self.cast.worker.queues()]
        queues += [self._topology.queue_name("dead"), self._topology.queue_name("replies")]
        return all(self.world.broker.depth(queue).consumers for queue in queues)

    # --- clients: they try until the broker has it

    async def _start(self) -> None:
        plan = self.cast.plan
        body = StartSaga(saga=plan.saga, saga_id=SAGA_ID, context=self.cast.context, plan=plan.hash)
        await self._send("start", body, message_id=f"{SAGA_ID}:start", correlation_id=str(SAGA_ID))

    async def _signal(self) -> None:
        waiting = {name: data for name, data in self.cast.signals.items() if name not in self.branch.silent}
        while waiting:
            for name in sorted(waiting.keys() & self.watch.waits):
                body = Signal(saga_id=SAGA_ID, name=name, signal_id=f"signal-{name}", data=waiting.pop(name))
                await self._send("control", body, message_id=f"{SAGA_ID}:signal:{name}", correlation_id=name)
            await self.watch.turn()

    async def _send(self, key: str, body: WireMessage, *, message_id: str, correlation_id: str) -> None:
        message = body.addressed(self._topology.exchange, key, message_id=message_id, correlation_id=correlation_id)
        while True:
            sending = self.watch.sending("client", message)
            fates = [self.world.broker.route(message) for _ in range(sending.copies if not sending.late_s else 0)]
            if sending.late_s:
                self.world.loop.call_later(sending.late_s, self.world.broker.route, message)
            if fates and fates[0] is Fate.CONFIRMED and sending.confirmed:
                return
            await asyncio.sleep(CLIENT_RETRY_S)

    # --- the end

    async def _until_quiet(self) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.cast.times.patience_s
        while True:
            if loop.time() < self.watch.busy_until_s:
                await asyncio.sleep(self.watch.busy_until_s - loop.time())
            saga, broker = self._saga_waits_for(), self._broker_holds()
            if not saga and not broker:
                return
            if loop.time() > until_s:
                self.ending.stuck = f"after {self.cast.times.patience_s / 3600:.1f} h {'; '.join(saga + broker)}"
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.cast.times.reap_every_s if saga else LOOK_EVERY_S):
                    await self.watch.turn()

    def _saga_waits_for(self) -> list[str]:
        """Why it is not over yet, in words."""
        row = self.world.database.sagas.get(SAGA_ID)
        if row is None:
            return ["the saga was not created"]
        over = Status(row["status"]).terminal and row["wake_at_ms"] is None and not row["owed"]
        return [] if over or row["parked_reason"] is not None else [f"the saga is {row['status']} at {row['step']}"]

    def _broker_holds(self) -> list[str]:
        held = []
        for name in self._queues():
            depth = self.world.broker.depth(name)
            if depth.ready or depth.unacked:
                held.append(f"{name} has {depth.ready} messages, and {depth.unacked} unacknowledged")
        return held

    def _queues(self) -> Iterator[str]:
        for key in ("start", "replies", "control"):
            yield self._topology.queue_name(key)
        for queue in self.cast.worker.queues():
            yield self._topology.step_queue(queue).name

    def _state(self) -> SagaState | None:
        row = self.world.database.sagas.get(SAGA_ID)
        return state_from_row(row) if row is not None else None

    async def _ask(self) -> None:
        """Has the user look at the user's books."""
        state = self._state()
        if self._check is None or state is None or self.ending.stuck or state.parked_reason is not None:
            return
        entries = [
            LogEntry(row.seq, row.at_ms, row.cause, changes_from_json(row.changes))
            for row in self.world.database.logs[SAGA_ID]
        ]
        saga = TorturedSaga(
            saga_id=SAGA_ID,
            status=state.status,
            context=shape_of(self.cast.context_type).load(state.context),
            history=history_lines(SAGA_ID, entries),
            trial=self.ending.trial.words,
        )
        try:
            said = await _maybe(self._check(saga))
        except Exception as error:  # noqa: BLE001 - whatever it raises says that the books do not balance
            words = str(error).strip() or repr(error)
            self.ending.unbalanced = words if isinstance(error, AssertionError) else f"{type(error).__name__}: {words}"
            return
        if isinstance(said, str) and said:
            self.ending.unbalanced = said
        elif said is False:
            self.ending.unbalanced = "the check returned False"


def times_of(plan: Plan) -> Times:
    """How long a process must stand still to outlive every deadline, and how long a saga may take."""
    steps = list(plan.by_name.values())
    longest_s = (max(step.queue_within_ms + step.timeout_ms for step in steps) + GRACE_MS) / 1000
    pauses_s = sum(node.duration_ms for node in plan.nodes if isinstance(node, SleepPlan)) / 1000
    pauses_s += sum(node.timeout_ms for node in plan.nodes if isinstance(node, WaitPlan)) / 1000
    retries = [retry for step in steps for retry in (step.retry, step.compensation_retry, step.verify_retry) if retry]
    delays_s = sum(retry.delay_max_ms / 1000 * min(retry.attempts_max or 3, 20) for retry in retries)
    reap_every_s = max(1.0, longest_s / 40, pauses_s / 50)
    stop_s = longest_s + 2 * reap_every_s + 30.0
    return Times(stop_s, reap_every_s, patience_s=3 * (stop_s * len(steps) + pauses_s + delays_s) + 600.0)


def settings_of(times: Times) -> Settings:
    """The services' own; they read no environment here. A worker that is there need not say so again."""
    return Settings(_env_file=None).model_copy(
        update={
            "namespace": NAMESPACE,
            "reap_every_s": times.reap_every_s,
            "announce_every_s": times.patience_s,
        }
    )


class _KnownPlans(MemoryPlanBook):
    """The plans of a service that has run for a while: what it once read and checked, it knows. Plans never change."""

    _read_before: ClassVar[dict[str, Plan]] = {}
    _checked_before: ClassVar[dict[str, Any]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._by_hash, self._validators = self._read_before, self._checked_before


_plans: dict[str, str] = {}


def _plan_json(plan: Plan) -> str:
    found = _plans.get(plan.hash)
    if found is None:
        found = _plans[plan.hash] = codec.dumps(plan.to_data()).decode()
    return found


async def _maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@contextmanager
def _errors() -> Iterator[Sequence[str]]:
    """What the product logs as errors in this thread; nothing of what it logs here goes anywhere else."""
    seen: list[str] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        words = record.getMessage()
        if record.levelno >= logging.ERROR and not words.startswith(EXPECTED_ERRORS):
            why = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            seen.append(f"{words}\n{why}".strip())
        return False

    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "watership"]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield seen
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
