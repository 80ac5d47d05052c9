"""The reaper: what is due or owed becomes events for the same engine. Level-triggered: a look missed is looked again."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import uuid

from sqlalchemy.ext.asyncio import AsyncEngine

from watership.bus.protocol import Bus
from watership.bus.topology import Topology
from watership.errors import StoreUnavailable
from watership.service import patiently
from watership.settings import Settings
from watership_orchestrator.database import check_database
from watership_orchestrator.engine import Engine
from watership_orchestrator.plans import PlanBook
from watership_orchestrator.store import Store

log = logging.getLogger("watership.reaper")


class Reaper:
    """One of any number of reapers: rows that another one holds are passed over."""

    def __init__(self, settings: Settings, bus: Bus, database: AsyncEngine) -> None:
        self.name = f"reaper {socket.gethostname()}:{uuid.uuid4().hex[:6]}"
        self._settings = settings
        self._bus = bus
        self._database = database
        self._topology = Topology(settings.namespace)
        plans = PlanBook(database, settings.namespace)
        self._engine = Engine(Store(database, settings.namespace), bus, plans, self._topology)

    async def start(self) -> None:
        """Connects. It consumes nothing."""
        await patiently(self.name, lambda: check_database(self._database))
        await patiently(self.name, self._bus.open)
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
            await asyncio.sleep(self._settings.reap_every_s * random.uniform(0.8, 1.2))

    async def drain(self) -> None:
        """Closes."""
        await self._bus.close()
        await self._database.dispose()
