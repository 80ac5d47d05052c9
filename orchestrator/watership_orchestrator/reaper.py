"""The reaper: what is due or owed becomes events for the same engine. Level-triggered: a look missed is looked again."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable

from watership.bus.protocol import Bus
from watership.bus.topology import Topology
from watership.chance import SYSTEM_CHANCE, new_token
from watership.errors import StoreUnavailable
from watership.service import patiently
from watership.settings import Settings
from watership_orchestrator.engine import Engine
from watership_orchestrator.ports import Backing

log = logging.getLogger("watership.reaper")


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

    async def start(self) -> None:
        """Connects. It consumes nothing."""
        await patiently(self.name, self._backing.check, self._chance)
        await patiently(self.name, self._bus.open, self._chance)
        await self._bus.declare(self._topology.exchanges(), self._topology.orchestrator_queues())

    async def run_once(self) -> int:
        """Looks at everything that is due now; how many sagas that was."""
        looked = 0
        while True:
            some = await self._engine.look(self._settings.reap_batch_max)
            looked += some
            if some < self._settings.reap_batch_max:
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
