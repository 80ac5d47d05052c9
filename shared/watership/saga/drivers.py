"""All that one store has running in one event loop: its drives, and the task that recovers what others left.

Shared by every mediator on that store in that loop, so that a mediator for each request costs nothing and leaks nothing.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

from watership import codec
from watership.clock import Clock, SystemClock
from watership.container import Container
from watership.errors import (
    ConfigurationError,
    InvalidPayload,
    LimitExceeded,
    OperationRefused,
    SagaConflict,
    SignalRefused,
    StoreUnavailable,
    UnknownSaga,
)
from watership.machine import events as e
from watership.machine.nodes import PAUSE_MS_MAX
from watership.saga.compile import Definition
from watership.saga.driver import Drive
from watership.saga.early import EarlySignals
from watership.saga.job import FOLLOW_EVERY_MS, Job, LetGo, Seat, Start
from watership.saga.models import shape_of
from watership.saga.pruned import why_gone
from watership.saga.signals import signal_event
from watership.saga.storage.protocol import EarlySignal, SagaStorage, StartRow
from watership.saga.taking_up import park, readable
from watership.saga.watch import SagaWatch
from watership.stepping import TWO_TURNS

log = logging.getLogger("watership.driver")

RECOVER_AT_ONCE_MAX = 100
DRAIN_S = 30.0
START_HOLD_MS = 30_000

_per_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Drivers]] = weakref.WeakKeyDictionary()


def drivers_for(storage: SagaStorage, clock: Clock | None = None) -> Drivers:
    """The one `Drivers` of this store in the running event loop."""
    of_loop = _per_loop.setdefault(asyncio.get_running_loop(), {})
    found = of_loop.get(storage.key)
    if found is None:
        found = of_loop[storage.key] = Drivers(storage, clock or SystemClock())
    return found


class Drivers:
    """The drives of one store in one event loop. ``alone``: nobody else moves sagas of this store."""

    def __init__(self, storage: SagaStorage, clock: Clock, *, alone: bool = False) -> None:
        self.storage = storage
        self._drives: dict[uuid.UUID, Drive] = {}
        self._recovered: set[uuid.UUID] = set()
        self._jobs: dict[str, Job] = {}
        follow_every_ms = PAUSE_MS_MAX if alone else FOLLOW_EVERY_MS
        self._seat = Seat(storage, clock, storage.keeper(), follow_every_ms=follow_every_ms, forget=self._forget)
        self._early = EarlySignals(self.take_early)
        self._recovery: asyncio.Task[None] | None = None
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Nothing is driven by these any more: whoever comes now needs others."""
        return self._closed

    def used_by(self, user: object) -> None:
        """``user`` counts as using these drives until it says `left_by`, or is gone."""
        self._users.add(user)

    async def left_by(self, user: object) -> None:
        """``user`` is done. With the last one, the drives stop after the steps that run now."""
        self._users.discard(user)
        if not self._users:
            await self.close()

    async def start(self, job: Job, context: dict[str, Any], saga_id: uuid.UUID, *, gated: bool = False) -> Drive:
        """Makes the saga, or joins it. Durable on return. Raises `SagaConflict` on other input."""
        start = Start.of(job.definition.plan.saga, context, saga_id)
        drive = self._drives.get(saga_id)
        if drive is None or drive.ended:
            drive = self._launch(saga_id, job, start, gated=gated)
        elif drive.start is None:  # recovery or `result` brought it here: its input is in the store
            record = await self.storage.load(saga_id)
            if record is not None:
                start.check_same(record, job.definition.plan.saga)
        elif drive.start.input_hash != start.input_hash:
            raise SagaConflict(f"saga {saga_id} was started with other input; use another id, or the same input")
        drive.is_watched = True
        try:
            await TWO_TURNS  # in memory, it has begun then
            if not drive.watch.has_begun:
                await drive.watch.begun()
            if job.definition.plan.waits:
                for signal in await self.storage.early_signals(saga_id=saga_id):
                    self._early.begin(job, signal)
                await asyncio.sleep(0)  # each is with the drive now, ahead of time and of whatever else is asked
        finally:
            if drive.may_drive is not None:
                drive.may_drive.set()
        return drive

    async def join(self, job: Job, saga_id: uuid.UUID, *, request: e.Event | None = None) -> Drive:
        """Drives or follows a saga that exists, and gives it an event if there is one. Raises `SagaNotFound`."""
        drive = self._drive_of(saga_id, job)
        drive.is_watched = True
        if request is not None:
            drive.request(request)
        await drive.watch.begun()
        return drive

    async def ask(self, job: Job, saga_id: uuid.UUID, event: e.Event, cause: str) -> str | None:
        """Gives a saga that exists an event; once that is on record, why it was refused, or None.

        Raises what kept it from being recorded: the store is away, a newer version wrote the saga.
        """
        while not self._closed:
            drive = self._drive_of(saga_id, job)
            answer = drive.request(event, cause)
            try:
                return await answer
            except LetGo:
                await asyncio.sleep(0)  # it ended meanwhile: another drive takes the event up
        raise LetGo(f"saga {saga_id}: this process was closed before it took that up; try again")

    async def signal(self, job: Job, signal: EarlySignal) -> None:
        """Gives a saga that exists its signal. Raises `SignalRefused`."""
        cause = f"signal:{signal.signal_id}"
        refused = await self.ask(job, signal.saga_id, signal_event(job.definition, signal), cause)
        if refused is None:
            return
        if all(entry.cause != cause for entry in await self.storage.history(signal.saga_id)):
            raise SignalRefused(refused)  # else this very signal was taken before

    async def take_early(self, job: Job, signal: EarlySignal) -> None:
        """Gives a saga a signal that came before it; one that it refuses is told in the log of this process alone."""
        try:
            await self.signal(job, signal)
        except SignalRefused as error:
            log.warning("%s", error)
        await self.storage.forget_signal(signal)

    def _drive_of(self, saga_id: uuid.UUID, job: Job) -> Drive:
        """The one that drives or follows it here. One that has ended, and is not forgotten yet, would take nothing up."""
        drive = self._drives.get(saga_id)
        return drive if drive is not None and not drive.ended else self._launch(saga_id, job, None)

    def _launch(self, saga_id: uuid.UUID, job: Job, start: Start | None, *, gated: bool = False) -> Drive:
        loop = asyncio.get_running_loop()
        drive = Drive(self._seat, saga_id, job, loop, gated=gated)
        drive.start = start  # at once: another start of this id may come before its task has begun
        self._drives[saga_id] = drive
        name = f"saga {saga_id if start is None else start.saga_id}"
        drive.task = loop.create_task(drive.main(start), name=name)
        return drive

    def _forget(self, drive: Drive) -> None:
        saga_id = drive.saga_id
        if self._drives.get(saga_id) is drive:  # else another one follows it already
            del self._drives[saga_id]
            self._recovered.discard(saga_id)
        if not drive.watch.over:
            drive.watch.failed(LetGo(f"saga {saga_id}: this process let it go; recovery takes it up again"))

    # --- recovery

    def recover_in_background(self, job: Job, *, every_s: float) -> None:
        """From now on, sagas of this name that nobody drives are taken up. 0 turns it off."""
        self._jobs[job.definition.plan.saga] = job
        if every_s > 0 and self._recovery is None:
            self._recovery = asyncio.get_running_loop().create_task(self._recover(every_s), name="saga recovery")

    async def _recover(self, every_s: float) -> None:
        while True:
            try:
                await self.recover_once()
            except (ConfigurationError, StoreUnavailable) as error:  # it says itself what to do
                log.warning("recovery could not look for sagas, and looks again in %s s: %s", every_s, error)
            except Exception:  # a bug, perhaps; but recovery is level-triggered, and looks again
                log.exception("recovery could not look for sagas; it looks again in %s s", every_s)
            await asyncio.sleep(every_s)

    async def recover_once(self) -> list[SagaWatch]:
        """Takes up what is due now, at most `RECOVER_AT_ONCE_MAX` at a time; the sagas that it took up."""
        room = RECOVER_AT_ONCE_MAX - len(self._recovered)  # what was started here must not starve what was left
        if room <= 0 or not self._jobs:
            return []
        watches = await self._take_starts(room)
        for saga_id in await self.storage.due(names=list(self._jobs), limit=room):
            if saga_id in self._drives:
                continue
            record = await self.storage.load(saga_id)
            if record is None or saga_id in self._drives:
                continue
            self._recovered.add(saga_id)
            log.info("saga %s %s: nobody drives it; taking it up", record.state.name, saga_id)
            drive = self._launch(saga_id, self._jobs[record.state.name], None)
            drive.is_watched = False
            watches.append(drive.watch)
        await self._recover_signals()
        return watches

    async def _recover_signals(self) -> None:
        """Signals that came while their saga was being made, by a process that did not live to see it."""
        for signal in await self.storage.early_signals(names=list(self._jobs)):
            record = await self.storage.load(signal.saga_id)
            job = self._jobs.get(record.state.name) if record is not None else None
            if job is not None:
                self._early.begin(job, signal)

    async def _take_starts(self, room: int) -> list[SagaWatch]:
        """Takes up what was started in transactions. Whoever fails here leaves the row to the next look."""
        rows = await self.storage.take_starts(names=list(self._jobs), limit=room, hold_ms=START_HOLD_MS)
        taken = await asyncio.gather(*(self._take_start(row) for row in rows), return_exceptions=True)
        for row, outcome in zip(rows, taken, strict=True):
            if isinstance(outcome, BaseException):
                log.error("saga %s %s could not be started; trying again", row.saga, row.saga_id, exc_info=outcome)
        return [outcome for outcome in taken if isinstance(outcome, SagaWatch)]

    async def _take_start(self, row: StartRow) -> SagaWatch | None:
        """Starts its saga, then removes the row: in between, a second start of the same is the same saga (law 11)."""
        job, watch = self._jobs[row.saga], None
        try:
            context = readable(row, job.definition)
            watch = (await self.start(job, context, row.saga_id)).watch
            self._recovered.add(row.saga_id)
        except (InvalidPayload, LimitExceeded) as error:
            await park(self.storage, row, str(error))
        except SagaConflict as error:
            await self.storage.keep_in_ledger(row.saga_id, str(error), codec.dumps({"saga": row.saga}).decode())
        await self.storage.start_done(row.start_id)
        return watch

    async def close(self) -> None:
        """Stops recovery; lets every saga go after the steps that run now, at most `DRAIN_S` seconds."""
        self._closed = True
        of_loop = _per_loop.get(asyncio.get_running_loop(), {})
        if of_loop.get(self.storage.key) is self:
            del of_loop[self.storage.key]  # first: whoever comes now gets drives of their own
        if self._recovery is not None:
            self._recovery.cancel()
            self._recovery = None
        for drive in self._drives.values():
            drive.stop()
        tasks = [drive.task for drive in self._drives.values() if drive.task is not None]
        tasks += self._early.tasks
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for drive in list(self._drives.values()):  # ended before they had begun
            self._forget(drive)
        if self._seat.keeper is not None:
            self._seat.keeper.stop()
        await self.storage.close()


