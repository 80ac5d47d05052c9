"""Group commit: while one transaction is under way, the writes that come meanwhile gather, and go together in the next.

There is no timer: at rest a write starts at once; under load batches grow by themselves and the cost of each write
falls. It must never know what a write means: one that fails, fails alone, and a waiter that leaves disturbs no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from watership.saga.storage.queries import Write

BATCH_MAX = 200

# Writes a batch; for each write, in order, what its waiter gets: a result or an exception.
Writer = Callable[[Sequence[Write]], Awaitable[list[Any]]]


class Lane:
    """One queue of writes, one transaction at a time. It belongs to one event loop."""

    def __init__(self, writer: Writer, *, batch_max: int = BATCH_MAX) -> None:
        self._writer = writer
        self._batch_max = batch_max
        self._waiting: deque[tuple[Write, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, write: Write) -> Any:
        """Waits until the write's batch is through; returns its result or raises its error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((write, future))
        if self._task is None:
            self._task = loop.create_task(self._drain(), name="watership-group-commit")
        return await future

    async def idle(self) -> None:
        """Waits until nothing is under way."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        batch: list[tuple[Write, asyncio.Future[Any]]] = []
        try:
            while batch := self._take():
                for (_, future), result in zip(batch, await self._write(batch), strict=True):
                    _tell(future, result)
        except BaseException as error:
            # The loop is closing, or this file has a bug: nobody waits for an answer that never comes.
            reason = error if isinstance(error, Exception) else None
            for _, future in (*batch, *self._waiting):
                _tell(future, reason) if reason else future.cancel()
            self._waiting.clear()
            raise
        finally:
            self._task = None

    def _take(self) -> list[tuple[Write, asyncio.Future[Any]]]:
        batch: list[tuple[Write, asyncio.Future[Any]]] = []
        sagas: set[Any] = set()
        later: list[tuple[Write, asyncio.Future[Any]]] = []
        while self._waiting and len(batch) < self._batch_max:
            write, future = self._waiting.popleft()
            if future.done():
                continue  # its waiter left before it was begun
            if write.saga_id in sagas:
                later.append((write, future))  # a set-wise statement sees each row once
                continue
            sagas.add(write.saga_id)
            batch.append((write, future))
        self._waiting.extendleft(reversed(later))
        return batch

    async def _write(self, batch: Sequence[tuple[Write, asyncio.Future[Any]]]) -> list[Any]:
        writes = [write for write, _ in batch]
        try:
            return await self._writer(writes)
        except Exception as error:  # noqa: BLE001  # whose fault it is shows when each goes alone
            if len(writes) == 1:
                return [error]
        return [(await self._write([one]))[0] for one in batch]


def _tell(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
