"""Sagas in this process: one saga, one lease, one loop. `Drivers` holds all that one store has running in one event loop.

A drive is a task of its own: whoever watches may come and go. It never decides anything; it runs the awaited commands,
asks the machine what follows, and writes that before it goes on (law 1). A saga that only waits for a later moment is
let go: its lease is free, and whoever is there at that moment, or with its signal, takes it up.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

from watership import codec
from watership.errors import LeaseLost, SagaNotFound, SagaPruned
from watership.execution import Command
from watership.machine import events as e
from watership.machine.plan import Plan
from watership.machine.react import lead_on
from watership.machine.state import ACT, AWAITED, RUNNING, Action, SagaState, Status
from watership.saga.job import FOLLOW_EVERY_MS, Job, Seat, Start
from watership.saga.limits import within_limits
from watership.saga.pruned import why_gone
from watership.saga.runs import (
    Active,
    Happening,
    Runs,
    active_in,
    begin_command,
    came_of,
    command_for,
    leave_behind,
    run_command,
)
from watership.saga.storage.protocol import LEASE_MS, HeldElsewhere, Lease, LogEntry
from watership.saga.telling import Teller
from watership.saga.watch import SagaWatch
from watership.stepping import Begun

log = logging.getLogger("watership.driver")

FOLLOW_ASLEEP_EVERY_MS_MAX = 5_000
ASLEEP_MS = 5_000  # what waits for longer than this is let go meanwhile
BACK_OFF_MS = 5_000


class Drive:
    """One saga, driven or followed by this process until it ends, is parked, or the process lets it go."""

    def __init__(
        self, seat: Seat, saga_id: uuid.UUID, job: Job, loop: asyncio.AbstractEventLoop, *, gated: bool = False
    ) -> None:
        self.saga_id, self.watch = saga_id, SagaWatch(saga_id)
        self.start: Start | None = None
        # Set by whoever started it, once the signals that came before it are with it; None: there can be none.
        self.may_drive = asyncio.Event() if job.definition.plan.waits else None
        self._storage = seat.storage
        self._keeper = seat.keeper
        self._clock = seat.clock
        self._seat = seat
        self._job = job
        self._event_loop = loop
        self._plan: Plan | None = None
        self._state: SagaState  # from `main` on, as the teller and the runs
        self._active: Active
        self._teller: Teller
        self._clock_offset_ms = 0
        self._asked: int | None = 0 if gated else None
        self._inbox: list[Happening] = []
        self._runs: Runs
        self._at_hand: Happening | None = None  # what is being put on record
        self._is_begun = self._stopping = self._asleep = False
        self.is_watched = True
        self.task: asyncio.Task[None] | None = None  # in which `main` runs
        self.ended = False  # it takes nothing up any more

    # --- what others may ask of it

    def request(self, event: e.Event, cause: str = "request") -> asyncio.Future[str | None]:
        """Gives the saga an event between two steps; the answer, once it is on record, is why it was refused, or None."""
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._inbox.append(Happening(event, cause, answer=answer))
        self._rouse()
        return answer

    def let_one_act(self) -> None:
        """Opens a gated saga's gate for one more result."""
        if self._asked is not None:
            self._asked += 1
            self._rouse()

    def open_gate(self) -> None:
        """Takes the gate away."""
        self._asked = None
        self._rouse()

    def stop(self) -> None:
        """Lets the saga go after the steps that run now."""
        self._stopping = True
        self._rouse()

    def _rouse(self) -> None:
        if self._is_begun:  # else it will look for itself
            self._runs.rouse()

    def _stands(self, state: SagaState) -> None:
        self._state, self._active = state, active_in(state)

    # --- the loop

    async def main(self, start: Start | None) -> None:
        """Makes the saga, or finds it, and drives it to its end."""
        self.start, failed = start, None
        # Not before: of the many that are started at once, each needs these only while it runs.
        self._teller, self._runs, self._is_begun = Teller(self.saga_id, self.watch), Runs(), True
        try:
            lease = await self._create(start) if start is not None else None
            if lease is not None and self.may_drive is not None:
                await self.may_drive.wait()
            while True:
                if lease is None:
                    lease = await self._join(start)
                if lease is None:
                    return
                if not await self._drive(lease):
                    return
                if self._asleep and not self.is_watched:
                    return  # recovery finds it again when its moment comes
                lease = None  # lost to another process, or let go: follow it
        except Exception as error:  # whatever went wrong is told to the watchers; recovery takes the saga up again
            failed = error
            self.watch.failed(error)
            if self.watch.has_begun and not isinstance(error, SagaNotFound):
                log.exception("saga %s: its drive ended; recovery will take it up again", self.saga_id)
        finally:
            self.ended = True
            try:
                if self._inbox:
                    await leave_behind(self._storage, self.saga_id, self._inbox, failed)
            finally:
                self._seat.forget(self)

    async def _create(self, start: Start) -> Lease | None:
        plan = self._job.definition.plan
        if plan.hash not in self._seat.plans_kept:
            await self._storage.save_plan(plan)
            self._seat.plans_kept.add(plan.hash)
        now_ms = await self._seat.now_ms()
        state = SagaState(start.saga_id)
        reaction = lead_on(plan, state, e.SagaStarted(plan.saga, start.context, plan.hash), now_ms)
        entry = LogEntry(1, now_ms, "start", reaction.changes)
        lease = await self._storage.create(
            self.saga_id, reaction.state, entry, input_hash=start.input_hash, lease_ms=LEASE_MS
        )
        if lease is not None:
            self._plan = plan
            self._stands(reaction.state)
            self._took(lease)
            self.watch.begins()
        return lease

    async def _join(self, start: Start | None) -> Lease | None:
        """Follows a saga that exists until its lease is ours; None once it is over, or we are stopping and owe nothing."""
        poll_ms = self._seat.follow_every_ms
        while not self._stopping or self._owes:
            self._runs.wake.clear()
            record = await self._storage.load(self.saga_id)
            if record is None:
                name, input_hash = self._job.definition.plan.saga, start.input_hash if start is not None else None
                gone = await why_gone(self._storage, self.saga_id, name, input_hash)
                if start is not None and isinstance(gone, SagaPruned):
                    self.watch.begins()  # law 11: it is the same saga, which ended
                raise gone
            if start is not None:
                start.check_same(record, self._job.definition.plan.saga)
            self.watch.begins()
            if record.state.rests and not self._inbox:
                await self._teller.replay(self._storage)
                self._teller.end(record.state)
                return None
            asleep_ms = await self._asleep_ms(record.state)
            if asleep_ms > ASLEEP_MS and not self._inbox:
                await self._teller.replay(self._storage)
                await self._clock.wait(self._runs.wake.event, timeout_ms=min(poll_ms, asleep_ms))
                poll_ms = min(poll_ms * 2, FOLLOW_ASLEEP_EVERY_MS_MAX)
                continue
            taken = await self._storage.acquire(self.saga_id, lease_ms=LEASE_MS)
            if isinstance(taken, Lease):
                try:
                    await self._take_over(taken)
                except LeaseLost:
                    self._drop(taken)
                    continue
                except BaseException:
                    self._drop(taken)
                    await self._storage.release(taken, retry_in_ms=BACK_OFF_MS)
                    raise
                return taken
            await self._teller.replay(self._storage)
            wait_ms = min(taken.retry_in_ms, FOLLOW_EVERY_MS) if isinstance(taken, HeldElsewhere) else FOLLOW_EVERY_MS
            await self._clock.wait(self._runs.wake.event, timeout_ms=max(wait_ms, 1))
        return None

    @property
    def _owes(self) -> bool:
        """Something ran here, and that is not on record: nobody leaves before it is (law 6)."""
        return any(happening.execution is not None for happening in self._inbox)

    async def _asleep_ms(self, state: SagaState) -> int:
        """How long a saga only waits for its moment; 0: it does not."""
        return state.due_at_ms - await self._storage.now_ms() if state.sleeps and state.due_at_ms is not None else 0

    async def _take_over(self, lease: Lease) -> None:
        """Goes on where another process stopped, on the plan that the saga began with (law 7)."""
        record = await self._storage.load(self.saga_id)
        assert record is not None, "its lease was just taken"
        self._stands(record.state)
        assert record.state.plan_hash is not None, "an embedded saga is pinned when it is made"
        self._plan = await self._storage.load_plan(record.state.plan_hash)
        await self._teller.replay(self._storage)
        self._took(lease)
        interrupted = [
            e.RunInterrupted(name, action, state.attempt)
            for name, action, state in record.state.active_actions()
            if state.phase is AWAITED
        ]
        for event in interrupted:  # a run of it may have begun, and may have had its effect: on the record
            await self._follow(lease, Happening(event, "interrupted"))

    def _took(self, lease: Lease) -> None:
        self._clock_offset_ms = self._seat.learn(lease.now_ms)
        if self._keeper is not None:
            self._keeper.hold(lease)

    def _drop(self, lease: Lease) -> None:
        if self._keeper is not None:
            self._keeper.drop(lease)

    async def _drive(self, lease: Lease) -> bool:
        """Drives until the saga is over or let go (False), or another lease is needed to go on (True)."""
        self._asleep, self._at_hand = False, None
        try:
            over = await self._loop(lease)
        except LeaseLost:
            log.warning("saga %s: another process drives it now; following", self.saga_id)
            # They ran here all the same: once the lease is ours again, the machine is told of them as late replies.
            late = [self._at_hand] if self._at_hand is not None else []
            late += await self._runs.rest()
            self._inbox[:0] = [one for one in late if isinstance(one.event, e.StepReplied) or one.answer is not None]
            return True
        except BaseException as error:
            if self._at_hand is not None:
                self._inbox.insert(0, self._at_hand)  # it is not on record: told to who asked, or kept in the ledger
            if isinstance(error, Exception):
                self._inbox += await self._runs.rest()
                await self._storage.release(lease, retry_in_ms=BACK_OFF_MS)
            raise
        finally:
            self._runs.cancel()
            self._drop(lease)
        if self._asleep or (over and self._inbox):
            return True
        if over:
            self._teller.end(self._state)
        return False

    async def _loop(self, lease: Lease) -> bool:
        """Puts on record what happens, one thing after the other. Whether the saga is over; else it was let go."""
        released = False
        while not released:
            if self._stopping and not self._runs and not self._owes:
                return await self._hand_over(lease)
            following = self._next()
            if following is None:
                following = await self._wait(self._timer_ms())
            elif isinstance(following, Command):
                command, deputy = following, None
                done = begin_command(self._job, command, self._event_loop)
                if type(done) is Begun:
                    done, deputy = await self._runs.here(command.step, command.action, done, lambda: self._loop(lease))
                following = came_of(command, done, self._now_ms)
                if deputy is not None:
                    self._inbox.insert(0, following)
                    self._runs.wake.set()
                    return await deputy
            if following is not None:
                self._at_hand = following
                released = await self._follow(lease, following)
                self._at_hand = None
            elif self._asleep:
                await self._storage.release(lease, retry_in_ms=max(self._timer_ms() or 0, 1))
                return False
        return True

    async def _hand_over(self, lease: Lease) -> bool:
        """Gives the lease up, so that nobody waits for it to run out, with what was never begun marked as such.

        Whether the saga is over with that.
        """
        while unbegun := [one for one in self._unbegun() if not one[2].doubtful]:
            name, action, state = unbegun[0]
            event = e.DispatchPutOff(name, action, state.attempt)
            if await self._follow(lease, Happening(event, f"put_off:{name}:{action}:{state.attempt}")):
                return True
        await self._storage.release(lease, retry_in_ms=max(self._timer_ms() or 0, 0))
        return False

    def _next(self) -> Happening | Command | None:
        """What has happened; or what is to be run, and nothing beside it; or None: what was to be begun is, and it waits."""
        runs, may_begin = self._runs, []
        runs.wake.clear()
        busy = bool(runs)
        if busy and (done := runs.finished()) is not None:
            return done
        if self._inbox:
            return self._inbox.pop(0)
        if not busy and not self._active:
            return Happening(e.TimePassed(), "time")  # nothing follows: `_follow` gives the lease up
        for name, action, state in self._active if not self._stopping else ():
            if state.phase is not AWAITED or (busy and runs.has(name, action)):
                continue
            if action is ACT and self._state.status is Status.COMPENSATING:
                return Happening(e.DispatchWithdrawn(name, action, state.attempt), "overtaken")  # never run here
            if self._asked is None or self._may_begin(action):
                may_begin.append((name, action))
        if len(may_begin) == 1 and not busy and self._timer_ms() is None:
            return self._command(*may_begin[0])
        for name, action in may_begin:
            runs.begin(name, action, run_command(self._job, self._command(name, action), self._now_ms))
        return None  # a signal, a cancel or the deadline may come meanwhile

    def _unbegun(self) -> Active:
        """What is awaited and does not run yet; nothing if the saga is parked."""
        return [
            (name, action, state)
            for name, action, state in self._active
            if state.phase is AWAITED and not self._runs.has(name, action)
        ]

    def _may_begin(self, action: Action) -> bool:
        """Whether the caller of a gated saga asked for one more result."""
        return self._asked is None or action is not ACT or self._asked > self.watch.steps_seen

    def _timer_ms(self) -> int | None:
        """How long until time itself becomes an event; None: never. What runs here has its limits in the run."""
        state = self._state
        if state.parked_reason is not None:
            return None
        due_at_ms = state.deadline_at_ms if state.status is RUNNING else None
        for _, _, action in self._active:
            moment = action.due_at_ms if action.phase is not AWAITED else None
            if moment is not None and (due_at_ms is None or moment < due_at_ms):
                due_at_ms = moment
        return due_at_ms - self._now_ms() if due_at_ms is not None else None

    async def _wait(self, timer_ms: int | None) -> Happening | None:
        if timer_ms is None:
            await self._runs.wake.event.wait()
            return None
        if timer_ms <= 0:
            return Happening(e.TimePassed(), "time")
        if not self._runs and timer_ms > ASLEEP_MS and not self._unbegun():
            self._asleep = True
            return None
        if await self._clock.wait(self._runs.wake.event, timeout_ms=timer_ms, working=bool(self._runs)):
            return None
        return Happening(e.TimePassed(), "time")

    def _command(self, name: str, action: Action) -> Command:
        # Made before a task runs it: the state may have been led on by then.
        assert self._plan is not None
        return command_for(self.saga_id, self._state, name, action, self._plan.by_name[name].timeout_ms)

    def _now_ms(self) -> int:
        return self._clock.monotonic_ms() + self._clock_offset_ms

    async def _follow(self, lease: Lease, happening: Happening) -> bool:
        """Asks the machine, writes what it decided, and only then goes on. Whether that gave the lease up."""
        now_ms = self._now_ms()
        state = self._state
        event = within_limits(self._plan, state, happening.event)
        reaction = lead_on(self._plan, state, event, now_ms)  # a drive that cannot write it ends, or reads afresh
        active = active_in(state)
        released = not active and not self._runs
        if reaction.ledger is not None:
            cause = codec.dumps({"cause": happening.cause}).decode()
            await self._storage.keep_in_ledger(self.saga_id, reaction.ledger, cause)
        if reaction.changes:
            entry = LogEntry(reaction.seq, now_ms, happening.cause, reaction.changes)
            await self._storage.commit(lease, state, [entry], release=released)
            self._active = active
            self._teller.tell(reaction, happening)
        elif released:
            await self._storage.release(lease)
        if happening.answer is not None and not happening.answer.done():
            happening.answer.set_result(reaction.refused)
        return released
