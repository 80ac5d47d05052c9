"""The handlers of one saga that run in this process now, each in a task of its own: those of a parallel group."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Coroutine
from typing import Any

from watership.execution import Command, Execution, execute
from watership.machine import events as e
from watership.machine.state import Action, Outcome, SagaState
from watership.saga.job import Job


@dataclasses.dataclass(frozen=True, slots=True)
class Happening:
    """An event for the machine, what it followed from, and the run that it tells of, if it was run here.

    ``answer`` gets the reason for which the machine refused it, or None, once that is on record.
    """

    event: e.Event
    cause: str
    execution: Execution | None = None
    answer: asyncio.Future[str | None] | None = None


class Runs:
    """Begins them, and gives each one's outcome once. ``wake`` is set when one has ended."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake
        self._tasks: dict[tuple[str, Action], asyncio.Task[Happening]] = {}

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def has(self, step: str, action: Action) -> bool:
        """Whether this runs, or has ended and is not told yet."""
        return (step, action) in self._tasks

    def begin(self, step: str, action: Action, work: Coroutine[Any, Any, Happening]) -> None:
        """Starts one."""
        task = asyncio.get_running_loop().create_task(work, name=f"{action} {step}")
        self._tasks[step, action] = task
        task.add_done_callback(lambda _: self._wake.set())

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


async def run_action(
    job: Job, state: SagaState, name: str, action: Action, *, timeout_ms: int, now_ms: int
) -> Happening:
    """Runs what the saga awaits of one step, and says what came of it."""
    hands = job.hands(name)
    attempt = state.step(name).of(action).attempt
    if hands is None:
        refused = e.StepNotServed(name, action, attempt, now_ms, refusals_max=1)
        return Happening(refused, f"not_served:{name}:{action}:{attempt}")
    command = Command(
        saga_id=uuid.UUID(state.saga_id),
        saga=state.name,
        step=name,
        action=action,
        attempt=attempt,
        idempotency_key=state.key_of(name, action),
        context=state.context_for(name, action),
        timeout_ms=timeout_ms,
        generation=state.step(name).generation if action is Action.COMPENSATE else 1,
        acted=state.step(name).act.outcome is Outcome.DONE,
    )
    done = await execute(command, hands)
    if done.misfit is not None:
        refused = e.StepNotServed(name, action, attempt, now_ms, refusals_max=1, reason=done.misfit)
        return Happening(refused, f"not_served:{name}:{action}:{attempt}")
    reply = done.event(name, action, attempt)
    return Happening(reply, f"reply:{name}:{action}:{attempt}:{done.run}", done)
