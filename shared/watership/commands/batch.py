"""Starting many sagas: a bounded number at a time, a progress bar, and an account of what was not started."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from watership.commands.timeline import failure_words
from watership.errors import StartRejected, WatershipError
from watership.machine.state import Status
from watership.messages import StartSaga
from watership.saga.watch import SagaEnd
from watership.wire import Wire

AT_ONCE_MAX = 100
WATCHED_AT_ONCE_MAX = 500
INCOMPLETE_SHOWN_MAX = 10


@dataclasses.dataclass(slots=True)
class Batch:
    """What became of many starts. ``error``: the first that stopped it; what was not begun then was not started."""

    bodies: list[StartSaga]
    began_s: float
    ended_s: float = 0.0
    done: set[int] = dataclasses.field(default_factory=set)
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    incomplete: int = 0
    incomplete_shown: list[tuple[uuid.UUID, str]] = dataclasses.field(default_factory=list)
    error: WatershipError | None = None

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self.bodies)

    @property
    def started(self) -> list[StartSaga]:
        """What the broker has, in the order of the lines."""
        return [self.bodies[index] for index in sorted(self.done)]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_s - self.began_s

    def ended(self, saga_id: uuid.UUID, end: SagaEnd) -> None:
        """Counts an end."""
        word = "parked" if end.parked_reason is not None else end.status.value
        self.ends[word] += 1
        if word != Status.COMPLETED.value:
            reason = end.parked_reason or failure_words(end.failure)
            self._incomplete(saga_id, f"{word}: {reason}" if reason else word)

    def refused(self, saga_id: uuid.UUID, error: StartRejected) -> None:
        """Counts a start that an orchestrator refused."""
        self.ends["refused"] += 1
        self._incomplete(saga_id, f"refused: {error}")

    def _incomplete(self, saga_id: uuid.UUID, words: str) -> None:
        self.incomplete += 1
        if len(self.incomplete_shown) < INCOMPLETE_SHOWN_MAX:
            self.incomplete_shown.append((saga_id, words))

    def lines_not_started(self) -> str:
        """The contexts that were not started, by their number: ``3, 7 to 500``."""
        missing = [index + 1 for index in range(self.total) if index not in self.done]
        runs: list[list[int]] = []
        for number in missing:
            if runs and runs[-1][1] == number - 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


async def start_many(wire: Wire, bodies: list[StartSaga], *, watch: bool, console: Console) -> Batch:
    """Starts them all, and with ``watch`` waits for their ends. The first error stops it; what is under way finishes."""
    batch = Batch(bodies, time.monotonic())
    waiting = iter(range(len(bodies)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[ends]}"), console=console) as progress:
        starts = progress.add_task("started", total=len(bodies), ends="")
        ends = progress.add_task("ended", total=len(bodies), ends="", visible=watch)

        def tell() -> None:
            progress.update(starts, completed=len(batch.done))
            words = ", ".join(f"{count:,} {word}" for word, count in sorted(batch.ends.items()))
            progress.update(ends, completed=batch.ends.total(), ends=words)

        at_once = min(len(bodies), WATCHED_AT_ONCE_MAX if watch else AT_ONCE_MAX)
        await asyncio.gather(*(_starter(wire, batch, waiting, watch, tell) for _ in range(at_once)))
    batch.ended_s = time.monotonic()
    return batch


async def _starter(wire: Wire, batch: Batch, waiting: Iterator[int], watch: bool, tell: Callable[[], None]) -> None:
    for index in waiting:
        if batch.error is not None:
            return
        body = batch.bodies[index]
        try:
            if watch:
                watched = await wire.start_watched(body.model_copy(update={"progress": False}))
            else:
                await wire.publish_start(body, listen=False)
        except WatershipError as error:
            batch.error = batch.error or error
            return
        batch.done.add(index)
        tell()
        if watch:
            try:
                batch.ended(body.saga_id, await watched.end())
            except StartRejected as error:
                batch.refused(body.saga_id, error)
            tell()
