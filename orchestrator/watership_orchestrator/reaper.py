"""The reaper: what is due or owed becomes events for the same engine. Level-triggered: a look missed is looked again."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable

from watership.bus.protocol import Bus
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE, new_token
from watership.errors import StoreUnavailable
from watership.service import patiently
from watership.settings import Settings
from watership_orchestrator.dead_letters import DeadLetters
from watership_orchestrator.early_signals import EarlySignals
from watership_orchestrator.engine import Engine
from watership_orchestrator.ports import Backing
from watership_orchestrator.starts import Starts

log = logging.getLogger("watership.reaper")

LOOKS_AT_ONCE = 3  # one decides, while others wait for the broker


class Reaper:
    """One of any number of reapers: rows that another one holds are passed over."""

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        backing: Backing,
        *,
        now_s: Callable[[], float] = time.monotonic,
        chance: random.Random = SYSTEM_CHANCE,
    ) -> None:
        self.name = f"reaper {socket.gethostname()}:{new_token(chance, size_bytes=3)}"
        self._settings = settings
        self._bus = bus
        self._backing = backing
        self._chance = chance
        self._topology = Topology(settings.namespace)
        self._engine = Engine(backing.store, bus, backing.plans, self._topology, now_s=now_s, chance=chance)
        self._starts = Starts(backing.store, self._engine, backing.plans)
        self._dead_letters = DeadLetters(backing.store, self._engine)
        self._early_signals = EarlySignals(backing.store, self._engine)

    async def start(self) -> None:
        """Connects. It consumes nothing."""
        await patiently(self.name, self._backing.check, self._chance)
        await patiently(self.name, self._bus.open, self._chance)
        exchanges, queues = self._topology.exchanges(), self._topology.orchestrator_queues()
        await patiently(self.name, lambda: self._bus.declare(exchanges, queues), self._chance)

    async def run_once(self) -> int:
        """Looks at everything that is due now, and judges all rows that wait for it; how many sagas were looked at.

        One kind of work that fails does not keep the others from being done; its error is raised after them.
        """
        # Side by side: a hundred thousand sagas that are due must not keep a start waiting.
        outcomes = await asyncio.gather(
            self._look_at_all(),
            self._all(self._starts.take_once),
            self._all(self._dead_letters.judge_once),
            self._all(self._early_signals.judge_once),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        looked = outcomes[0]
        assert isinstance(looked, int)
        return looked

    async def _all(self, some: Callable[[int], Awaitable[int]]) -> int:
        """All that there is of one kind of rows, batch after batch."""
        limit, done = self._settings.reap_batch_max, 0
        while True:
            found = await some(limit)
            done += found
            if found < limit:
                return done

    async def _look_at_all(self) -> int:
        """Looks side by side, each until it finds that nothing is left. One that fails ends the others after their batch."""
        limit, looked = self._settings.reap_batch_max, 0
        failure: Exception | None = None

        async def look() -> None:
            nonlocal looked, failure
            while failure is None:
                try:
                    found = await self._engine.look(limit)
                except Exception as error:  # noqa: BLE001 - raised when the others have ended
                    failure = error
                    return
                looked += found
                if found < limit:
                    return

        await asyncio.gather(*(look() for _ in range(LOOKS_AT_ONCE)))
        if failure is not None:
            raise failure
        return looked

    async def run(self) -> None:
        """Looks, and looks again."""
        while True:
            try:
                looked = await self.run_once()
                if looked:
                    log.info("re-drove %d sagas", looked)
            except StoreUnavailable as error:
                log.warning("%s; looking again soon", error)
            except Exception:  # its own errors leave the rows due: the next look finds them
                log.exception("a look failed; looking again soon")
            await asyncio.sleep(self._settings.reap_every_s * self._chance.uniform(0.8, 1.2))

    async def drain(self) -> None:
        """Closes."""
        await self._bus.close()
        await self._backing.close()
