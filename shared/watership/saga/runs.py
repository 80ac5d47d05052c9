"""The handlers of one saga that run in this process now, each in a task of its own: those of a parallel group."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from typing import Any

from watership.execution import Execution
from watership.machine import events as e
from watership.machine.state import Action


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
