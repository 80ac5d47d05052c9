"""The handlers of one saga that run in this process now: each of a parallel group in a task of its own."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import copy_context
from typing import Any

from watership import codec
from watership.errors import StartRejected
from watership.execution import Command, Execution, execute
from watership.machine import events as e
from watership.machine.state import COMPENSATE, DONE, Action, ActionState, SagaState
from watership.saga.job import Job, LetGo
from watership.saga.storage.protocol import SagaStorage
from watership.stepping import Begun, begin
from watership.values import value

log = logging.getLogger("watership.driver")

KEEP_WITHIN_S = 5.0

Active = list[tuple[str, Action, ActionState]]  # what is awaited, or will be, or waits


@value
class Happening:
    """An event for the machine, what it followed from, and the run that it tells of, if it was run here.

    ``answer`` gets the reason for which the machine refused it, or None, once that is on record.
    """

    event: e.Event
    cause: str
    execution: Execution | None = None
    answer: asyncio.Future[str | None] | None = None


class Wake:
    """An `asyncio.Event`, but that it is made when somebody waits for it: few sagas ever do."""

    __slots__ = ("_event", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        """See `asyncio.Event.set`."""
        self.is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """See `asyncio.Event.clear`."""
        self.is_set = False
        if self._event is not None:
            self._event.clear()

    @property
    def event(self) -> asyncio.Event:
        """To be waited for."""
        if self._event is None:
            self._event = asyncio.Event()
            if self.is_set:
                self._event.set()
        return self._event


class Runs:
    """Begins them, and gives each one's outcome once. ``wake`` is set when one has ended."""

    def __init__(self) -> None:
        self.wake = Wake()
        self._tasks: dict[tuple[str, Action], asyncio.Task[Happening]] = {}
        self._here: tuple[str, Action] | None = None  # one that runs in the task that looks after all
        self._call_deputy: Callable[[], None] | None = None  # as long as nobody else looks after them meanwhile

    def __bool__(self) -> bool:
        return bool(self._tasks) or self._here is not None

    def has(self, step: str, action: Action) -> bool:
        """Whether this runs, or has ended and is not told yet."""
        return (step, action) in self._tasks or (step, action) == self._here

    def begin(self, step: str, action: Action, work: Coroutine[Any, Any, Happening]) -> None:
        """Starts one."""
        task = asyncio.get_running_loop().create_task(work, name=f"{action} {step}")
        self._tasks[step, action] = task
        task.add_done_callback(lambda _: self.wake.set())

    async def here(
        self, step: str, action: Action, begun: Begun, look_after: Callable[[], Coroutine[Any, Any, bool]]
    ) -> tuple[Execution, asyncio.Task[bool] | None]:
        """Goes on, in the caller's own task, with a run that has no other beside it: a task for each step was a fifth of a
        saga's cost.

        If something is to be looked at meanwhile (`rouse`), ``look_after`` goes on with the caller's loop in a task, which is
        given back with what the run came to: the deputy, from then on.
        """
        deputies: list[asyncio.Task[bool]] = []

        def call_deputy() -> None:
            self._call_deputy = None
            deputies.append(asyncio.get_running_loop().create_task(look_after(), name=f"beside {action} {step}"))

        self._here, self._call_deputy = (step, action), call_deputy
        try:
            if self.wake.is_set:
                call_deputy()  # it was roused by what the run did before it first waited
            done = await begun
        except BaseException:
            for deputy in deputies:
                deputy.cancel()
            await asyncio.gather(*deputies, return_exceptions=True)
            raise
        finally:
            self._here = None
            if not deputies:
                self._call_deputy = None
        return done, deputies[0] if deputies else None

    def rouse(self) -> None:
        """There is something to look at. If the task that does is in a run, another one is called."""
        self.wake.set()
        if self._call_deputy is not None:
            self._call_deputy()

    def finished(self) -> Happening | None:
        """What one that has ended came to. Raises what only a bug, or the end of the process, raises in one."""
        for key, task in self._tasks.items():
            if task.done():
                del self._tasks[key]
                return task.result()
        return None

    def cancel(self) -> None:
        """Ends all: nobody is left to tell of them."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def rest(self) -> list[Happening]:
        """Waits for all: what they came to."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        return [done for done in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(done, Happening)]


