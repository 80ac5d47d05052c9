"""Early signals on their way to their sagas, each in a task of its own: nobody waits for a saga that cannot be had now.

One that could not be given stays in the store, for whoever looks next.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from watership.saga.job import Job, LetGo
from watership.saga.storage.protocol import EarlySignal

log = logging.getLogger("watership.driver")


class EarlySignals:
    """Those that one set of drives is giving. ``give`` gives one, waits until it is on record, and forgets it."""

    def __init__(self, give: Callable[[Job, EarlySignal], Coroutine[Any, Any, None]]) -> None:
        self._give = give
        self._under_way: dict[tuple[uuid.UUID, str], asyncio.Task[None]] = {}

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What is under way."""
        return list(self._under_way.values())

    def begin(self, job: Job, signal: EarlySignal) -> None:
        """Gives one aside, unless that is under way."""
        key = (signal.saga_id, signal.signal_id)
        if key in self._under_way:
            return
        name = f"signal {signal.name} to saga {signal.saga_id}"
        task = asyncio.get_running_loop().create_task(self._try(job, signal), name=name)
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key))

    async def _try(self, job: Job, signal: EarlySignal) -> None:
        try:
            await self._give(job, signal)
        except LetGo:
            pass  # this process ends: another one has it
        except Exception as error:  # noqa: BLE001  # whatever it was, it stands between this signal and its saga
            words = "the signal %s to saga %s cannot be given now, and is kept: %s"
            log.warning(words, signal.name, signal.saga_id, error)
