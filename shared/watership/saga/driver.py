"""Sagas in this process: one saga, one lease, one loop. `Drivers` holds all that one store has running in one event loop.

A drive is a task of its own: whoever watches may come and go. It never decides anything; it runs the awaited command,
asks the machine what follows, and writes that before it goes on (law 1).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import Callable
from typing import Any

from watership import codec
from watership.clock import Clock
from watership.container import Container
from watership.errors import LeaseLost, SagaConflict, SagaNotFound
from watership.execution import Command, Execution, Hands, execute
from watership.machine import events as e
from watership.machine.apply import apply
from watership.machine.changes import CompensationBegan
from watership.machine.effects import NotifyStep, effects_of
from watership.machine.plan import Plan
from watership.machine.react import Reaction, react
from watership.machine.state import Action, ActionState, Outcome, Phase, SagaState
from watership.saga.compile import Definition, context_of
from watership.saga.storage.protocol import (
    LEASE_MS,
    HeldElsewhere,
    Lease,
    LeaseKeeper,
    LogEntry,
    SagaRecord,
    SagaStorage,
)
from watership.saga.watch import SagaEnd, SagaWatch, StepDone

log = logging.getLogger("watership.driver")

FOLLOW_EVERY_MS = 250
BACK_OFF_MS = 5_000


@dataclasses.dataclass(frozen=True)
class Job:
    """What a saga is driven with: its classes, and where its handlers come from."""

    definition: Definition
    container: Container
    build_context: Callable[[dict[str, Any]], Any] | None = None
    barrier: type[Any] | None = None

    def hands(self, step: str) -> Hands | None:
        """How a step is run; None if this process has no such step."""
        handler = self.definition.steps.get(step)
        if handler is None:
            return None
        fallback = self.definition.fallbacks.get(step)
        breaker = fallback.circuit_breaker if fallback is not None else None
        context = context_of(handler, self.definition.context_type)
        return Hands(handler, context, self.container, breaker, self.build_context, self.barrier)


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """A saga that is to be made if it is not there yet."""

    context: dict[str, Any]
    input_hash: str

    @classmethod
    def of(cls, name: str, context: dict[str, Any], saga_id: uuid.UUID) -> Start:
        """Checks the context and its size. Raises `InvalidPayload` or `LimitExceeded`."""
        codec.encode_context(context, what=f"saga {name} {saga_id}: the context")
        return cls(context, codec.input_hash(name, context))


@dataclasses.dataclass(frozen=True)
class Seat:
    """What the drives of one store in one event loop share. ``plans_kept``: hashes that the store has for certain."""

    storage: SagaStorage
    clock: Clock
    keeper: LeaseKeeper | None
    plans_kept: set[str] = dataclasses.field(default_factory=set)


class Drive:
    """One saga, driven or followed by this process until it ends, is parked, or the process lets it go."""

    def __init__(self, seat: Seat, saga_id: uuid.UUID, job: Job, *, gated: bool = False) -> None:
        self.saga_id = saga_id
        self.watch = SagaWatch(saga_id)
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start: Start | None = None
        self._storage = seat.storage
        self._keeper = seat.keeper
        self._clock = seat.clock
        self._plans_kept = seat.plans_kept
        self._job = job
        self._plan: Plan | None = None
        self._state = SagaState(str(saga_id))
        self._clock_offset_ms = 0
        self._error: Exception | None = None
        self._gate = asyncio.Semaphore(0) if gated else None
        self._inbox: list[e.Event] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._execution: Execution | None = None  # what ran last, until the watchers are told

    # --- what others may ask of it

    def request(self, event: e.Event) -> None:
        """Gives the saga an event between two steps."""
        self._inbox.append(event)
        self._wake_up()

    def let_one_act(self) -> None:
        """Opens a gated saga's gate for its next act."""
        if self._gate is not None:
            self._gate.release()
            self._wake.set()

    def open_gate(self) -> None:
        """Takes the gate away."""
        self._gate = None
        self._wake_up()

    def stop(self) -> None:
        """Lets the saga go after the step that runs now."""
        self._stopping = True
        self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()

    # --- the loop

    async def main(self, start: Start | None) -> None:
        """Makes the saga, or finds it, and drives it to its end."""
        self.start = start
        try:
            lease = await self._create(start) if start is not None else None
            while True:
                if lease is None:
                    lease = await self._join(start)
                if lease is None:
                    return
                if not await self._drive(lease):
                    return
                lease = None  # lost to another process: follow it
        except Exception as error:  # whatever went wrong is told to the watchers; recovery takes the saga up again
            self.watch.failed(error)
            if not self.started.done():
                self.started.set_exception(error)
                self.started.exception()  # seen: a watcher may have left
            elif not isinstance(error, SagaNotFound):
                log.exception("saga %s: its drive ended; recovery will take it up again", self.saga_id)

    def _is_durable(self) -> None:
        if not self.started.done():
            self.started.set_result(None)

    async def _create(self, start: Start) -> Lease | None:
        plan = self._job.definition.plan
        if plan.hash not in self._plans_kept:
            await self._storage.save_plan(plan)
            self._plans_kept.add(plan.hash)
        now_ms = await self._storage.now_ms()
        reaction = react(plan, self._state, e.SagaStarted(plan.saga, start.context, plan.hash), now_ms)
        entry = LogEntry(1, now_ms, "start", reaction.changes)
        lease = await self._storage.create(
            self.saga_id, reaction.state, entry, input_hash=start.input_hash, lease_ms=LEASE_MS
        )
        if lease is not None:
            self._state, self._plan = reaction.state, plan
            self._took(lease)
            self._is_durable()
        return lease

    async def _join(self, start: Start | None) -> Lease | None:
        """Follows a saga that exists until its lease is ours; None once it is over, or we are stopping."""
        while not self._stopping:
            record = await self._storage.load(self.saga_id)
            if record is None:
                raise SagaNotFound(f"no saga has the id {self.saga_id} in this store")
            self.check_same(record, start)
            self._is_durable()
            if _over(record.state) and not self._inbox:
                await self._replay()
                self._tell_end(record.state)
                return None
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
            await self._replay()
            wait_ms = min(taken.retry_in_ms, FOLLOW_EVERY_MS) if isinstance(taken, HeldElsewhere) else FOLLOW_EVERY_MS
            await self._clock.wait(self._wake, timeout_ms=max(wait_ms, 1))
        return None

    # Law 11: the same id and input is the same saga; anything else is a conflict.
    def check_same(self, record: SagaRecord, start: Start | None) -> None:
        """Raises `SagaConflict` if the record is not of this start."""
        if start is None:
            return
        if record.state.name != self._job.definition.plan.saga:
            raise SagaConflict(f"the id {self.saga_id} belongs to a saga {record.state.name}; use another id")
        if record.input_hash != start.input_hash:
            raise SagaConflict(
                f"saga {record.state.name} {self.saga_id} was started with other input; use another id, or the same input"
            )

    async def _take_over(self, lease: Lease) -> None:
        """Goes on where another process stopped, on the plan that the saga began with (law 7)."""
        record = await self._storage.load(self.saga_id)
        assert record is not None, "its lease was just taken"
        self._state = record.state
        assert record.state.plan_hash is not None, "an embedded saga is pinned when it is made"
        self._plan = await self._storage.load_plan(record.state.plan_hash)
        await self._replay()
        self._took(lease)
        interrupted = [
            e.RunInterrupted(name, action, state.attempt)
            for name, action, state in record.state.active_actions()
            if state.phase is Phase.AWAITED
        ]
        for event in interrupted:  # a run of it may have begun, and may have had its effect: on the record
            await self._follow(lease, event, "interrupted")

    def _took(self, lease: Lease) -> None:
        self._clock_offset_ms = lease.now_ms - self._clock.monotonic_ms()
        if self._keeper is not None:
            self._keeper.hold(lease)

    def _drop(self, lease: Lease) -> None:
        if self._keeper is not None:
            self._keeper.drop(lease)

    async def _drive(self, lease: Lease) -> bool:
        """Drives until the saga is over or let go (False), or another lease is needed to go on (True)."""
        event: e.Event | None = None
        try:
            released = False
            while not released:
                if self._stopping:
                    await self._storage.release(lease)
                    return False
                event, cause = await self._next_event()
                if event is not None:
                    released = await self._follow(lease, event, cause)
        except LeaseLost:
            log.warning("saga %s: another process drives it now; following", self.saga_id)
            if isinstance(event, e.StepReplied):
                # It ran here all the same: once the lease is ours again, the machine is told of it as a late reply.
                self._inbox.insert(0, event)
            return True
        except Exception:
            await self._storage.release(lease, retry_in_ms=BACK_OFF_MS)
            raise
        finally:
            self._drop(lease)
        if self._inbox:
            return True
        self._tell_end(self._state)
        return False

    async def _next_event(self) -> tuple[e.Event | None, str]:
        """Runs or waits for what the saga waits for, and says what came of it."""
        self._wake.clear()
        if self._inbox:
            return self._inbox.pop(0), "request"
        active = next(self._state.active_actions(), None)
        if active is None or self._state.parked_reason is not None:
            return e.TimePassed(), "time"  # nothing follows: `_follow` gives the lease up
        name, action, state = active
        if state.phase is Phase.DELAYED:
            assert state.due_at_ms is not None
            wait_ms = state.due_at_ms - self._now_ms()
            if wait_ms > 0 and await self._clock.wait(self._wake, timeout_ms=wait_ms):
                return None, ""
            return e.TimePassed(), "time"
        if not await self._may_act(action):
            return None, ""
        return await self._run(name, action, state)

    async def _may_act(self, action: Action) -> bool:
        if self._gate is None or action is Action.COMPENSATE:
            return True
        if self._gate.locked():
            await self._wake.wait()
            return False
        await self._gate.acquire()
        return True

    async def _run(self, name: str, action: Action, state: ActionState) -> tuple[e.Event, str]:
        assert self._plan is not None
        hands = self._job.hands(name)
        if hands is None:
            refused = e.StepNotServed(name, action, state.attempt, self._now_ms(), refusals_max=1)
            return refused, f"not_served:{name}:{action}:{state.attempt}"
        command = Command(
            saga_id=self.saga_id,
            saga=self._state.name,
            step=name,
            action=action,
            attempt=state.attempt,
            idempotency_key=self._state.key_of(name, action),
            context=self._state.context,
            timeout_ms=self._plan.by_name[name].timeout_ms,
            generation=self._state.step(name).generation if action is Action.COMPENSATE else 1,
            acted=self._state.step(name).act.outcome is Outcome.DONE,
        )
        done = await execute(command, hands)
        self._execution = done
        reply = done.event(name, action, state.attempt)
        return reply, f"reply:{name}:{action}:{state.attempt}:{done.run}"

    def _now_ms(self) -> int:
        return self._clock.monotonic_ms() + self._clock_offset_ms

    async def _follow(self, lease: Lease, event: e.Event, cause: str) -> bool:
        """Asks the machine, writes what it decided, and only then goes on. Whether that gave the lease up."""
        now_ms = self._now_ms()
        reaction = react(self._plan, self._state, event, now_ms)
        released = _over(reaction.state)
        if not reaction.changes:
            if released:
                await self._storage.release(lease)
            return released
        entry = LogEntry(reaction.state.seq, now_ms, cause, reaction.changes)
        await self._storage.commit(lease, reaction.state, [entry], release=released)
        self._state = reaction.state
        self._tell(reaction)
        if isinstance(event, e.CompensateRequested):
            self._withdraw_gated()
        return released

    def _withdraw_gated(self) -> None:
        """An act that waits at the gate was never run: the turn need not wait for it."""
        for name, action, state in self._state.active_actions():
            if action is Action.ACT and state.phase is Phase.AWAITED:
                self._inbox.append(e.DispatchWithdrawn(name, action, state.attempt))

    # --- telling the watchers

    def _tell(self, reaction: Reaction) -> None:
        execution, self._execution = self._execution, None
        if execution is not None and any(isinstance(change, CompensationBegan) for change in reaction.changes):
            self._error = execution.error
        for effect in reaction.effects:
            if isinstance(effect, NotifyStep):
                result = execution.result if execution is not None else None
                self.watch.step_done(
                    StepDone(
                        effect.seq,
                        effect.step,
                        effect.response,
                        effect.patch or {},
                        dict(reaction.state.context),
                        result,
                    )
                )

    def _tell_end(self, state: SagaState) -> None:
        if state.parked_reason is not None:
            log.warning("saga %s %s is parked: %s", state.name, self.saga_id, state.parked_reason)
        self.watch.ended(
            SagaEnd(state.name, state.status, dict(state.context), state.failure, state.parked_reason, self._error)
        )

    async def _replay(self) -> None:
        """Tells the watchers what the log has that they have not seen."""
        state = SagaState(str(self.saga_id))
        for entry in await self._storage.history(self.saga_id):
            for change in entry.changes:
                apply(state, change)
            for effect in effects_of(entry.seq, entry.changes):
                if isinstance(effect, NotifyStep):
                    done = StepDone(effect.seq, effect.step, effect.response, effect.patch or {}, dict(state.context))
                    self.watch.step_done(done)


def _over(state: SagaState) -> bool:
    """Nothing follows without a person."""
    return state.parked_reason is not None or next(state.active_actions(), None) is None
