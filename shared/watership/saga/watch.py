"""What is seen of one saga while it runs: its done steps in order, then its end. Filled by whoever drives or listens."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from watership.errors import SagaCancelled, SagaParked, step_error_for
from watership.machine.state import Failure, Status
from watership.saga.compile import Definition
from watership.saga.step import SagaStepResult
from watership.saga.storage.protocol import EarlySignal
from watership.values import value

_BY_A_WAIT = frozenset({"wait_timeout", "wait_rejected"})


@value
class StepDone:
    """A step that is done. ``context`` is the whole context after it; ``result`` this process's own, if it ran here."""

    seq: int
    step: str
    response: Any
    patch: dict[str, Any]
    context: dict[str, Any] | None
    result: SagaStepResult[Any, Any] | None = None


@value
class SagaEnd:
    """How it ended, or that it is parked. ``error`` is the step's original exception, if it was raised here."""

    name: str
    status: Status
    context: dict[str, Any]
    failure: Failure | None = None
    parked_reason: str | None = None
    error: Exception | None = None

    def exception(self, saga_id: uuid.UUID) -> Exception | None:
        """What ``stream`` raises for this end; None if the saga completed."""
        if self.status is Status.COMPLETED and self.parked_reason is None:
            return None
        original = self.error
        if original is None and self.failure is not None:
            if self.failure.code == SagaCancelled.code:
                original = SagaCancelled(f"saga {self.name} {saga_id} was {self.failure.message}")
            elif self.failure.step is None or self.failure.code in _BY_A_WAIT:
                original = SagaCancelled(f"saga {self.name} {saga_id} was compensated: {self.failure.message}")
            else:
                original = step_error_for(self.failure.code, self.failure.type_name, self.failure.message)
                original.add_note(f"in step {self.failure.step}, saga {self.name} {saga_id}")
        if self.parked_reason is not None:
            parked = SagaParked(
                f"saga {self.name} {saga_id} is parked: {self.parked_reason}", reason=self.parked_reason
            )
            parked.__cause__ = original
            return parked
        return original or SagaCancelled(f"saga {self.name} {saga_id} ended {self.status}")


class SagaWatch:
    """One saga as its watchers see it. Any number may watch; each sees every step once, from the first."""

    def __init__(self, saga_id: uuid.UUID) -> None:
        self.saga_id = saga_id
        self._done: dict[int, StepDone] = {}  # by the number of the log entry
        self._begun = False
        self._end: SagaEnd | None = None
        self._lost: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] | None = None

    def begins(self) -> None:
        """The saga exists, for certain."""
        if not self._begun:
            self._begun = True
            self._tell()

    def step_done(self, done: StepDone) -> None:
        """Adds a step, unless it was seen: progress may be told more than once."""
        if done.seq not in self._done:
            self._done[done.seq] = done
            if self._waiting:
                self._tell()

    def ended(self, end: SagaEnd) -> None:
        """The saga ended, or is parked."""
        self._end = end
        self._tell()

    def failed(self, error: BaseException) -> None:
        """Watching itself failed: the store or the broker is gone, or the saga was refused."""
        self._lost = error
        self._tell()

    @property
    def has_begun(self) -> bool:
        """The saga exists, for certain."""
        return self._begun

    @property
    def steps_seen(self) -> int:
        """How many done steps were seen."""
        return len(self._done)

    @property
    def names_seen(self) -> set[str]:
        """The names of the done steps that were seen."""
        return {done.step for done in self._done.values()}

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self._end is not None or self._lost is not None

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, None
        for watcher in waiting or ():
            if not watcher.done():
                watcher.set_result(None)

    def _news(self) -> asyncio.Future[None]:
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(watcher)
        return watcher

    async def begun(self) -> None:
        """Waits until the saga exists for certain. Raises what made watching fail before."""
        while not self._begun:
            if self._lost is not None:
                raise self._lost
            await self._news()

    async def steps(self) -> AsyncIterator[StepDone]:
        """Each done step from the first; ends with the saga. Raises what made watching fail."""
        seen = 0
        while True:
            while seen < len(self._done):
                for done in list(self._done.values())[seen:]:
                    seen += 1
                    yield done
            if self._lost is not None:
                raise self._lost
            if self._end is not None:
                return
            await self._news()

    async def end(self) -> SagaEnd:
        """Waits for the end. Raises what made watching fail."""
        while self._end is None:
            if self._lost is not None:
                raise self._lost
            await self._news()
        return self._end


class Runner(Protocol):
    """What stands behind a mediator: sagas in this process, or the wire to the orchestrator."""

    def bind(self, definitions: Iterable[Definition]) -> None:
        """The sagas that the mediator knows."""

    async def open(self) -> None:
        """Connects, or begins to recover. What is not opened opens itself at first use."""

    async def start(
        self, definition: Definition, context: dict[str, Any], saga_id: uuid.UUID, *, progress: bool = True
    ) -> SagaWatch:
        """Starts the saga with this context, as JSON data, or finds it if it was started alike. Durable on return.

        ``progress`` False: only its end need be told. Raises `StartRejected`.
        """

    async def write_start(self, definition: Definition, context: Any, saga_id: uuid.UUID, session: Any) -> None:
        """Writes the start in the transaction of ``session``. Raises `ConfigurationError` if it cannot be there."""

    async def find(self, saga_id: uuid.UUID) -> SagaWatch:
        """Watches a saga that exists. Raises `SagaNotFound`."""

    async def signal(self, signal: EarlySignal) -> None:
        """Gives a saga what it waits for, or will wait for. Raises `SignalRefused`."""

    async def cancel(self, saga_id: uuid.UUID, *, actor: str, reason: str) -> None:
        """Has a saga undone. Raises `SagaNotFound`, `OperationRefused`."""

    async def close(self) -> None:
        """Stops watching, and driving; what runs is left to recovery."""