async def leave_behind(
    storage: SagaStorage, saga_id: uuid.UUID, happenings: Sequence[Happening], failed: Exception | None
) -> None:
    """What a drive that has ended did not come to: whoever waits for an answer gets one, and what ran is not forgotten."""
    _leave_unanswered(saga_id, happenings, failed)
    await _keep_unrecorded(storage, saga_id, happenings)


def _leave_unanswered(saga_id: uuid.UUID, happenings: Iterable[Happening], failed: Exception | None) -> None:
    """Tells whoever waits for an answer that their drive has ended: what it failed with, or that it let the saga go."""
    if failed is None or isinstance(failed, StartRejected):  # why its start was refused is no answer to others
        failed = LetGo(f"saga {saga_id}: this process let it go before it took that up; try again")
    for happening in happenings:
        if happening.answer is not None and not happening.answer.done():
            happening.answer.set_exception(failed)
            happening.answer.exception()  # seen: nobody may wait for it any more


async def _keep_unrecorded(storage: SagaStorage, saga_id: uuid.UUID, happenings: Iterable[Happening]) -> None:
    """Law 6, at the very last: what ran here and could not be told to the machine is in the ledger, for a person to see.

    Another process is about to take the saga up, or has; or the store is away, and then the log of this process has it.
    """
    for happening in happenings:
        event = happening.event
        if happening.execution is None or not isinstance(event, e.StepReplied):
            continue
        run = f"{event.action} {event.step} attempt {event.attempt}"
        reason = f"{run} ended {event.outcome} here, and its process ended before that could be recorded"
        log.error("saga %s: %s", saga_id, reason)
        said = {"cause": happening.cause, "outcome": event.outcome, "patch": event.patch}
        try:
            async with asyncio.timeout(KEEP_WITHIN_S):
                await storage.keep_in_ledger(saga_id, reason, codec.dumps(said).decode())
        except Exception:
            log.exception("saga %s: its ledger could not be written", saga_id)


def active_in(state: SagaState) -> Active:
    """Nothing, if the saga is parked."""
    return state.active_actions() if state.parked_reason is None else []


def command_for(saga_id: uuid.UUID, state: SagaState, name: str, action: Action, timeout_ms: int) -> Command:
    """What a saga that stands so awaits of one of its steps."""
    step = state.steps[name]
    return Command(
        saga_id,
        state.name,
        name,
        action,
        step.of(action).attempt,
        state.key_of(name, action),
        state.context if step.own is None else state.context_for(name, action),
        timeout_ms,
        step.generation if action is COMPENSATE else 1,
        step.act.outcome is DONE,
    )


async def run_command(job: Job, command: Command, now_ms: Callable[[], int]) -> Happening:
    """Runs it, and says what came of it."""
    hands = job.hands(command.step)
    return came_of(command, await execute(command, hands) if hands is not None else None, now_ms)


def begin_command(job: Job, command: Command, loop: asyncio.AbstractEventLoop) -> Any:
    """Runs it up to where it first waits: what it came to, or a `Begun`; None: this process has no such step."""
    hands = job.hands(command.step)
    return begin(execute(command, hands, loop=loop), copy_context()) if hands is not None else None


def came_of(command: Command, done: Execution | None, now_ms: Callable[[], int]) -> Happening:
    """What has happened by a run."""
    name, action, attempt = command.step, command.action, command.attempt
    if done is None or done.misfit is not None:
        reason = done.misfit if done is not None else None
        refused = e.StepNotServed(name, action, attempt, now_ms(), refusals_max=1, reason=reason)
        return Happening(refused, f"not_served:{name}:{action}:{attempt}")
    return Happening(done.event(name, action, attempt), f"reply:{name}:{action}:{attempt}:{done.run}", done)