class EmbeddedRunner:
    """A mediator's back when sagas run in this process."""

    def __init__(
        self,
        storage: SagaStorage,
        container: Container,
        *,
        recover_every_s: float,
        clock: Clock | None = None,
        barrier: type[Any] | None = None,
    ) -> None:
        self._storage = storage
        self._container = container
        self._recover_every_s = recover_every_s
        self._clock = clock
        self._barrier = barrier
        self._jobs: dict[str, Job] = {}
        # Those that it was with last, and their loop: one value, since another thread may be here, too.
        self._met: tuple[Drivers, weakref.ref[asyncio.AbstractEventLoop]] | None = None

    def bind(self, definitions: Iterable[Definition]) -> None:
        """The sagas that this process knows, and so can recover."""
        self._jobs = {
            definition.plan.saga: Job(definition, self._container, barrier=self._barrier) for definition in definitions
        }

    async def open(self) -> None:
        """Begins to recover what others left, even if no saga is ever started here."""
        self._drivers()

    def _drivers(self) -> Drivers:
        loop = asyncio.get_running_loop()
        met = self._met
        if met is not None and not met[0].closed and met[1]() is loop:
            return met[0]
        drivers = drivers_for(self._storage, self._clock)
        drivers.used_by(self)
        for job in self._jobs.values():
            drivers.recover_in_background(job, every_s=self._recover_every_s)
        self._met = drivers, weakref.ref(loop)
        return drivers

    async def start(
        self, definition: Definition, context: dict[str, Any], saga_id: uuid.UUID, *, progress: bool = True
    ) -> SagaWatch:
        """Starts the saga, or joins it. Durable on return."""
        return (await self._drivers().start(self._jobs[definition.plan.saga], context, saga_id)).watch

    async def write_start(self, definition: Definition, context: Any, saga_id: uuid.UUID, session: Any) -> None:
        """Writes the start in the caller's transaction, in the database that the storage is on."""
        namespace = getattr(self._storage, "namespace", None)
        if namespace is None:
            raise ConfigurationError("a start in a transaction needs sagas in a database: these live in memory")
        from watership.saga.storage.starts import write_start

        plan = definition.plan
        data = shape_of(type(context)).dump(context)
        body = codec.encode_context(data, what=f"saga {plan.saga} {saga_id}: the context")
        await write_start(session, namespace=namespace, driver="embedded", plan=plan, saga_id=saga_id, context=body)
        self._drivers()  # recovery must run, or nobody takes it up

    async def find(self, saga_id: uuid.UUID) -> SagaWatch:
        """Joins a saga that exists. Raises `SagaNotFound`."""
        job = await self._job_of(saga_id)
        if job is None:
            raise await why_gone(self._storage, saga_id)
        return (await self._drivers().join(job, saga_id)).watch

    async def signal(self, signal: EarlySignal) -> None:
        """Gives a saga what it waits for; kept if it does not exist yet. Raises `SignalRefused`, `UnknownSaga`."""
        drivers = self._drivers()
        job = await self._job_of(signal.saga_id)
        if job is None:
            await drivers.storage.keep_signal(signal)
            job = await self._job_of(signal.saga_id)  # it may have been made meanwhile, and not have seen the signal
            if job is not None:
                await drivers.take_early(job, signal)
            return
        await drivers.signal(job, signal)

    async def cancel(self, saga_id: uuid.UUID, *, actor: str, reason: str) -> None:
        """Has a saga undone. Raises `SagaNotFound`, `OperationRefused`."""
        job = await self._job_of(saga_id)
        if job is None:
            raise await why_gone(self._storage, saga_id)
        event = e.CompensateRequested(actor, reason)
        refused = await self._drivers().ask(job, saga_id, event, "request")
        if refused is not None:
            raise OperationRefused(refused)

    async def _job_of(self, saga_id: uuid.UUID) -> Job | None:
        record = await self._drivers().storage.load(saga_id)
        if record is None:
            return None
        job = self._jobs.get(record.state.name)
        if job is None:
            raise UnknownSaga(f"saga {saga_id} is a {record.state.name}, which is not bound in this process")
        return job

    async def close(self) -> None:
        """Stops driving; what runs is left to recovery."""
        drivers, self._met = self._drivers(), None
        await drivers.left_by(self)
